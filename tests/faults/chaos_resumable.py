"""The chaos test of resumable agents: workers are lost all the time, and no run may end with an error.

    python -m tests.faults.chaos_resumable --seconds 600 --seed 7

Each worker has three agents: one on the event loop, one in a thread, and the built-in agent on a model server whose
tokens are numbered. It prints a table. It exits with 1 if a number that must be zero is not zero.
"""

import asyncio
import random
import re
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.faults.chaos import LEASE_S, MUST_BE_ZERO, RUNS_AT_ONCE, Chaos, Fleet, Report, main
from tests.faults.chaos_agents import Plan, tool_name
from tests.faults.chaos_brokers import ISOLATION, ChaosBroker, Fault
from tests.faults.chaos_clients import Following, ResumableRun
from tests.faults.numbered_model import NumberedModel
from tests.helpers import TIME_SCALE
from tests.processes import Processes

AGENTS: Final = "tests.faults.chaos_resumable_agents"
MODELS: Final = ("loop", "thread", "builtin")
KINDS: Final = ("chat", "chat", "chat", "responses", "answer", "background")
NO_ERROR: Final = "runs that ended with an error"
MORE_ZEROS: Final = (
    NO_ERROR,
    "readers that got other bytes",
    "sequence numbers with a gap",
    "tools that did not run",
)
# A worker is lost every second or so. A run that thinks may lose a few in a row without progress.
MAX_ATTEMPTS: Final = 20


class ResumableChaos(Chaos):
    """One chaos run with resumable agents."""

    def __init__(self, *options: Any, **more: Any) -> None:
        super().__init__(*options, **more)
        self.report.must_be_zero = tuple(dict.fromkeys((*MUST_BE_ZERO, *MORE_ZEROS)))
        self._following: dict[asyncio.Task[None], ResumableRun] = {}
        self._kinds: Counter[str] = Counter()
        self._longest_pause_s = 0.0
        self._plans: dict[str, Plan] = {}  # of the runs that completed, by key

    async def run(self) -> Report:
        """Serve the model while the chaos lasts."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", NumberedModel().handle)
        async with TestServer(app) as server:
            models = [f"loop={AGENTS}:steady", f"thread={AGENTS}:steady_in_a_thread", "builtin=builtin"]
            self.settings = {
                "AGENTSTREAM_AGENTS": ",".join(models),
                "AGENTSTREAM_TOOLS": f"{AGENTS}:charge,{AGENTS}:look",
                "AGENTSTREAM_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
                "AGENTSTREAM_QUEUE_TIMEOUT_S": "3600",  # on a busy machine, workers are seldom there
                "OPENAI_BASE_URL": str(server.make_url("/v1")),
                "OPENAI_API_KEY": "none",
            }
            return await super().run()

    def _agents_of(self, worker: int) -> dict[str, str]:
        """Half of the workers continue lost answers by prefill, the others ask the model to continue."""
        return {"AGENTSTREAM_ENGINE_PREFILL": "plain"} if worker % 2 else {}

    def _process_faults(self, fleet: Fleet) -> list[Fault]:
        """Return the faults: most of them hit workers."""

        def worker(pick: random.Random) -> str:
            return f"worker {pick.randrange(3)}"

        async def kill_worker(pick: random.Random) -> None:
            fleet.signal(worker(pick), signal.SIGKILL)

        async def end_worker(pick: random.Random) -> None:
            fleet.signal(worker(pick), signal.SIGTERM)

        async def freeze_worker(pick: random.Random) -> None:
            await fleet.freeze(worker(pick), pick.choice((0.5, 2.5, 4)) * LEASE_S)

        async def freeze_and_end_worker(pick: random.Random) -> None:
            name = worker(pick)
            await fleet.freeze(name, 2.5 * LEASE_S)
            fleet.signal(name, signal.SIGTERM)

        async def kill_frontend(pick: random.Random) -> None:
            fleet.signal(f"frontend {pick.randrange(2)}", signal.SIGKILL)

        faults = [
            ("kill worker", kill_worker),
            ("end worker", end_worker),
            ("freeze worker", freeze_worker),
        ]
        return [*faults * 4, ("freeze and end worker", freeze_and_end_worker), ("kill frontend", kill_frontend)]

    def _faults_of(self, broker: ChaosBroker) -> list[Fault]:
        """Hurt the broker seldom: after each of its faults, workers wait some seconds before they take over runs."""

        async def nothing(_pick: random.Random) -> None:
            """Leave the broker alone this time."""

        faults = super()._faults_of(broker)
        if self._broker_kind == "sentinel":
            # An isolated primary behind sentinels accepts writes for seconds. If another worker takes a run over
            # meanwhile, because a lease of 1 s is short for a loaded machine, nobody stores the first part again.
            faults = [fault for fault in faults if fault[0] != ISOLATION]
        return [*faults, *[("no broker fault", nothing)] * (4 * len(faults))]

    async def _ask_until(
        self, ends_at_s: float, urls: list[str], session: aiohttp.ClientSession, _slow: aiohttp.ClientSession
    ) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < ends_at_s:
            if len(self._open) < RUNS_AT_ONCE:
                self._begin(session, urls)
            await asyncio.sleep(self._clients.uniform(0.02, 0.12) * TIME_SCALE)

    def _begin(self, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        pick = self._clients
        plan = Plan(
            words=pick.randrange(20, 150),
            pause_ms=pick.choice((5, 20, 40, 80)),
            think_ms=pick.choice((0, 300, 1500)),
            tools_first=pick.choice((0, 1, 3)),
            tool_between=pick.random() < 0.4,
            key=secrets.token_hex(8),
        )
        run = ResumableRun(plan, kind=pick.choice(KINDS), model=pick.choice(MODELS))
        following = Following(session, urls, pick.randrange(2))
        task = asyncio.create_task(self._follow_resumable(following, run), name="client")
        self._open[task] = run  # type: ignore[assignment]  # printed if it hangs
        task.add_done_callback(self._open.pop)

    async def _follow_resumable(self, following: Following, run: ResumableRun) -> None:
        await following.follow(run)
        report = self.report
        report.runs += 1
        self._kinds[f"{run.kind}/{run.model}"] += 1
        report.outcomes[run.outcome] += 1
        report.rejected.update(following.rejected)
        report.resumed += max(0, run.connections - 1)
        self._longest_pause_s = max(self._longest_pause_s, run.pause_s - run.plan.think_ms / 1000)
        if run.outcome == "complete":
            self._plans[run.plan.key] = run.plan
        else:
            run.faults[NO_ERROR] += 1
        for name, count in run.faults.items():
            report.wrong[name] += count
            report.details.append(f"{run.run_id}: {name} {count} ({run.kind}, {run.model}, {run.outcome}, {run.plan})")

    def _look_for_tracebacks(self, processes: Processes) -> None:
        """Count what the workers logged, too."""
        super()._look_for_tracebacks(processes)
        output = "".join(process.output for process in processes.started)
        self.report.more = {
            "kinds of runs": ", ".join(f"{kind} {count}" for kind, count in sorted(self._kinds.items())),
            "runs continued on another worker": str(len(re.findall("continuing the run of another worker", output))),
            "longest pause that a client saw": f"{self._longest_pause_s:.1f} s",
        }

    def _count_tools(self) -> None:
        """Check the executions of the tools: what must not run twice ran at most once, and the others at least once."""
        charged, used = 0, 0
        for key, plan in self._plans.items():
            file = self._marks / key
            marks = Counter(file.read_text().split() if file.exists() else ())
            for number in range(plan.tools):
                name = tool_name(number)
                times = marks[f"{name}-{number}"]
                used += times
                if name == "charge":
                    charged += times == 0
                    if times > 1:
                        self.report.wrong["tools run twice"] += 1
                        self.report.details.append(f"{key}: {name} {number} run {times} times")
                elif times == 0:
                    self.report.wrong["tools that did not run"] += 1
                    self.report.details.append(f"{key}: {name} {number} did not run")
        self.report.tools_used = used
        self.report.more["charges interrupted, so not made"] = str(charged)


if __name__ == "__main__":
    sys.exit(main(ResumableChaos))
