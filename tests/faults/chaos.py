"""The chaos test: random faults hit two front ends, three workers and a broker, while every client checks its stream.

    python -m tests.faults.chaos --seconds 600 --seed 7 --broker cluster

It prints a table. It exits with 1 if a number that must be zero is not zero. The seed determines the faults.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from tests.faults.chaos_agents import FOLDER_VARIABLE, Plan
from tests.faults.chaos_brokers import ALONE, ChaosBroker, Fault, chaos_broker
from tests.faults.checking_client import CheckingClient, StreamRecord, client_session
from tests.faults.faults import frozen, small_buffer_socket, until
from tests.helpers import TIME_SCALE, TIMEOUT_S
from tests.ports import free_port
from tests.processes import Process, Processes

LEASE_S: Final = 1.0 * TIME_SCALE
RUNS_AT_ONCE: Final = 40
RESTART_AFTER_S: Final = 0.5
# Time in which processes leave a primary that another server has replaced, and store again what it has lost.
STORED_AGAIN_S: Final = 10 * TIME_SCALE
# Time in which every stream must end after the last fault: the longest plan, a lease, a reconnect, and a margin for a
# loaded machine.
SETTLE_S: Final = 45 * TIME_SCALE
SETTINGS: Final = {
    "AGENTSTREAM_LEASE_S": str(LEASE_S),
    "AGENTSTREAM_DRAIN_TIMEOUT_S": "2",
    "AGENTSTREAM_RUN_TIMEOUT_S": str(120 * TIME_SCALE),
    "AGENTSTREAM_LOG_LEVEL": "info",
}
MUST_BE_ZERO: Final = (
    "words lost",
    "words doubled",
    "words out of order",
    "words broken",
    "events doubled",
    "frames after the end",
    "bodies ended cleanly without an end",
    "answers not as streamed",
    "runs forgotten",
    "runs hung",
    "tools run twice",
    "left over",
    "processes that died by themselves",
)


@dataclass
class Report:
    """The results of a chaos run."""

    seconds: float
    seed: int
    broker: str = "standalone"
    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    resumed: int = 0
    tools_used: int = 0
    worst_silence_s: float = 0.0
    must_be_zero: tuple[str, ...] = MUST_BE_ZERO
    more: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not any(self.wrong[name] for name in self.must_be_zero)

    def __str__(self) -> str:
        errors = {code: count for code, count in sorted(self.outcomes.items()) if code != "complete"}
        lines = [
            f"chaos: {self.seconds:g} s, seed {self.seed}, broker {self.broker}",
            f"  {'faults':<38} {_listed(self.faults)}",
            f"  {'runs':<38} {self.runs}",
            f"  {'complete':<38} {self.outcomes['complete']}",
            f"  {'ended with an error, by code':<38} {_listed(errors)}",
            f"  {'reconnects of clients':<38} {self.resumed}",
            f"  {'refused requests, by status':<38} {_listed(self.rejected)}",
            f"  {'tools used':<38} {self.tools_used}",
            f"  {'longest time to an error frame':<38} {self.worst_silence_s:.1f} s",
            *(f"  {name:<38} {value}" for name, value in self.more.items()),
            *(f"  {name:<38} {self.wrong[name]}" for name in self.must_be_zero),
            *(f"  ! {line}" for line in self.details[:40]),
        ]
        return "\n".join(lines)


def _listed(counts: dict[str, int] | Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


class Fleet:
    """The processes that the faults hit. A process that ends is started again, as ``up`` does it."""

    def __init__(
        self,
        processes: Processes,
        report: Report,
        environment: dict[str, str],
        agents: Callable[[int], dict[str, str]],
    ) -> None:
        """``agents`` returns the settings of the worker with a number."""
        self._agents = agents
        self._processes = processes
        self._report = report
        self._ports = [free_port(), free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        self._environment = environment
        self.running: dict[str, Process] = {}
        self._ended_by_us: set[int] = set()
        self._stopping = False
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        names = ["frontend 0", "frontend 1", "worker 0", "worker 1", "worker 2"]
        await asyncio.gather(*map(self._start, names))
        self._keepers = [asyncio.create_task(self._restart_when_ended(name), name=f"keep {name}") for name in names]

    async def stop(self) -> None:
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal that may end the process, so that its end counts as wanted."""
        process = self.running[name]
        self._ended_by_us.add(process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    async def all_run(self) -> bool:
        """Return whether every process runs, and none was sent a signal that ends it."""
        return all(process.pid not in self._ended_by_us for process in self.running.values())

    async def freeze(self, name: str, seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError), frozen(self.running[name].pid):
            await asyncio.sleep(seconds)

    async def _start(self, name: str) -> None:
        kind, number = name.split()
        if kind == "frontend":
            port = str(self._ports[int(number)])
            self.running[name] = await self._processes.start("frontend", AGENTSTREAM_PORT=port, **self._environment)
        else:
            environment = self._environment | self._agents(int(number))
            self.running[name] = await self._processes.start("worker", **environment)
        with contextlib.suppress(AssertionError):  # a fault hit it before it was ready: its keeper starts it again
            await self.running[name].until("serving on" if kind == "frontend" else "takes jobs of", 3 * TIMEOUT_S)

    async def _restart_when_ended(self, name: str) -> None:
        while True:
            process = self.running[name]
            code = await process.ended(timeout_s=1e6)
            if process.pid not in self._ended_by_us:
                self._report.wrong["processes that died by themselves"] += 1
                self._report.details.append(f"{name} ended with {code}:\n{process.output[-3000:]}")
            await asyncio.sleep(RESTART_AFTER_S)
            await self._start(name)


class Chaos:
    """One chaos run."""

    settings: Mapping[str, str] = {}  # beside SETTINGS

    def __init__(
        self,
        seconds: float,
        seed: int,
        folder: Path,
        say: Callable[[str], None] = lambda _line: None,
        broker: str = "standalone",
    ) -> None:
        """Choose the length, the faults and the kind of broker: standalone, sentinel or cluster."""
        self._seconds = seconds
        self._broker_kind = broker
        self._folder = folder
        self._say = say
        self._faults = random.Random(f"faults {seed}")  # noqa: S311 -- repeatable, not secret
        self._broker_faults = random.Random(f"broker {seed}")  # noqa: S311
        self._clients = random.Random(f"clients {seed}")  # noqa: S311
        self._marks = folder / "marks"
        self.report = Report(seconds, seed, broker)
        self._open: dict[asyncio.Task[None], StreamRecord] = {}
        self._losses = asyncio.Lock()  # held while a process is hit, and while none may be lost
        self._alone = asyncio.Event()  # set during a fault of ``ALONE``, and until what it has lost is stored again

    async def run(self) -> Report:
        """Run clients and faults, wait for the end, and return the report."""
        self._marks.mkdir()
        async with (
            chaos_broker(self._broker_kind, self._folder) as broker,
            Processes(broker.url, self._folder) as processes,
            client_session() as session,
            client_session(socket_factory=small_buffer_socket) as slow_session,
        ):
            environment = {**SETTINGS, FOLDER_VARIABLE: str(self._marks), **self.settings}
            fleet = Fleet(processes, self.report, environment, self._agents_of)
            await fleet.start()
            try:
                ends_at_s = time.monotonic() + self._seconds
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._ask_until(ends_at_s, fleet.urls, session, slow_session), name="clients")
                    tasks.create_task(
                        self._inject_faults(ends_at_s, self._faults, self._process_faults(fleet), self._losses),
                        name="faults",
                    )
                    broker_faults = [self._without_losses(fleet, *fault) for fault in self._faults_of(broker)]
                    tasks.create_task(
                        self._inject_faults(ends_at_s, self._broker_faults, broker_faults), name="broker faults"
                    )
                await self._settle(broker, processes.queue)
            finally:
                await fleet.stop()
            self._look_for_tracebacks(processes)
        self._count_tools()
        return self.report

    def _agents_of(self, worker: int) -> dict[str, str]:
        """Return the settings that name the agents of a worker."""
        agent = "chaotic_in_a_thread" if worker == 2 else "chaotic"
        return {"AGENTSTREAM_AGENT": f"tests.faults.chaos_agents:{agent}"}

    # -- clients ------------------------------------------------------------------------------------

    async def _ask_until(
        self, ends_at_s: float, urls: list[str], session: aiohttp.ClientSession, slow_session: aiohttp.ClientSession
    ) -> None:
        while time.monotonic() < ends_at_s:
            if len(self._open) < RUNS_AT_ONCE:
                received = StreamRecord(self._plan())
                stalls = received.plan.padding > 0
                used, first = slow_session if stalls else session, self._clients.randrange(2)
                follower = CheckingClient(used, urls, first=first, may_be_unknown=self._alone.is_set)
                client = self._follow(follower, received, random.Random(self._clients.random()))  # noqa: S311
                task = asyncio.create_task(client, name="client")
                self._open[task] = received
                task.add_done_callback(self._open.pop)
            await asyncio.sleep(self._clients.uniform(0.02, 0.12) * TIME_SCALE)

    def _plan(self) -> Plan:
        pick = self._clients
        if pick.random() < 0.08:  # for a client that stalls: enough bytes to fill all buffers on the way
            return Plan(words=300, pause_ms=4, padding=4000)
        return Plan(
            words=pick.randrange(5, 120),
            pause_ms=pick.choice((2, 20, 40, 80)),
            think_ms=pick.choice(
                (0, 300, 1500, 2500)
            ),  # nothing is shown yet: the run is attempted again if its worker is lost
            tools_first=pick.choice((0, 1, 3)),
            tool_between=pick.random() < 0.3,
        )

    async def _follow(self, follower: CheckingClient, received: StreamRecord, pick: random.Random) -> None:
        """Follow one run: in the foreground until its end, or in the background with a disconnect in between."""
        background = received.plan.padding > 0 or pick.random() < 0.6
        walks_away = not background and pick.random() < 0.1
        word = pick.randrange(received.plan.words)
        if received.plan.padding:
            await follower.begin(received, until_word=0, background=True)
            await follower.resume(received, stall_s=pick.uniform(0.5, 3) * TIME_SCALE)
        elif background:
            await follower.begin(received, until_word=word, background=True)
            await asyncio.sleep(pick.choice((0, 0.3, 2)) * TIME_SCALE)
            await follower.resume(received)
        elif walks_away:
            await follower.begin(received, until_word=word)
            received.outcome = received.outcome or "(the client walked away)"
        else:
            await follower.follow(received)
        if received.done and not received.outcome.startswith("HTTP"):
            await self._compare_folded(follower, received)
        self._note(follower, received)

    async def _compare_folded(self, follower: CheckingClient, received: StreamRecord) -> None:
        """Check that the answer as one object equals the streamed text.

        If a failover has lost the end of the run, its worker stores it again, a moment later.
        """
        if received.outcome != "complete":
            return
        ends_at_s = time.monotonic() + STORED_AGAIN_S
        while await follower.fetch_answer(received.run_id) != "".join(received.said):
            if self._broker_kind == "standalone" or time.monotonic() > ends_at_s:
                received.wrong["answers not as streamed"] += 1
                return
            await asyncio.sleep(RESTART_AFTER_S)

    def _note(self, follower: CheckingClient, received: StreamRecord) -> None:
        report = self.report
        report.runs += 1
        report.outcomes[received.outcome] += 1
        report.rejected.update(follower.rejected)
        report.resumed += max(0, received.connections - 1)
        if received.outcome not in {"complete", "cancelled"} and received.done:
            report.worst_silence_s = max(report.worst_silence_s, received.silence_s)
        for name, count in received.wrong.items():
            known = name if name in report.must_be_zero else "runs forgotten"
            report.wrong[known] += count
            report.details.append(f"{received.run_id}: {name} {count} ({received.outcome}, {received.plan})")

    # -- faults -------------------------------------------------------------------------------------

    async def _inject_faults(
        self,
        ends_at_s: float,
        pick: random.Random,
        faults: list[Fault],
        turns: contextlib.AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """Inject a fault every few seconds, each while holding ``turns``."""
        while True:
            await asyncio.sleep(pick.uniform(0.3, 3) * TIME_SCALE)
            if time.monotonic() >= ends_at_s:
                return
            name, fault = pick.choice(faults)
            async with turns or contextlib.nullcontext():
                self.report.faults[name] += 1
                self._say(f"{time.strftime('%H:%M:%S')} {name}")
                await fault(pick)

    def _without_losses(self, fleet: Fleet, name: str, fault: Callable[[random.Random], Awaitable[object]]) -> Fault:
        """Return a fault of the broker during which no process is lost, if it is one of ``ALONE``."""
        if name not in ALONE:
            return name, fault

        async def alone(pick: random.Random) -> None:
            async with self._losses:
                await until(fleet.all_run, SETTLE_S)
                self._alone.set()
                try:
                    await fault(pick)
                    await asyncio.sleep(STORED_AGAIN_S)
                finally:
                    self._alone.clear()

        return name, alone

    def _process_faults(self, fleet: Fleet) -> list[Fault]:
        def worker(pick: random.Random) -> str:
            return f"worker {pick.randrange(3)}"

        async def kill_worker(pick: random.Random) -> None:
            fleet.signal(worker(pick), signal.SIGKILL)

        async def end_worker(pick: random.Random) -> None:
            fleet.signal(worker(pick), signal.SIGTERM)

        async def freeze_worker(pick: random.Random) -> None:
            await fleet.freeze(worker(pick), pick.choice((0.5, 2.5, 3, 4)) * LEASE_S)

        async def kill_frontend(pick: random.Random) -> None:
            fleet.signal(f"frontend {pick.randrange(2)}", signal.SIGKILL)

        async def end_frontend(pick: random.Random) -> None:
            fleet.signal(f"frontend {pick.randrange(2)}", signal.SIGTERM)

        async def freeze_frontend(pick: random.Random) -> None:
            await fleet.freeze(f"frontend {pick.randrange(2)}", pick.choice((0.5, 3)) * TIME_SCALE)

        return [
            ("kill worker", kill_worker),
            ("kill worker", kill_worker),
            ("end worker", end_worker),
            ("freeze worker", freeze_worker),
            ("freeze worker", freeze_worker),
            ("freeze worker", freeze_worker),
            ("freeze worker", freeze_worker),
            ("kill frontend", kill_frontend),
            ("end frontend", end_frontend),
            ("freeze frontend", freeze_frontend),
        ]

    def _faults_of(self, broker: ChaosBroker) -> list[Fault]:
        """Return the faults that hit the broker."""
        return broker.faults()

    # -- after the faults ---------------------------------------------------------------------------

    async def _settle(self, broker: ChaosBroker, queue: str) -> None:
        """Wait until every stream and every job has ended, and count those that do not end."""
        if self._open:
            await asyncio.wait(self._open, timeout=SETTLE_S)
        for task, received in list(self._open.items()):
            self.report.runs += 1
            self.report.outcomes["(hung)"] += 1
            self.report.wrong["runs hung"] += 1
            self.report.details.append(f"hung: {received}")
            task.cancel()

        async def nothing_left() -> bool:
            return not await broker.leftovers(queue)

        with contextlib.suppress(TimeoutError):
            await until(nothing_left, SETTLE_S)
        left = await broker.leftovers(queue)
        self.report.wrong["left over"] += len(left)
        self.report.details += left

    def _look_for_tracebacks(self, processes: Processes) -> None:
        for process in processes.started:
            if "Traceback" in process.output:
                start = process.output.index("Traceback")
                self.report.details.append(f"a traceback:\n{process.output[max(0, start - 300) : start + 3000]}")

    def _count_tools(self) -> None:
        for file in self._marks.iterdir():
            marks = Counter(file.read_text().split())
            self.report.tools_used += len(marks)
            for number, times in marks.items():
                if times > 1:
                    self.report.wrong["tools run twice"] += 1
                    self.report.details.append(f"{file.name}: tool {number} run {times} times")


def main(chaos: type[Chaos] = Chaos) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker", choices=("standalone", "sentinel", "cluster"), default="standalone")
    parser.add_argument("--verbose", action="store_true", help="print every fault when it happens")
    options = parser.parse_args()
    say: Callable[[str], None] = print if options.verbose else lambda _line: None
    with tempfile.TemporaryDirectory(prefix="agentstream-chaos-") as folder:
        report = asyncio.run(chaos(options.seconds, options.seed, Path(folder), say, options.broker).run())
    print(report)  # noqa: T201
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
