"""The tokens of the benchmark, and the pace of writing them."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from pydantic import BaseModel

WORD: Final = " word~"  # six characters, like an average English token; the load generator counts the ~
TICK_S: Final = 0.001
PACE_PER_S: Final = 20  # tokens of one stream, about as fast as people read


class Load(BaseModel):
    """Tokens to write: in each of ``rounds``, ``burst`` tokens to each stream.

    ``per_s`` is the total rate in tokens per second; None means as fast as possible.
    """

    rounds: int
    burst: int = 1
    per_s: int | None = None
    raw: bool = False
    stamped: bool = False  # whether each token contains the time of its write


class Pace(BaseModel):
    """Tokens to write at the pace of people's reading: ``tokens`` to each stream, PACE_PER_S a second."""

    streams: int
    tokens: int


def stamp(at_ns: int | None = None) -> str:
    """Return a token with a time (monotonic clock, in ns; now by default) after its ~."""
    return f"~{at_ns or time.monotonic_ns():016d}"


async def write_at_pace(pace: Pace, writes: Iterable[Callable[[str], Awaitable[None] | None]]) -> None:
    """Call each of ``writes`` with its tokens. Each has its own timer and a random phase.

    The stamp of a token is the time for which its write was scheduled.
    """
    async with asyncio.TaskGroup() as group:
        for write in writes:
            group.create_task(_write_one_at_pace(pace, write))


async def _write_one_at_pace(pace: Pace, write: Callable[[str], Awaitable[None] | None]) -> None:
    interval_s = 1 / PACE_PER_S
    due_s = time.monotonic() + random.uniform(0, interval_s)  # noqa: S311 -- no secret
    for _ in range(pace.tokens):
        await asyncio.sleep(due_s - time.monotonic())
        written = write(stamp(int(due_s * 1e9)))
        if written is not None:
            await written
        due_s += interval_s


async def write_all(load: Load, streams: int, write: Callable[[int, int], None]) -> None:
    """Call ``write(stream, round)`` for each burst of a load, one stream after the other, at an even pace."""
    bursts = load.rounds * streams
    if load.per_s is None:
        for number in range(load.rounds):
            for stream in range(streams):
                write(stream, number)
            await asyncio.sleep(0)
        return
    bursts_per_s, began_s, written = load.per_s / load.burst, time.monotonic(), 0
    while written < bursts:
        due = min(bursts, int((time.monotonic() - began_s) * bursts_per_s) + 1)
        for number in range(written, due):
            write(number % streams, number // streams)
        written = due
        await asyncio.sleep(TICK_S)
