"""What a worker logs of runs: one line at each attempt's end, and at debug what was asked and answered, if that may be.

Nothing is logged for a token or an event.
"""

import asyncio
import logging
from typing import Any, Final

import orjson

from agentstream.errors import BusError
from agentstream.protocol.events import TEXT
from agentstream.protocol.jobs import Job
from agentstream.store.bus.bus import Bus
from agentstream.store.queue import BegunAttempt, Claim, JobQueue
from agentstream.telemetry.log_context import bind
from agentstream.worker.execution import Terminal

log = logging.getLogger(__name__)

# Of a question and of an answer; enough to recognise it.
MAX_CONTENT_CHARS: Final = 2000
HISTORY_TIMEOUT_S: Final = 5.0  # of reading an answer back; a broker that is away is no reason to keep a slot


class RunLog:
    """The lines of one worker's runs. ``content`` allows what users and agents wrote."""

    def __init__(self, *, content: bool = False) -> None:
        """Start."""
        self._content = content and log.isEnabledFor(logging.DEBUG)

    def claimed(self, claim: Claim, queue: JobQueue) -> None:
        """Let every line of this task, and of the agent it calls, tell the run."""
        job = claim.job
        bind(run_id=job.run_id, request_id=job.request_id, queue=queue.name, worker=queue.worker_id)

    def attempt_begun(self, job: Job, begun: BegunAttempt) -> None:
        """Tell of an attempt's beginning, at debug."""
        bind(attempt=begun.attempt)
        log.debug("the run begins")
        if self._content:
            log.debug("asked: %s", _truncated(job.request.get("messages")))

    def ended(self, terminal: Terminal | None, outcome: str, *, seconds: float) -> None:
        """Tell of an attempt's end: how, as metrics have it, and after how long.

        Not a failure's message: it may repeat what was asked. Without a terminal event another worker goes on.
        """
        data = terminal[1] if terminal is not None else {}
        usage = data.get("usage") or {}
        fields: dict[str, Any] = {"outcome": outcome, "duration_ms": round(seconds * 1000)}
        fields |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        fields |= {"finish_reason": data["finish_reason"]} if "finish_reason" in data else {}
        log.info("the run ended", extra=fields)

    async def answered(self, bus: Bus, run_id: str, terminal: Terminal | None) -> None:
        """Tell what a run answered, at debug, if that may be. Its job is done by now: nothing waits for this."""
        if self._content and terminal is not None:
            log.debug("answered: %s", _truncated(await _read_answer(bus, run_id, terminal[1])))


async def _read_answer(bus: Bus, run_id: str, data: dict[str, Any]) -> object:
    """Return what the run said, or why it failed."""
    if text := data.get("content") or data.get("message"):
        return text
    try:
        async with asyncio.timeout(HISTORY_TIMEOUT_S):
            return "".join(event.data for event in await bus.history(run_id) if event.type == TEXT)
    except (BusError, TimeoutError) as exc:
        return f"(not to be had: {str(exc) or 'the broker is away'})"


def _truncated(content: object) -> str:
    text = content if isinstance(content, str) else orjson.dumps(content, default=str).decode()
    return text if len(text) <= MAX_CONTENT_CHARS else f"{text[:MAX_CONTENT_CHARS]}... ({len(text)} characters)"
