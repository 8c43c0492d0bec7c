"""The broker's state, as an operator's check-up reads it: each fact by itself, so that one refused hides no other."""

import time
from dataclasses import dataclass
from typing import Any, Final

from agentstream.store.admin.client import AdminClient, map_redis_errors
from agentstream.store.queue import HEARTBEAT_VALID_S

PINGS: Final = 20  # few enough to take no time, enough for a median


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the broker's clock is ahead of ours, and how wrong that may be, in s."""

    offset_s: float
    uncertainty_s: float


@dataclass(frozen=True, slots=True)
class QueueSummary:
    """A queue's workers that beat lately, and its jobs that wait or run."""

    workers: int
    outstanding: int


class ServerState(AdminClient):
    """Asks how the broker is."""

    async def info(self) -> dict[str, Any]:
        """Return what INFO tells, numbers as numbers."""
        with map_redis_errors():
            told: dict[str, Any] = await self._redis.info()
        return told

    async def config(self, name: str) -> str:
        """Return a parameter of its configuration, as CONFIG GET writes it; empty if it knows none."""
        with map_redis_errors():
            values: dict[Any, Any] = await self._redis.config_get(name)
        value = next(iter(values.values()), "")
        return value.decode() if isinstance(value, bytes) else str(value)

    async def ping_times_s(self) -> list[float]:
        """Return how long each of PINGS pings took, shortest first; connecting is not among them."""
        times_s = []
        with map_redis_errors():
            await self._redis.ping()
            for _ in range(PINGS):
                asked = time.monotonic()
                await self._redis.ping()
                times_s.append(time.monotonic() - asked)
        return sorted(times_s)

    async def clock(self) -> ClockOffset:
        """Compare its clock with ours: the answer was made between asking and hearing it."""
        with map_redis_errors():
            await self._redis.time()  # connects
            asked = time.time()
            seconds, microseconds = await self._redis.time()
            heard = time.time()
        return ClockOffset(seconds + microseconds / 1e6 - (asked + heard) / 2, (heard - asked) / 2)

    async def queue(self, name: str) -> QueueSummary:
        """Count a queue's live workers and its jobs."""
        with map_redis_errors():
            now_s, _ = await self._redis.time()
            workers = await self._redis.zcount(self._keys.workers(name), now_s - HEARTBEAT_VALID_S, "+inf")
            outstanding = await self._redis.xlen(self._keys.jobs(name))
        return QueueSummary(workers, outstanding)
