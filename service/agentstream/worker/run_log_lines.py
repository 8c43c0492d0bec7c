"""The log lines of a worker about its runs.

There is one line at the end of each attempt. At level debug there is one at its start, and, if the settings allow it,
the question and the answer. There is no line for a token or an event.
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
from agentstream.worker.terminal import Terminal

log = logging.getLogger(__name__)

# The longest logged part of a question or an answer. It is enough to recognise the text.
MAX_CONTENT_CHARS: Final = 2000
HISTORY_TIMEOUT_S: Final = 5.0  # time to read the answer from the replay log; the run holds its slot meanwhile


class RunLogLines:
    """The log lines of one worker's runs. ``content`` allows the texts of users and agents."""

    def __init__(self, *, content: bool = False) -> None:
        """Read the log level once."""
        self._content = content and log.isEnabledFor(logging.DEBUG)

    def claimed(self, claim: Claim, queue: JobQueue) -> None:
        """Add the run's ids to every log line of this task and of the agent that it calls."""
        job = claim.job
        bind(run_id=job.run_id, request_id=job.request_id, queue=queue.name, worker=queue.worker_id)

    def attempt_begun(self, job: Job, begun: BegunAttempt) -> None:
        """Log the start of an attempt, at debug."""
        bind(attempt=begun.attempt)
        log.debug("the run begins")
        if self._content:
            log.debug("question: %s", _truncated(job.request.get("messages")))

    def taken_over(self, *, resumes: bool, pause_s: float) -> None:
        """Log that this attempt continues or repeats what another worker began."""
        log.info(
            "continuing the run of another worker" if resumes else "repeating the run: it had shown nothing",
            extra={"pause_ms": round(pause_s * 1000)},
        )

    def ended(self, terminal: Terminal | None, outcome: str, *, seconds: float) -> None:
        """Log the end of an attempt: its outcome, as in the metrics, and its duration.

        The line leaves out the message of a failure, because it may repeat the question. ``terminal`` is None if
        another worker continues the run.
        """
        data = terminal[1] if terminal is not None else {}
        usage = data.get("usage") or {}
        fields: dict[str, Any] = {"outcome": outcome, "duration_ms": round(seconds * 1000)}
        fields |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if name in usage}
        fields |= {"finish_reason": data["finish_reason"]} if "finish_reason" in data else {}
        log.info("the run ended", extra=fields)

    async def answered(self, bus: Bus, run_id: str, terminal: Terminal | None) -> None:
        """Log the answer of a run at debug, if the settings allow it. Its job is finished: no client waits for this."""
        if self._content and terminal is not None:
            log.debug("answer: %s", _truncated(await _read_answer(bus, run_id, terminal[1])))


async def _read_answer(bus: Bus, run_id: str, data: dict[str, Any]) -> object:
    """Return the text of the run's answer, or the message of its failure."""
    if text := data.get("content") or data.get("message"):
        return text
    try:
        async with asyncio.timeout(HISTORY_TIMEOUT_S):
            return "".join(event.data for event in await bus.history(run_id) if event.type == TEXT)
    except (BusError, TimeoutError) as exc:
        return f"(cannot be read: {str(exc) or 'Redis does not answer'})"


def _truncated(content: object) -> str:
    text = content if isinstance(content, str) else orjson.dumps(content, default=str).decode()
    return text if len(text) <= MAX_CONTENT_CHARS else f"{text[:MAX_CONTENT_CHARS]}... ({len(text)} characters)"
