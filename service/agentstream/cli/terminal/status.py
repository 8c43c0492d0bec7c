"""What ``agentstream up`` shows at the bottom of a terminal: addresses, workers, runs, tokens a second."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from agentstream.cli.terminal.layout import duration
from agentstream.cli.terminal.panel import Panel
from agentstream.processes.children import Children
from agentstream.telemetry import names as telemetry

REFRESH_S: Final = 1.0
METRICS_TIMEOUT_S: Final = 3.0  # a front end asks Redis for up to 2 s
HEIGHT: Final = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """What a front end's metrics tell; None is unknown. ``tokens`` counts since its start."""

    open_runs: int | None
    queued: int | None
    workers: int | None
    tokens: float | None


UNKNOWN: Final = Figures(None, None, None, None)  # the front end does not answer


def figures(exposition: str) -> Figures:
    """Read what GET /metrics answers; raises ValueError if it is no such text."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    workers, queued = found.get(telemetry.WORKERS_ALIVE, [-1]), found.get(telemetry.QUEUED, [-1])
    return Figures(
        open_runs=int(sum(found[telemetry.OPEN_RUNS])) if telemetry.OPEN_RUNS in found else None,
        queued=None if min(queued) < 0 else int(sum(queued)),  # -1: Redis is away
        workers=None if min(workers) < 0 else int(min(workers)),  # of each queue; one worker serves several
        tokens=sum(found[telemetry.TOKENS]) if telemetry.TOKENS in found else None,
    )


class Rate:
    """How fast a counter grows; one that begins anew has grown by nothing."""

    def __init__(self) -> None:
        """Start without a sample."""
        self._last: tuple[float, float] | None = None

    def update(self, count: float | None, now_s: float) -> float | None:
        """Take a sample and return the growth per second since the one before; None if that is unknown."""
        last, self._last = self._last, None if count is None else (count, now_s)
        if last is None or count is None or now_s <= last[1]:
            return None
        return max(0.0, count - last[0]) / (now_s - last[1])


async def live_status(url: str, children: Children) -> None:
    """Keep the status of a deployment on the terminal until cancelled, or the terminal is gone."""
    clock = asyncio.get_running_loop().time
    began_s, rate = clock(), Rate()
    timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
    try:
        with Panel(sys.stdout, HEIGHT) as panel:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while True:
                    told = await _ask(session, url)
                    tokens_s = rate.update(told.tokens, clock())
                    panel.show(
                        status_lines(
                            url,
                            children.pids(),
                            told,
                            restarts=children.restarts,
                            age_s=clock() - began_s,
                            tokens_s=tokens_s,
                        )
                    )
                    await asyncio.sleep(REFRESH_S)
    except OSError:
        return  # what it is said to is gone; the service is not


async def _ask(session: aiohttp.ClientSession, url: str) -> Figures:
    try:
        async with session.get(f"{url}/metrics") as response:
            return figures(await response.text())
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return UNKNOWN


def status_lines(  # noqa: PLR0913 -- all that is shown
    url: str,
    pids: Sequence[tuple[str, int | None]],
    told: Figures,
    *,
    restarts: int,
    age_s: float,
    tokens_s: float | None,
) -> list[str]:
    """Return the HEIGHT lines of the status."""
    front_ends = [pid for name, pid in pids if name.startswith("frontend")]
    workers = [pid for name, pid in pids if name.startswith("worker")]
    first = f" {url}   up {duration(age_s)}   front end {_listed(front_ends)}   restarts {restarts}   ctrl-C ends"
    second = f" workers {_known(told.workers)}/{len(workers)} ({_listed(workers)})"
    if told is UNKNOWN:
        return [first, f"{second}   the front end does not answer"]
    counts = f"open runs {_known(told.open_runs)}   queued {_known(told.queued)}"
    speed = "" if told.tokens is None else f"   {_known(None if tokens_s is None else round(tokens_s))} tokens/s"
    return [first, f"{second}   {counts}{speed}"]


def _listed(pids: Sequence[int | None]) -> str:
    return " ".join(str(pid) if pid is not None else "-" for pid in pids)


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)
