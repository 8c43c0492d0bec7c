"""Reads the broker's state. Each method reads one fact, so that a refused command hides no other fact."""

import time
from dataclasses import dataclass
from typing import Any, Final

from agentstream.store.admin.client import AdminClient, map_redis_errors
from agentstream.store.queue import HEARTBEAT_VALID_S

PINGS: Final = 20  # few enough to be fast, enough for a median


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the broker's clock is ahead of the local clock, and the uncertainty of that value, both in s."""

    offset_s: float
    uncertainty_s: float


@dataclass(frozen=True, slots=True)
class QueueSummary:
    """The number of a queue's workers with a valid heartbeat, and of its jobs that wait or run."""

    workers: int
    outstanding: int


class ServerState(AdminClient):
    """Reads the state of the broker."""

    async def info(self) -> dict[str, Any]:
        """Return the fields of INFO; numbers are int or float."""
        with map_redis_errors():
            fields: dict[str, Any] = await self._redis.info()
        return fields

    async def config(self, name: str) -> str:
        """Return the value of a configuration parameter, in the form of CONFIG GET; empty if it does not exist."""
        with map_redis_errors():
            values: dict[Any, Any] = await self._redis.config_get(name)
        value = next(iter(values.values()), "")
        return value.decode() if isinstance(value, bytes) else str(value)

    async def ping_times_s(self) -> list[float]:
        """Return the durations of PINGS pings, shortest first. They do not include the time to connect."""
        times_s = []
        with map_redis_errors():
            await self._redis.ping()
            for _ in range(PINGS):
                started = time.monotonic()
                await self._redis.ping()
                times_s.append(time.monotonic() - started)
        return sorted(times_s)

    async def clock(self) -> ClockOffset:
        """Compare the broker's clock with the local clock.

        The broker reads its clock at an unknown time between request and reply. The middle is the best estimate.
        """
        with map_redis_errors():
            await self._redis.time()  # connects
            sent = time.time()
            seconds, microseconds = await self._redis.time()
            received = time.time()
        return ClockOffset(seconds + microseconds / 1e6 - (sent + received) / 2, (received - sent) / 2)

    async def queue(self, name: str) -> QueueSummary:
        """Count the live workers and the outstanding jobs of a queue."""
        with map_redis_errors():
            now_s, _ = await self._redis.time()
            workers = await self._redis.zcount(self._keys.workers(name), now_s - HEARTBEAT_VALID_S, "+inf")
            outstanding = await self._redis.xlen(self._keys.jobs(name))
        return QueueSummary(workers, outstanding)
