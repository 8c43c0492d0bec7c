"""The stored state of a run beside its replay log: its hash, its cancel flag and its idempotency key."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentstream.errors import BusError
from agentstream.protocol.events import RUN_CANCELLED, Cursor, encode_event
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import Keys
from agentstream.protocol.openai import Usage
from agentstream.store.connection.link import Link

# Hash fields of a run that the Responses API created. The conversation is stored only if a later request may continue
# it.
RESPONSE: Final = "response"
CONVERSATION: Final = "conversation"
# Hash field of a run that was enqueued inside a trace: the W3C header that names the trace.
TRACEPARENT: Final = "traceparent"
# Hash field of a run whose interrupts other API keys may answer: the hashes of these keys, separated by spaces.
ANSWER_KEYS: Final = "answer_keys"
# Hash fields of a run that was parked and has been answered: how often, and the position of the last run_resumed.
RESUMES: Final = "resumes"
RESUMED_AT: Final = "resumed_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The hash of a run.

    ``status`` is queued, running, requires_action, completed, failed or cancelled; ``created`` is Unix time in s.
    ``response`` holds the request fields that the response object repeats; None if another API created the run.
    ``traceparent`` names the trace in which the run was created; None without a trace. ``answer_keys`` are the hashes
    of other API keys that may answer its interrupts. ``resumes`` counts how often the run has gone on after it was
    parked; ``resumed_at`` is the place in its replay log where it did so last.
    """

    run_id: str
    status: str
    owner: str
    model: str
    created: int
    include_usage: bool
    response: dict[str, Any] | None = None
    traceparent: str | None = None
    answer_keys: tuple[str, ...] = ()
    resumes: int = 0
    resumed_at: Cursor | None = None

    @property
    def ended(self) -> bool:
        """Whether the run's terminal event is stored."""
        return self.status not in {"queued", "running", "requires_action"}


class RunStore:
    """Reads the state of runs, cancels runs, and registers idempotency keys."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Store the link and the keys."""
        self._link = link
        self._keys = keys

    async def get_info(self, run_id: str) -> RunInfo | None:
        """Return the hash of a run; None if it does not exist or has expired."""
        names = ("status", "owner", "model", "created", "include_usage")
        others = (RESPONSE, TRACEPARENT, ANSWER_KEYS, RESUMES, RESUMED_AT)
        reply = await self._link.call("HMGET", self._keys.run(run_id), *names, *others)
        *values, response, traceparent, answer_keys, resumes, resumed_at = reply
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
            answer_keys=tuple((answer_keys or b"").decode().split()),
            resumes=int(resumes or 0),
            resumed_at=Cursor.parse(resumed_at.decode()) if resumed_at else None,
        )

    async def conversation(self, run_id: str) -> list[dict[str, Any]] | None:
        """Return the chat messages of a run's request, without its instructions; None if they are not stored."""
        kept = await self._link.call("HGET", self._keys.run(run_id), CONVERSATION)
        return None if kept is None else orjson.loads(kept)

    async def cancel(self, run_id: str, *, ttl_s: int) -> None:
        """Store a cancel. When this returns, a queued run has ended. A run that ended before does not change.

        ``ttl_s`` is the TTL of the keys of a run that this call ends.
        """
        event = encode_event(RUN_CANCELLED, {"usage": Usage().model_dump()})
        names = [self._keys.run(run_id), self._keys.events(run_id)]
        await self._link.call_script("cancel", names, event, self._keys.control(""), run_id, ttl_s)

    async def register_idempotency_key(
        self, owner: str, key: str, job: Job, fingerprint: str, *, ttl_s: int
    ) -> tuple[str, int, str] | None:
        """Register an idempotency key for a run. If it is registered already, return its run id, created, fingerprint.

        ``ttl_s`` must cover the time in which clients may attach to the run. ``created`` is stored here because a
        repeated request may come before the run's hash exists, and its answer must show the same ``created``.
        """
        value = f"{job.run_id} {job.created} {fingerprint}"
        earlier = await self._link.call_script(
            "register_idempotency_key", [self._idempotency(owner, key)], value, ttl_s
        )
        if earlier is None:
            return None
        try:
            earlier_run, created, earlier_fingerprint = earlier.decode().split(" ")
            return earlier_run, int(created), earlier_fingerprint
        except ValueError as exc:
            message = f"the stored value of an idempotency key is invalid: {earlier!r}"
            raise BusError(message) from exc

    def _idempotency(self, owner: str, key: str) -> str:
        return self._keys.idempotency(hashlib.sha256(f"{owner}\n{key}".encode()).hexdigest())
