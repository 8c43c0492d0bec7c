"""How an API shows a run: as a stream, and as one object."""

from dataclasses import dataclass
from typing import Final, Protocol

from service.completion_stream import CompletionStream
from service.protocol.completions import text_completion_body
from service.protocol.openai import Usage, completion_body
from service.stream import ChunkStream, StreamHead
from service.transcript import Completion

_STATUS: Final = {"running": "in_progress"}


class Body(Protocol):
    """Makes the object of a run, which is as far as ``completion`` is."""

    def __call__(self, head: StreamHead, completion: Completion, *, status: str = "running") -> dict[str, object]:
        """Return it; ``status`` is the run's while it is open."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """How an API shows a run: by which machine as a stream, and as which object."""

    machine: type[ChunkStream]
    body: Body


def _chat_body(head: StreamHead, completion: Completion, *, status: str = "running") -> dict[str, object]:
    """Return a run as a chat completion; ``status`` is the run's while it is open."""
    finish, failure = completion.finish, completion.failure
    if finish is not None:
        status = "cancelled" if finish.cancelled else "completed"
    elif failure is not None:
        status = "failed"
    body = completion_body(
        run_id=head.run_id,
        created=head.created,
        model=head.model,
        status=_STATUS.get(status, status),
        content=completion.content,
        finish_reason=finish.reason if finish else "stop" if failure else None,
        usage=finish.usage if finish else Usage().model_dump(),
        reasoning=completion.reasoning,
        tool_calls=completion.tool_calls,
    )
    if failure is not None:
        body["error"] = {"code": failure.code, "message": failure.message}
    return body


def _text_body(head: StreamHead, completion: Completion, *, status: str = "running") -> dict[str, object]:  # noqa: ARG001
    """Return a run that has ended as a text completion, which knows no other state."""
    finish = completion.finish
    return text_completion_body(
        run_id=head.run_id,
        created=head.created,
        model=head.model,
        text=completion.content,
        finish_reason=finish.reason if finish else "stop",
        usage=finish.usage if finish else Usage().model_dump(),
    )


CHAT: Final = View(ChunkStream, _chat_body)
TEXT: Final = View(CompletionStream, _text_body)
