"""Reads the state of one server. Each method reads one fact, so that a refused command hides no other fact."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from agentstream.errors import BrokerUnavailable, BusError, ConnectionRefused
from agentstream.store.admin.cluster_node import ClusterNode, parse_node
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S, Endpoint, close_client

PINGS: Final = 20  # few enough to be fast, enough for a median


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the broker's clock is ahead of the local clock, and the uncertainty of that value, both in s."""

    offset_s: float
    uncertainty_s: float


@contextlib.contextmanager
def map_redis_errors() -> Iterator[None]:
    """Translate redis-py's errors: raise BrokerUnavailable if Redis is unreachable, BusError if it refuses."""
    try:
        yield
    except NoPermissionError as exc:
        message = f"this Redis user lacks a permission: {exc}"
        raise BusError(message) from exc
    except (AuthenticationError, ResponseError) as exc:
        message = f"Redis refuses the command: {exc}"
        raise BusError(message) from exc
    except (RedisError, OSError) as exc:
        message = f"Redis does not answer: {str(exc) or type(exc).__name__}"
        raise BrokerUnavailable(message) from exc


@contextlib.contextmanager
def map_no_answer() -> Iterator[None]:
    """Translate the BusError that no server answers: raise BrokerUnavailable. ConnectionRefused stays as it is."""
    try:
        yield
    except ConnectionRefused:
        raise
    except BusError as exc:
        message = f"Redis does not answer: {exc}"
        raise BrokerUnavailable(message) from exc


class ServerState:
    """Reads the state of one server with redis-py; use it as an asynchronous context manager.

    Every method raises BrokerUnavailable if the server is unreachable, and BusError if it refuses, for example because
    the user lacks a permission.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Prepare a client of the one server of ``endpoint``. It connects on first use."""
        self._redis = endpoint.redis(read_timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        """Return the reader."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await close_client(self._redis)

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

    async def role(self) -> str:
        """Return the role of the server: master, slave or sentinel."""
        with map_redis_errors():
            role = (await self._redis.execute_command("ROLE"))[0]  # type: ignore[no-untyped-call]
        return role.decode() if isinstance(role, bytes) else str(role)

    async def cluster_info(self) -> dict[str, str]:
        """Return the fields of CLUSTER INFO."""
        return dict(line.partition(":")[::2] for line in (await self._cluster_text("INFO")).split())

    async def cluster_nodes(self) -> list[ClusterNode]:
        """Return the servers of the cluster as this one knows them; raises BusError if it has no such command."""
        return [parse_node(line) for line in (await self._cluster_text("NODES")).splitlines()]

    async def _cluster_text(self, subject: str) -> str:
        with map_redis_errors():
            # Under a name of one word redis-py returns the reply as the server has sent it.
            reply = await self._redis.execute_command("CLUSTER", subject)  # type: ignore[no-untyped-call]
        return reply.decode() if isinstance(reply, bytes) else str(reply)

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
