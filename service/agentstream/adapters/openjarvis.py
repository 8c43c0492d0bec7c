"""Runs an OpenJarvis agent.

In your own module::

    from agentstream.adapters.openjarvis import OpenJarvisAgent

    agent = OpenJarvisAgent(lambda bus: OrchestratorAgent(engine, "llama3.1", tools=[...], bus=bus))

Each run has its own bus and its own agent, so that concurrent runs never see each other's events. An OpenJarvis agent
returns its answer in one piece; the service streams it word by word.
"""

import inspect
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from agentstream.adapters.run_reporter import total, usage_of
from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.errors import CONTEXT_LENGTH, UPSTREAM_FAILED, AgentError, missing_extra, upstream_failure
from agentstream.protocol.events import NAMED_EVENTS
from agentstream.protocol.openai import ChatMessage, ImagePart, Usage
from agentstream.protocol.plain_json import json_bytes

try:
    from openjarvis.agents._stubs import AgentContext, BaseAgent
    from openjarvis.core.events import Event, EventBus, EventType
    from openjarvis.core.types import Conversation, Message, Role, ToolCall
    from openjarvis.engine._base import EngineConnectionError, EngineContextLengthError
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "openjarvis")) from exc

_ROLES = {"developer": Role.SYSTEM, **{role.value: role for role in Role}}


class OpenJarvisAgent:
    """An agent: ``agent(run)`` creates an OpenJarvis agent and calls its ``run(input, context)``, in a thread.

    For the client a cancelled run ends at once. The thread ends later, when OpenJarvis publishes its next event,
    because a request to a model server cannot be interrupted from another thread.
    """

    def __init__(self, make_agent: Callable[[EventBus], BaseAgent] | Callable[[EventBus, Run], BaseAgent]) -> None:
        """``make_agent`` creates an agent that publishes on the given bus; agents may share engines and tools.

        A function with a second parameter also gets the run, for example to read ``run.caller``.
        """
        self._make_agent: Callable[..., BaseAgent] = make_agent
        self._takes_run = _takes_two(make_agent)

    def __call__(self, run: Run) -> AgentResult:
        """Run an OpenJarvis agent and return its result.

        An error of the model server is raised as AgentError, with its status. Other exceptions of OpenJarvis are raised
        unchanged.

        The agent's input is the last user message; all other messages are its context.
        """
        bus = _RunBus(run)
        last = max((i for i, m in enumerate(run.request.messages) if m.role == "user"), default=None)
        others = [_message(message) for i, message in enumerate(run.request.messages) if i != last]
        question = "" if last is None else run.request.messages[last].text
        agent = self._make_agent(bus, run) if self._takes_run else self._make_agent(bus)
        try:
            answer = agent.run(question, AgentContext(conversation=Conversation(messages=others)))
        except EngineConnectionError as exc:
            raise _model_error(exc) from exc
        metadata = dict(answer.metadata or {})
        return AgentResult(
            content=answer.content,
            tool_results=[
                ToolResult(result.tool_name, result.content, result.success, result.latency_seconds)
                for result in answer.tool_results
            ],
            metadata=metadata if metadata.get("total_tokens") else total(bus.usages),
            finish_reason="length" if metadata.get("max_turns_exceeded") else "stop",
        )


def _model_error(exc: EngineConnectionError) -> AgentError:
    """Return the error of an engine with the failure code and the status for clients."""
    message = str(exc)
    answer = getattr(exc.__cause__, "response", None)  # of httpx, if the model server answered
    status = getattr(answer, "status_code", UPSTREAM_FAILED)
    known_code = CONTEXT_LENGTH if isinstance(exc, EngineContextLengthError) else None
    code, shown_status = upstream_failure(status, message, known_code)
    return AgentError(message, code=code, status=shown_status)


class _RunBus(EventBus):
    """The bus of one run. It emits the events that clients may see.

    It does not subscribe to the events: OpenJarvis ignores exceptions of subscribers, but RunCancelled must stop the
    agent.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self.usages: list[Usage | None] = []

    def publish(self, event_type: EventType, data: dict[str, Any] | None = None) -> Event:
        """Emit the event, then call the subscribers. Before a tool it waits until the tool's start is stored.

        Raises RunCancelled if the run is cancelled.
        """
        if event_type.value in NAMED_EVENTS:
            # The data may contain any Python objects. Those that cannot be JSON become text here.
            self._run.emit(event_type.value, orjson.loads(json_bytes(data or {}, unknown=str)))
        if event_type is EventType.INFERENCE_END:
            used = (data or {}).get("usage") or {}
            self.usages.append(usage_of(used.get("prompt_tokens"), used.get("completion_tokens")))
        return super().publish(event_type, data)


def _takes_two(function: Callable[..., object]) -> bool:
    """Return whether a function requires two arguments."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return True
    except ValueError:  # no signature
        return False
    return False


def _message(message: ChatMessage) -> Message:
    """Convert a message to OpenJarvis's form. Only images in data URLs are kept, because it takes no other."""
    parts = message.content if isinstance(message.content, list) else []
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return Message(
        role=_ROLES[message.role],
        content=message.text,
        name=message.name,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
        images=[url.partition(",")[2] for url in urls if urlsplit(url).scheme == "data"] or None,
    )
