"""A probe run: it is written without a worker, so that it can be read back through a front end."""

import time
from typing import Any, Final, Self

from agentstream.errors import BusError
from agentstream.protocol.events import RUN_COMPLETED, RUN_STARTED, TEXT, encode_batch, encode_event
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from agentstream.protocol.openai import Usage
from agentstream.store.admin.client import AdminClient
from agentstream.store.connection.endpoint import Endpoint

TTL_S: Final = 60  # removes the probe's keys if the process is killed before it can

_ATTEMPT: Final = 1
_STATUS: Final = {RUN_COMPLETED: "completed"}


class ProbeRun(AdminClient):
    """A run that exists inside this asynchronous context manager. It is open and is never queued.

    The scripts of front ends and workers write it, so its keys always have a TTL.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys, *, owner: str) -> None:
        """Prepare the run. ``owner`` is the hash of the API key that will read it; empty without keys."""
        super().__init__(endpoint, keys)
        self._owner = owner
        self.run_id = new_run_id()
        self._names = [keys.events(self.run_id), keys.run(self.run_id)]
        self._seq = 0

    async def __aenter__(self) -> Self:
        """Create the run's hash and append its run_started event."""
        await super().__aenter__()
        fields = (
            *("status", "running", "owner", self._owner, "model", "agentstream-doctor"),
            *("created", int(time.time()), "include_usage", 0),
        )
        try:
            await self._script("create_run", self._names[1:], TTL_S, *fields)
            await self._append(RUN_STARTED, {"worker": "doctor"})
        except BaseException:
            await self._link.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Delete the run's keys and close the connections."""
        try:
            async with self._bounded():
                for name in self._names:
                    await self._link.call("DEL", name)
        finally:
            await self._link.close()

    async def write(self, text: str) -> None:
        """Store and publish a piece of the answer."""
        await self._append(TEXT, text)

    async def complete(self) -> None:
        """Store and publish the terminal event."""
        usage = Usage().model_dump()
        end: dict[str, Any] = {"content": None, "tool_results": [], "finish_reason": "stop", "usage": usage}
        await self._append(RUN_COMPLETED, end)

    async def _append(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Append and publish an event as a worker does; raises BusError if Redis does not store it."""
        self._seq += 1
        batch = encode_batch(_ATTEMPT, self._seq, [encode_event(event_type, data)])
        create = 1 if self._seq == 1 else 0
        entry_id, status = f"{_ATTEMPT}-{self._seq}", _STATUS.get(event_type, "")
        fields = ("status", status) if status else ()
        reply = await self._script("publish", self._names, entry_id, batch, create, "", "", TTL_S, *fields)
        if reply not in (b"OK", b"DUPLICATE"):
            message = f"Redis did not store an event of the run {self.run_id}: {reply!r}"
            raise BusError(message)

    async def _script(self, name: str, keys: list[str], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply
        async with self._bounded():
            return await self._link.call_script(name, keys, *args)
