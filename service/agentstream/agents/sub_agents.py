"""Sub-agents: the run that an agent gives to an agent which works for it."""

import unicodedata
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from agentstream.agents.contract import EventSink, Run
from agentstream.agents.tool_calls import ToolCallWriter
from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.events import AGENT_PATH, AGENT_REASONING, AGENT_TEXT, REASONING, TEXT
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.openai import ChatCompletionRequest, ChatMessage
from agentstream.telemetry.masking import mask

# Every event of a sub-agent carries its path, so a path must be short.
MAX_NAME_CHARS: Final = 64
MAX_DEPTH: Final = 8
# Control characters, lone surrogates, and separators of lines and paragraphs.
_FORBIDDEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


class _SubAgentSink:
    """Sends the events of a sub-agent with its path. Its text and its reasoning become events, too."""

    def __init__(self, sink: EventSink, path: tuple[str, ...]) -> None:
        self.whole_run: EventSink = sink.whole_run if isinstance(sink, _SubAgentSink) else sink
        self._path = list(path)
        self.texts: list[str] = []

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Queue one event."""
        if event_type == TEXT:
            self.whole_run.put(AGENT_TEXT, {AGENT_PATH: self._path, "text": mask(data)})
            self.texts.append(data)
        elif event_type == REASONING:
            self.whole_run.put(AGENT_REASONING, {AGENT_PATH: self._path, "text": mask(data)})
        else:
            self.whole_run.put(event_type, {**data, AGENT_PATH: self._path})

    def put_checkpoint(self, state: bytes) -> NoReturn:
        """Refuse: ``ChildRun`` has the error."""
        raise NotImplementedError

    def ask(self, asked: Interrupt) -> "Future[Any]":
        """Ask people a question, for the whole run."""
        return self.whole_run.ask(asked)

    def take_inputs(self) -> list[dict[str, Any]]:
        """Return nothing: the agent itself takes the messages for the run."""
        return []

    async def wait_for_room(self) -> None:
        """Wait for the queue of the whole run."""
        await self.whole_run.wait_for_room()


class ChildRun(Run):
    """The run of a sub-agent, from ``Run.child``. It is over when the whole run is over.

    ``id``, ``caller``, ``cancelled`` and ``drain`` are those of the whole run. ``restored`` is None.
    """

    _sink: _SubAgentSink

    def __init__(
        self,
        parent: Run,
        name: str,
        messages: str | Iterable[Any] | None,
        sink: EventSink,
        children: "set[weakref.ref[Run]]",
    ) -> None:
        """Create the run of a sub-agent of ``parent``, and add it to the ``children`` of the whole run."""
        path = (*parent.agent_path, mask(_checked(name)))
        if len(path) > MAX_DEPTH:
            message = f"run.child: {'/'.join(path)!r:.200} is {len(path)} sub-agents deep; the limit is {MAX_DEPTH}"
            raise InvalidAgentOutput(message)
        request = parent.request if messages is None else _with_messages(parent.request, messages)
        super().__init__(parent.id, request, _SubAgentSink(sink, path), parent.caller)
        self.agent_path = path
        self._parent = parent
        self._children = children
        children.add(weakref.ref(self, children.discard))
        self._cancelled = parent.cancelled  # after the line above: the run may be cancelled in between

    def cancel(self, *, continued: bool = False) -> None:
        """Mark this sub-agent's run as over. The run that the agent was called with cancels all its children."""
        self._finish(continued=continued)

    @property
    def text(self) -> str:
        """The text that this sub-agent has written so far."""
        return "".join(self._sink.texts)

    def checkpoint(self, state: Any) -> NoReturn:  # noqa: ANN401, ARG002 -- as in Run
        """Raise InvalidAgentOutput: a checkpoint is the state of the whole run, so only the agent itself makes one."""
        message = (
            f"run.checkpoint: the sub-agent {'/'.join(self.agent_path)!r} has no state of its own. Make checkpoints "
            "with the run that the agent was called with; only a sub-agent's run has an agent_path"
        )
        raise InvalidAgentOutput(message)

    def interrupt(self, kind: str, payload: Any = None, **options: Any) -> Any:  # noqa: ANN401 -- as in Run
        """Ask people for the whole run: its interrupts are numbered together."""
        return self._parent.interrupt(kind, payload, **options)

    def write_tool_call(self, name: str, *_: Any, **__: Any) -> ToolCallWriter:  # noqa: ANN401 -- as in Run
        """Raise InvalidAgentOutput: a call of a client's tool is a part of the answer, so only the agent writes it."""
        message = (
            f"run.write_tool_call: the sub-agent {'/'.join(self.agent_path)!r} cannot call the client's tool "
            f"{name!r:.80}: such a call is a part of the answer. Write it with the run that the agent was called with"
        )
        raise InvalidAgentOutput(message)


def _checked(name: object) -> str:
    if not (
        isinstance(name, str)
        and name.strip()
        and len(name) <= MAX_NAME_CHARS
        and _FORBIDDEN.isdisjoint(map(unicodedata.category, name))
    ):
        message = (
            f"run.child: the name {name!r:.100} is not valid: use a text of 1 to {MAX_NAME_CHARS} characters without "
            "control characters"
        )
        raise InvalidAgentOutput(message)
    return name


def _with_messages(request: ChatCompletionRequest, messages: str | Iterable[Any]) -> ChatCompletionRequest:
    """Return the request of a sub-agent. The client's tools and its format of the answer are not for the sub-agent."""
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    try:
        checked = [ChatMessage.model_validate(message) for message in given]
    except (ValidationError, TypeError) as exc:
        reason = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else str(exc)
        message = f"run.child: messages must be a text or a list of messages as in a request: {reason}"
        raise InvalidAgentOutput(message) from exc
    dropped = dict.fromkeys(("tools", "tool_choice", "parallel_tool_calls", "response_format"))
    present = {name: None for name in dropped if name in request.model_fields_set}
    return request.model_copy(update={"messages": checked, **present})
