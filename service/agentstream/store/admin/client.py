"""Asking Redis from a command line: one short-lived client, and errors that say whether Redis is away or refuses."""

import contextlib
from collections.abc import Iterator
from typing import Self

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint


@contextlib.contextmanager
def map_redis_errors() -> Iterator[None]:
    """Raise redis-py's errors as ours: BrokerUnavailable if Redis is away, BusError if it refuses."""
    try:
        yield
    except NoPermissionError as exc:
        message = f"this Redis user may not do that: {exc}"
        raise BusError(message) from exc
    except (AuthenticationError, ResponseError) as exc:
        message = f"Redis refuses: {exc}"
        raise BusError(message) from exc
    except (RedisError, OSError) as exc:
        message = f"Redis does not answer: {str(exc) or type(exc).__name__}"
        raise BrokerUnavailable(message) from exc


class AdminClient:
    """Asks Redis; an asynchronous context manager.

    Every method raises BrokerUnavailable if Redis cannot be reached, BusError if it refuses, as a restricted user is.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys) -> None:
        """Bind the names; nothing is connected yet. The front end's and the workers' keys are these."""
        self._redis = endpoint.redis()
        self._keys = keys

    async def __aenter__(self) -> Self:
        """Return it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close its connections."""
        await self._redis.aclose()
