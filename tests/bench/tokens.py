"""The tokens of the benchmark, and the pace of writing them."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel

WORD: Final = " word~"  # six characters, like an average English token; the load generator counts the ~
TICK_S: Final = 0.001


class Load(BaseModel):
    """Tokens to write: in each of ``rounds``, ``burst`` tokens to each stream.

    ``per_s`` is the total rate in tokens per second; None means as fast as possible.
    """

    rounds: int
    burst: int = 1
    per_s: int | None = None
    raw: bool = False
    stamped: bool = False  # whether each token contains the time of its write


def stamp() -> str:
    """Return a token with the current time (monotonic clock, in ns) after its ~."""
    return f"~{time.monotonic_ns():016d}"


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
