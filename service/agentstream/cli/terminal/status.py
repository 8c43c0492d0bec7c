"""The live status of ``agentstream up``: address, workers, runs and tokens per second, at the bottom of a terminal."""

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
METRICS_TIMEOUT_S: Final = 3.0  # a front end waits up to 2 s for Redis
HEIGHT: Final = 2


@dataclass(frozen=True, slots=True)
class LiveMetrics:
    """Values from the metrics of a front end. None means unknown.

    ``open_runs`` are all runs that have not ended, also background runs; ``queued`` are those that no worker has begun.
    ``workers`` have had a heartbeat in the last 10 s, so a dead worker may be among them. ``tokens`` counts those that
    were streamed to clients since the start of the front end.
    """

    open_runs: int | None
    queued: int | None
    workers: int | None
    tokens: float | None


UNKNOWN: Final = LiveMetrics(None, None, None, None)  # the front end does not answer


def parse_metrics(exposition: str) -> LiveMetrics:
    """Read the response of GET /metrics. Raises ValueError if it is not in the Prometheus text format."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    workers = found.get(metric_names.WORKERS_ALIVE, [-1])
    return LiveMetrics(
        open_runs=_total(found.get(metric_names.QUEUED)),
        queued=_total(found.get(metric_names.WAITING)),
        workers=None if min(workers) < 0 else int(min(workers)),  # of the queue with the fewest: they may overlap
        tokens=sum(found[metric_names.TOKENS]) if metric_names.TOKENS in found else None,
    )


def _total(of_queues: list[float] | None) -> int | None:
    """Return the sum over the queues, or None if one of them is unknown (-1, for example if Redis is unreachable)."""
    return None if not of_queues or min(of_queues) < 0 else int(sum(of_queues))


class Rate:
    """The growth of a counter per second. A counter that was reset counts as not grown."""

    def __init__(self) -> None:
        """Start without a sample."""
        self._last: tuple[float, float] | None = None

    def update(self, count: float | None, now_s: float) -> float | None:
        """Add a sample and return the growth per second since the previous one; None if either is unknown."""
        last, self._last = self._last, None if count is None else (count, now_s)
        if last is None or count is None or now_s <= last[1]:
            return None
        return max(0.0, count - last[0]) / (now_s - last[1])


async def live_status(url: str, children: Children) -> None:
    """Show the status of a deployment on the terminal, until cancelled or until the terminal closes."""
    clock = asyncio.get_running_loop().time
    began_s, rate = clock(), Rate()
    stopping_since_s: float | None = None
    timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
    try:
        with Panel(sys.stdout, HEIGHT) as panel:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while True:
                    metrics = await _fetch_metrics(session, url)
                    tokens_s = rate.update(metrics.tokens, clock())
                    if children.stopping and stopping_since_s is None:
                        stopping_since_s = clock()
                    panel.show(
                        status_lines(
                            url,
                            children.pids(),
                            metrics,
                            restarts=children.restarts,
                            age_s=clock() - began_s,
                            tokens_s=tokens_s,
                            stopping_s=None if stopping_since_s is None else clock() - stopping_since_s,
                        )
                    )
                    await asyncio.sleep(REFRESH_S)
    except OSError:
        return  # the terminal has closed; the service continues


async def _fetch_metrics(session: aiohttp.ClientSession, url: str) -> LiveMetrics:
    try:
        async with session.get(f"{url}/metrics") as response:
            return parse_metrics(await response.text())
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return UNKNOWN


def status_lines(  # noqa: PLR0913 -- one argument per shown value
    url: str,
    pids: Sequence[tuple[str, int | None]],
    metrics: LiveMetrics,
    *,
    restarts: int,
    age_s: float,
    tokens_s: float | None,
    stopping_s: float | None = None,
) -> list[str]:
    """Return the HEIGHT lines of the status. ``stopping_s`` is the time since the stop began, if it has."""
    counts = f"open runs {_format_count(metrics.open_runs)}   queued {_format_count(metrics.queued)}"
    if stopping_s is not None:
        left = ", ".join(name for name, pid in pids if pid is not None) or "the broker"
        waiting = f" waiting for {left}"
        return [
            f" {url}   stopping for {format_time(stopping_s)}   ctrl-C again ends everything now",
            waiting if metrics is UNKNOWN else f"{waiting}   {counts}",  # the front ends end first
        ]
    front_ends = [pid for name, pid in pids if name.startswith("frontend")]
    workers = [pid for name, pid in pids if name.startswith("worker")]
    first = (
        f" {url}   up {format_time(age_s)}   front end {_pid_list(front_ends)}   restarts {restarts}   ctrl-C to stop"
    )
    # A killed worker counts as alive until its heartbeat expires, but it has no process.
    alive = None if metrics.workers is None else min(metrics.workers, sum(pid is not None for pid in workers))
    second = f" workers {_format_count(alive)}/{len(workers)} ({_pid_list(workers)})"
    if metrics is UNKNOWN:
        return [first, f"{second}   the front end does not answer"]
    speed = (
        ""
        if metrics.tokens is None
        else f"   {_format_count(None if tokens_s is None else round(tokens_s))} tokens/s streamed"
    )
    return [first, f"{second}   {counts}{speed}"]


def _pid_list(pids: Sequence[int | None]) -> str:
    return " ".join(str(pid) if pid is not None else "-" for pid in pids)


def _format_count(number: int | None) -> str:
    return "?" if number is None else str(number)
