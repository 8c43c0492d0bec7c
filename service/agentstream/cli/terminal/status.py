"""What ``agentstream up`` shows at the bottom of a terminal: addresses, workers, runs, tokens a second."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from agentstream.cli.terminal.layout import format_time
from agentstream.cli.terminal.panel import Panel
from agentstream.processes.children import Children
from agentstream.telemetry import names as metric_names

REFRESH_S: Final = 1.0
METRICS_TIMEOUT_S: Final = 3.0  # a front end asks Redis for up to 2 s
HEIGHT: Final = 2


@dataclass(frozen=True, slots=True)
class LiveMetrics:
    """What a front end's metrics tell; None is unknown. ``tokens`` counts since its start."""

    open_runs: int | None
    queued: int | None
    workers: int | None
    tokens: float | None


UNKNOWN: Final = LiveMetrics(None, None, None, None)  # the front end does not answer


def parse_metrics(exposition: str) -> LiveMetrics:
    """Read what GET /metrics answers; raises ValueError if it is no such text."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    workers, queued = found.get(metric_names.WORKERS_ALIVE, [-1]), found.get(metric_names.QUEUED, [-1])
    return LiveMetrics(
        open_runs=int(sum(found[metric_names.OPEN_RUNS])) if metric_names.OPEN_RUNS in found else None,
        queued=None if min(queued) < 0 else int(sum(queued)),  # -1: Redis is away
        workers=None if min(workers) < 0 else int(min(workers)),  # of each queue; one worker serves several
        tokens=sum(found[metric_names.TOKENS]) if metric_names.TOKENS in found else None,
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
                    metrics = await _fetch_metrics(session, url)
                    tokens_s = rate.update(metrics.tokens, clock())
                    panel.show(
                        status_lines(
                            url,
                            children.pids(),
                            metrics,
                            restarts=children.restarts,
                            age_s=clock() - began_s,
                            tokens_s=tokens_s,
                        )
                    )
                    await asyncio.sleep(REFRESH_S)
    except OSError:
        return  # what it is said to is gone; the service is not


async def _fetch_metrics(session: aiohttp.ClientSession, url: str) -> LiveMetrics:
    try:
        async with session.get(f"{url}/metrics") as response:
            return parse_metrics(await response.text())
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return UNKNOWN


def status_lines(  # noqa: PLR0913 -- all that is shown
    url: str,
    pids: Sequence[tuple[str, int | None]],
    metrics: LiveMetrics,
    *,
    restarts: int,
    age_s: float,
    tokens_s: float | None,
) -> list[str]:
    """Return the HEIGHT lines of the status."""
    front_ends = [pid for name, pid in pids if name.startswith("frontend")]
    workers = [pid for name, pid in pids if name.startswith("worker")]
    first = f" {url}   up {format_time(age_s)}   front end {_pid_list(front_ends)}   restarts {restarts}   ctrl-C ends"
    second = f" workers {_format_count(metrics.workers)}/{len(workers)} ({_pid_list(workers)})"
    if metrics is UNKNOWN:
        return [first, f"{second}   the front end does not answer"]
    counts = f"open runs {_format_count(metrics.open_runs)}   queued {_format_count(metrics.queued)}"
    speed = (
        "" if metrics.tokens is None else f"   {_format_count(None if tokens_s is None else round(tokens_s))} tokens/s"
    )
    return [first, f"{second}   {counts}{speed}"]


def _pid_list(pids: Sequence[int | None]) -> str:
    return " ".join(str(pid) if pid is not None else "-" for pid in pids)


def _format_count(number: int | None) -> str:
    return "?" if number is None else str(number)
