"""The parts of a sub-agent's run: its path, its request, and the receiver of its events."""

import unicodedata
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from agentstream.agents.event_sink import EventSink
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


class SubAgentSink:
    """Sends the events of a sub-agent with its path. Its text and its reasoning become events, too."""

    def __init__(self, sink: EventSink, path: tuple[str, ...]) -> None:
        """``sink`` is that of the parent. ``texts`` collects the texts of the sub-agent."""
        self.whole_run: EventSink = sink.whole_run if isinstance(sink, SubAgentSink) else sink
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


def path_of_child(parent: tuple[str, ...], name: object) -> tuple[str, ...]:
    """Return the path of a child. Raises InvalidAgentOutput if the name is malformed, or the path is too long."""
    path = (*parent, mask(_checked(name)))
    if len(path) > MAX_DEPTH:
        message = f"run.child: {'/'.join(path)!r:.200} is {len(path)} sub-agents deep; the limit is {MAX_DEPTH}"
        raise InvalidAgentOutput(message)
    return path


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


def request_with(request: ChatCompletionRequest, messages: str | Iterable[Any]) -> ChatCompletionRequest:
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
