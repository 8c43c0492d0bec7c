"""How an API shows a run: as a stream, and as one object."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agentstream.protocol.completions import text_completion_body
from agentstream.protocol.events import Cursor, Event
from agentstream.protocol.openai import Usage, completion_body
from agentstream.stream.chat import ChatStream, StreamHead, StreamMachine, StreamOptions
from agentstream.stream.completions import CompletionStream
from agentstream.stream.response_output import ResponseFold
from agentstream.stream.responses import ResponseStream
from agentstream.stream.transcript import AnswerFold, Failure

_STATUS: Final = {"running": "in_progress"}


class Fold(Protocol):
    """Takes a run's events, and is one object of them at any time."""

    failure: Failure | None

    @property
    def finished(self) -> bool:
        """Whether the terminal event was received."""
        ...

    def receive(self, event: Event) -> None:
        """Take the next event."""

    def body(self, *, status: str = "running") -> dict[str, Any]:
        """Return the object of the run as far as it is; ``status`` is the run's while it is open."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """How an API shows a run: by which machine as a stream, and folded into what."""

    machine: Callable[[StreamHead, StreamOptions, Cursor | None], StreamMachine]
    fold: Callable[[StreamHead], Fold]


class _ChatFold(AnswerFold):
    """A run as a chat completion."""

    def __init__(self, head: StreamHead) -> None:
        super().__init__()
        self._head = head

    def body(self, *, status: str = "running") -> dict[str, Any]:
        finish, failure, head = self.finish, self.failure, self._head
        if finish is not None:
            status = "cancelled" if finish.cancelled else "completed"
        elif failure is not None:
            status = "failed"
        body = completion_body(
            run_id=head.run_id,
            created=head.created,
            model=head.model,
            status=_STATUS.get(status, status),
            content=self.content,
            finish_reason=finish.reason if finish else "stop" if failure else None,
            usage=finish.usage if finish else Usage().model_dump(),
            reasoning=self.reasoning,
            tool_calls=self.tool_calls,
        )
        if failure is not None:
            body["error"] = {"code": failure.code, "message": failure.message}
        return body


class _TextFold(_ChatFold):
    """A run that has ended as a text completion, which knows no other state."""

    def body(self, *, status: str = "running") -> dict[str, Any]:  # noqa: ARG002
        finish, head = self.finish, self._head
        return text_completion_body(
            run_id=head.run_id,
            created=head.created,
            model=head.model,
            text=self.content,
            finish_reason=finish.reason if finish else "stop",
            usage=finish.usage if finish else Usage().model_dump(),
        )


CHAT_VIEW: Final = View(ChatStream, _ChatFold)
COMPLETION_VIEW: Final = View(CompletionStream, _TextFold)


def response_view(echo: dict[str, Any], after: int | None = None) -> View:
    """Return the view of the Responses API.

    ``echo`` is what a response repeats of its request; ``after`` the sequence number behind which a stream begins.
    """

    def machine(head: StreamHead, options: StreamOptions, _after: Cursor | None) -> StreamMachine:
        return ResponseStream(head, echo, agent_events=options.event_format != "off", after=after)

    return View(machine, lambda head: ResponseFold(head, echo))
