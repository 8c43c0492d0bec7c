"""What the benchmark's agents write, and how fast."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel

WORD: Final = " word~"  # six characters, as an English token is; the load generator counts its ~
TICK_S: Final = 0.001


class Load(BaseModel):
    """Tokens to write: ``rounds`` times ``burst`` at once to every stream, ``per_s`` a second or as fast as can be."""

    rounds: int
    burst: int = 1
    per_s: int | None = None
    raw: bool = False
    stamped: bool = False  # whether each tells when it was written


def stamp() -> str:
    """Return a token that tells when it was written: the monotonic clock, in ns, behind its ~."""
    return f"~{time.monotonic_ns():016d}"


async def write_all(load: Load, streams: int, write: Callable[[int, int], None]) -> None:
    """Call ``write(stream, round)`` for every burst of a load: one stream after the other, evenly paced."""
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
