"""The terminal events that a worker makes for runs that fail."""

from typing import Any

from agentstream import errors
from agentstream.protocol.events import RUN_FAILED
from agentstream.protocol.jobs import Job
from agentstream.telemetry.masking import mask_error

Terminal = tuple[str, dict[str, Any]]


def without_details(terminal: Terminal, job: Job) -> Terminal:
    """Return the terminal event of a failed agent with a message that says nothing of the cause.

    A code of the agent's own keeps its message: an AgentError with such a code is made for clients.
    """
    event_type, data = terminal
    if data["code"] not in errors.FAILURE_MEANINGS:
        return terminal
    reason = {
        errors.CONTEXT_LENGTH: "the conversation is longer than the context window of the model",
        errors.MODEL_ERROR: "the model server could not answer",
    }.get(data["code"], "the agent failed")
    return event_type, {**data, "message": errors.neutral_message(reason, job.request_id or job.run_id)}


def failed_event(code: str, message: str, status: int | None = None) -> Terminal:
    """Return the terminal event of a failed run. Its message has no secrets, and is cut to MAX_MESSAGE_CHARACTERS.

    ``status`` is the HTTP status, if it is not that of the code.
    """
    own_status = {} if status in {None, errors.failure_status(code)} else {"status": status}
    return RUN_FAILED, {"code": code, "message": mask_error(message)[: errors.MAX_MESSAGE_CHARACTERS], **own_status}
