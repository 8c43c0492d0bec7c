"""What the benchmark's agents write, and how fast."""

import time
from typing import Final

from pydantic import BaseModel

TOKEN: Final = " word~"  # six characters, as an English token is; the load generator counts its ~


class Load(BaseModel):
    """Tokens to write: ``rounds`` times ``burst`` to every stream, as fast as they go."""

    rounds: int
    burst: int = 1


class Pace(BaseModel):
    """Tokens to write one after the other, the next stream's each time, ``per_s`` of them in a second, for ``for_s``."""

    per_s: int
    for_s: float


def stamped() -> str:
    """Return a token that tells when it was written: the monotonic clock, in ns, behind its ~."""
    return f"~{time.monotonic_ns():016d}"
