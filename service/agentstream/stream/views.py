"""The views: how each API shows a run, as a stream and as one object."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agentstream.protocol.completions import text_completion_body
from agentstream.protocol.events import Cursor, Event
from agentstream.protocol.openai import Usage, completion_body
from agentstream.stream.chat import REQUIRES_ACTION, ChatStream, StreamHead, StreamMachine, StreamOptions, waiting_text
from agentstream.stream.completions import CompletionStream
from agentstream.stream.older_calls import OlderChatStream, in_older_form
from agentstream.stream.response_output import ResponseFold
from agentstream.stream.responses import ResponseStream
from agentstream.stream.transcript import AnswerFold, Failure, Parked

_STATUS: Final = {"running": "in_progress"}


class Fold(Protocol):
    """Collects the events of a run; ``body`` returns the run as one object at any time."""

    failure: Failure | None
    parked: Parked | None

    @property
    def finished(self) -> bool:
        """Whether the terminal event was received."""
        ...

    def receive(self, event: Event) -> None:
        """Add the next event."""

    def body(self, *, status: str = "running", interrupt_text: bool = False) -> dict[str, Any]:
        """Return the run as one object, with the events so far. ``status`` is used only while the run is open.

        With ``interrupt_text`` the answer of a chat completion ends with what a parked run waits for.
        """
        ...


@dataclass(frozen=True, slots=True)
class View:
    """How one API shows a run: ``machine`` creates the stream machine, ``fold`` creates the fold."""

    machine: Callable[[StreamHead, StreamOptions, Cursor | None], StreamMachine]
    fold: Callable[[StreamHead], Fold]


class _ChatFold(AnswerFold):
    """A run as a chat completion."""

    def __init__(self, head: StreamHead) -> None:
        super().__init__()
        self._head = head

    def body(self, *, status: str = "running", interrupt_text: bool = False) -> dict[str, Any]:
        finish, failure, head = self.finish, self.failure, self._head
        if finish is not None:
            status = "cancelled" if finish.cancelled else "completed"
        elif failure is not None:
            status = "failed"
        elif self.parked is not None:
            status = REQUIRES_ACTION
        body = completion_body(
            run_id=head.run_id,
            created=head.created,
            model=head.model,
            status=_STATUS.get(status, status),
            content=self.content_with(self.parked if interrupt_text else None),
            finish_reason=finish.reason if finish else "stop" if failure or self.parked else None,
            usage=finish.usage if finish else self.parked.usage if self.parked else Usage().model_dump(),
            reasoning=self.reasoning,
            tool_calls=self.tool_calls,
        )
        if failure is not None:
            body["error"] = {"code": failure.code, "message": failure.message}
        if (end := finish or failure) is not None and end.unapplied_inputs:
            body["unapplied_inputs"] = list(end.unapplied_inputs)
        return body if self.parked is None else body | _waiting_fields(self.parked)

    def content_with(self, parked: Parked | None) -> str:
        """Return the answer so far and, for a parked run, the sentences that say what it waits for."""
        waiting = waiting_text(parked, text_sent=bool(self.content)) if parked is not None else ()
        return self.content + "".join(waiting)


def _waiting_fields(parked: Parked) -> dict[str, Any]:
    return {"status": REQUIRES_ACTION, "interrupts": [asked.as_json() for asked in parked.interrupts]}


class _OlderChatFold(_ChatFold):
    """A run as a chat completion with calls in the older form."""

    def body(self, *, status: str = "running", interrupt_text: bool = False) -> dict[str, Any]:
        return in_older_form(super().body(status=status, interrupt_text=interrupt_text))


class _TextFold(_ChatFold):
    """A run as a text completion. This API shows a run only after its end."""

    def body(self, *, status: str = "running", interrupt_text: bool = False) -> dict[str, Any]:  # noqa: ARG002
        finish, parked, head = self.finish, self.parked, self._head
        body = text_completion_body(
            run_id=head.run_id,
            created=head.created,
            model=head.model,
            text=self.content_with(parked if interrupt_text else None),
            finish_reason=finish.reason if finish else "stop",
            usage=finish.usage if finish else parked.usage if parked else Usage().model_dump(),
        )
        return body if parked is None else body | _waiting_fields(parked)


CHAT_VIEW: Final = View(ChatStream, _ChatFold)
OLDER_CHAT_VIEW: Final = View(OlderChatStream, _OlderChatFold)
COMPLETION_VIEW: Final = View(CompletionStream, _TextFold)


def response_view(
    echo: dict[str, Any], after: int | None = None, *, segment: int = 0, interrupt_text: bool = True
) -> View:
    """Return the view of the Responses API.

    ``echo`` holds the request fields that the response repeats. A stream begins after the sequence number ``after``.
    ``segment`` is the number of the response in its run. With ``interrupt_text`` a sentence says what a parked run
    waits for.
    """

    def machine(head: StreamHead, options: StreamOptions, _after: Cursor | None) -> StreamMachine:
        return ResponseStream(
            head,
            echo,
            agent_events=options.event_format != "off",
            event_types=options.event_types,
            after=after,
            segment=segment,
            interrupt_text=interrupt_text,
        )

    return View(machine, lambda head: ResponseFold(head, echo, segment, interrupt_text=interrupt_text))
