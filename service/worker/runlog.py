"""What a worker logs of runs: one line at each attempt's end, and at debug what was asked and answered, if that may be.

Nothing is logged for a token or an event.
"""

import logging
import time
from typing import Any, Final

import orjson

from service.errors import BusError
from service.logscope import bind
from service.protocol.events import RUN_CANCELLED, RUN_COMPLETED, RUN_FAILED, TEXT
from service.protocol.jobs import Job
from service.store.bus import Bus
from service.store.queue import Begun, Claim, JobQueue
from service.worker.execution import Execution, Terminal

log = logging.getLogger(__name__)

# Of a question and of an answer; enough to recognise it.
MAX_CONTENT_CHARS: Final = 2000

# By terminal event; an attempt without one was handed back or lost.
OUTCOMES: Final = {RUN_COMPLETED: "completed", RUN_FAILED: "failed", RUN_CANCELLED: "cancelled"}


class RunLog:
    """The lines of one worker's runs. ``content`` allows what users and agents wrote."""

    def __init__(self, *, content: bool = False) -> None:
        """Start."""
        self._content = content and log.isEnabledFor(logging.DEBUG)

    def claimed(self, claim: Claim, queue: JobQueue) -> None:
        """Let every line of this task, and of the agent it calls, tell the run."""
        job = claim.job
        bind(run_id=job.run_id, request_id=job.request_id, queue=queue.name, worker=queue.worker_id)

    def begun(self, job: Job, begun: Begun) -> None:
        """Tell of an attempt's beginning, at debug."""
        bind(attempt=begun.attempt)
        log.debug("the run begins")
        if self._content:
            log.debug("asked: %s", _shown(job.request.get("messages")))

    async def ended(self, bus: Bus, execution: Execution, terminal: Terminal | None) -> None:
        """Tell of an attempt's end. Not a failure's message: it may repeat what was asked.

        Without a terminal event another worker goes on with the run, or has ended it.
        """
        kind, data = terminal or ("", {})
        fields: dict[str, Any] = {
            "outcome": OUTCOMES.get(kind, execution.stop_reason or "lost"),
            "duration_ms": round((time.monotonic() - execution.begun_s) * 1000),
        }
        usage = data.get("usage") or {}
        fields |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        fields |= {name: data[name] for name in ("code", "finish_reason") if name in data}
        log.info("the run ended", extra=fields)
        if self._content and terminal is not None:
            log.debug("answered: %s", _shown(await _answer(bus, execution.claim.job.run_id, data)))


async def _answer(bus: Bus, run_id: str, data: dict[str, Any]) -> object:
    """Return what the run said, or why it failed."""
    if text := data.get("content") or data.get("message"):
        return text
    try:
        return "".join(event.data for event in await bus.history(run_id) if event.type == TEXT)
    except BusError as exc:
        return f"(not to be had: {exc})"


def _shown(content: object) -> str:
    text = content if isinstance(content, str) else orjson.dumps(content, default=str).decode()
    return text if len(text) <= MAX_CONTENT_CHARS else f"{text[:MAX_CONTENT_CHARS]}... ({len(text)} characters)"
