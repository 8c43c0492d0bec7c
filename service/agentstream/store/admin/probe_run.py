"""A run that no worker executes: written here, to be read back through a front end."""

import time
from typing import Any, Final, Self

from agentstream.errors import BusError
from agentstream.protocol.events import RUN_COMPLETED, RUN_STARTED, TEXT, encode_batch, encode_event
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from agentstream.protocol.openai import Usage
from agentstream.store.admin.client import AdminClient, map_redis_errors
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.scripts import SCRIPTS

TTL_S: Final = 60  # should nobody remove it

_ATTEMPT: Final = 1
_STATUS: Final = {RUN_COMPLETED: "completed"}


class ProbeRun(AdminClient):
    """Inside this asynchronous context manager the run exists, open and never queued.

    It is written by the scripts of front ends and workers: its keys have their TTL from the first moment.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys, *, owner: str) -> None:
        """Prepare; ``owner`` is the hash of the API key it shall be read with, empty without keys."""
        super().__init__(endpoint, keys)
        self._owner = owner
        self.run_id = new_run_id()
        self._names = [keys.events(self.run_id), keys.run(self.run_id)]
        self._seq = 0

    async def __aenter__(self) -> Self:
        """Describe the run, and let it have started."""
        described = (
            *("status", "running", "owner", self._owner, "model", "agentstream-doctor"),
            *("created", int(time.time()), "include_usage", 0),
        )
        try:
            await self._script("create_run", self._names[1:], TTL_S, *described)
            await self._append(RUN_STARTED, {"worker": "doctor"})
        except BaseException:
            await self._redis.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove every trace of it."""
        try:
            with map_redis_errors():
                for name in self._names:
                    await self._redis.delete(name)
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
        """Append and publish, as a worker does."""
        self._seq += 1
        batch = encode_batch(_ATTEMPT, self._seq, [encode_event(event_type, data)])
        create = 1 if self._seq == 1 else 0
        entry_id, status = f"{_ATTEMPT}-{self._seq}", _STATUS.get(event_type, "")
        reply = await self._script("publish", self._names, entry_id, batch, create, "", "", status, TTL_S)
        if reply not in (b"OK", b"DUPLICATE"):
            message = f"Redis did not keep a piece of the run {self.run_id}: {reply!r}"
            raise BusError(message)

    async def _script(self, name: str, keys: list[str], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply
        script = SCRIPTS[name]
        with map_redis_errors():
            await self._redis.script_load(script.source)
            return await self._redis.evalsha(script.sha.decode(), len(keys), *keys, *args)
