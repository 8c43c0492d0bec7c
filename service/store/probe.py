"""A run that no worker executes: written here, to be read back through a front end."""

import time
from typing import Any, Final, Self

from service.protocol.events import RUN_COMPLETED, RUN_STARTED, TEXT, encode_batch, encode_event
from service.protocol.jobs import new_run_id
from service.protocol.keys import Keys
from service.protocol.openai import Usage
from service.store.endpoint import Endpoint
from service.store.inspect import store_errors

TTL_S: Final = 60  # should nobody remove it

_ATTEMPT: Final = 1


class ProbeRun:
    """An asynchronous context manager: inside it the run exists, open and never queued.

    Every method raises BrokerUnavailable if Redis cannot be reached, BusError if it refuses.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys, *, owner: str) -> None:
        """Prepare; ``owner`` is the hash of the API key it shall be read with, empty without keys."""
        self._redis = endpoint.redis()
        self._owner = owner
        self.run_id = new_run_id()
        self._run = keys.run(self.run_id)
        self._events = keys.events(self.run_id)
        self._seq = 0

    async def __aenter__(self) -> Self:
        """Describe the run, and let it have started."""
        try:
            with store_errors():
                described: dict[Any, Any] = {
                    "status": "running",
                    "owner": self._owner,
                    "model": "agentstream-doctor",
                    "created": int(time.time()),
                    "include_usage": 0,
                }
                await self._redis.hset(self._run, mapping=described)
                await self._redis.expire(self._run, TTL_S)
            await self._append(RUN_STARTED, {"worker": "doctor"})
            with store_errors():
                await self._redis.expire(self._events, TTL_S)
        except BaseException:
            await self._redis.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove every trace of it."""
        try:
            with store_errors():
                await self._redis.delete(self._run)
                await self._redis.delete(self._events)
        finally:
            await self._redis.aclose()

    async def write(self, text: str) -> None:
        """Store and publish a piece of the answer."""
        await self._append(TEXT, text)

    async def complete(self) -> None:
        """Store and publish its end."""
        usage = Usage().model_dump()
        end: dict[str, Any] = {"content": None, "tool_results": [], "finish_reason": "stop", "usage": usage}
        await self._append(RUN_COMPLETED, end)

    async def _append(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Append and publish, as ``publish.lua`` does for a worker."""
        self._seq += 1
        batch = encode_batch(_ATTEMPT, self._seq, [encode_event(event_type, data)])
        with store_errors():
            await self._redis.xadd(self._events, {"b": batch}, id=f"{_ATTEMPT}-{self._seq}")
            await self._redis.publish(self._events, batch)
