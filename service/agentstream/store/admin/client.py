"""The base class of admin queries: it owns one short-lived Redis client and translates redis-py's errors."""

import contextlib
from collections.abc import Iterator
from typing import Self

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint


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


class AdminClient:
    """A Redis client for admin queries; use it as an asynchronous context manager.

    Every method raises BrokerUnavailable if Redis is unreachable, and BusError if Redis refuses, for example because
    the user lacks a permission.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys) -> None:
        """Prepare a client that connects on first use. ``keys`` must be those of the front ends and workers."""
        self._redis = endpoint.redis()
        self._keys = keys

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._redis.aclose()
