"""What is known of a run beside its events: its hash, its cancel flag, and the idempotency key it stands under."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentstream.errors import BusError
from agentstream.protocol.events import RUN_CANCELLED, encode_event
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import Keys
from agentstream.protocol.openai import Usage
from agentstream.store.connection.link import Link

# Fields of the hash of a run that the Responses API created. The conversation is there if another may go on from it.
RESPONSE: Final = "response"
CONVERSATION: Final = "conversation"
# Of a run that was enqueued inside a trace: the W3C header that names it.
TRACEPARENT: Final = "traceparent"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run's hash. ``status`` is queued, running, completed, failed or cancelled; ``created`` Unix time in s.

    ``response`` is what a response repeats of its request; None if the run was created by another API.
    ``traceparent`` names the trace it was created in, if there was one.
    """

    run_id: str
    status: str
    owner: str
    model: str
    created: int
    include_usage: bool
    response: dict[str, Any] | None = None
    traceparent: str | None = None

    @property
    def ended(self) -> bool:
        """Whether its terminal event is stored."""
        return self.status not in {"queued", "running"}


class RunStore:
    """Reads and marks runs."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Bind the link and the names."""
        self._link = link
        self._keys = keys

    async def get_info(self, run_id: str) -> RunInfo | None:
        """Return what is known of a run; None if there is no such run (any more)."""
        names = ("status", "owner", "model", "created", "include_usage")
        reply = await self._link.call("HMGET", self._keys.run(run_id), *names, RESPONSE, TRACEPARENT)
        *values, response, traceparent = reply
        if any(value is None for value in values):
            return None
        status, owner, model, created, include_usage = (value.decode() for value in values)
        return RunInfo(
            run_id=run_id,
            status=status,
            owner=owner,
            model=model,
            created=int(created),
            include_usage=include_usage == "1",
            response=None if response is None else orjson.loads(response),
            traceparent=None if traceparent is None else traceparent.decode(errors="replace"),
        )

    async def conversation(self, run_id: str) -> list[dict[str, Any]] | None:
        """Return the chat messages a run answered, its instructions left out; None if they are not kept."""
        kept = await self._link.call("HGET", self._keys.run(run_id), CONVERSATION)
        return None if kept is None else orjson.loads(kept)

    async def cancel(self, run_id: str, *, ttl_s: int) -> None:
        """Ask for a run's end, durably. A queued one has ended when this returns; harmless if it ended before."""
        event = encode_event(RUN_CANCELLED, {"usage": Usage().model_dump()})
        names = [self._keys.run(run_id), self._keys.events(run_id)]
        await self._link.call_script("cancel", names, event, self._keys.control(""), run_id, ttl_s)

    async def register_idempotency_key(
        self, owner: str, key: str, job: Job, fingerprint: str, *, ttl_s: int
    ) -> tuple[str, int, str] | None:
        """Let an idempotency key stand for a run, or return the (run id, created, fingerprint) it stands for already.

        ``ttl_s`` is as long as the run may be attached to.
        Who repeats the request before its run is described must show the same ``created``, too.
        """
        meaning = f"{job.run_id} {job.created} {fingerprint}"
        earlier = await self._link.call_script(
            "register_idempotency_key", [self._idempotency(owner, key)], meaning, ttl_s
        )
        if earlier is None:
            return None
        try:
            earlier_run, created, earlier_fingerprint = earlier.decode().split(" ")
            return earlier_run, int(created), earlier_fingerprint
        except ValueError as exc:
            message = f"an idempotency key holds {earlier!r}"
            raise BusError(message) from exc

    def _idempotency(self, owner: str, key: str) -> str:
        return self._keys.idempotency(hashlib.sha256(f"{owner}\n{key}".encode()).hexdigest())
