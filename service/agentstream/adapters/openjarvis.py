"""An OpenJarvis agent as an agent of ours.

In a module of your own::

    from agentstream.adapters.openjarvis import OpenJarvisAgent

    agent = OpenJarvisAgent(lambda bus: OrchestratorAgent(engine, "llama3.1", tools=[...], bus=bus))

Every run has a bus and an agent of its own, so that concurrent runs never see each other's events. An OpenJarvis agent
returns its answer in one piece; it is replayed word by word.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from agentstream.adapters.run_reporter import total, usage_of
from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.errors import missing_extra
from agentstream.protocol.events import NAMED_EVENTS
from agentstream.protocol.openai import ChatMessage, ImagePart, Usage

try:
    from openjarvis.agents._stubs import AgentContext, BaseAgent
    from openjarvis.core.events import Event, EventBus, EventType
    from openjarvis.core.types import Conversation, Message, Role, ToolCall
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "openjarvis")) from exc

_ROLES = {"developer": Role.SYSTEM, **{role.value: role for role in Role}}


class OpenJarvisAgent:
    """An agent: ``agent(run)`` makes an OpenJarvis agent and calls its ``run(input, context)``, in a thread.

    A cancelled run ends at once for its client; the thread ends when OpenJarvis publishes its next event, for a call
    of a model cannot be broken off from outside.
    """

    def __init__(self, make_agent: Callable[[EventBus], BaseAgent]) -> None:
        """Take what makes an agent that publishes on the bus it is given; engines and tools may be shared."""
        self._make_agent = make_agent

    def __call__(self, run: Run) -> AgentResult:
        """Answer the request; whatever OpenJarvis raises ends the run.

        The last user message is its input, all others its context.
        """
        bus = _RunBus(run)
        asked = max((i for i, m in enumerate(run.request.messages) if m.role == "user"), default=None)
        before = [_message(message) for i, message in enumerate(run.request.messages) if i != asked]
        question = "" if asked is None else run.request.messages[asked].text
        answer = self._make_agent(bus).run(question, AgentContext(conversation=Conversation(messages=before)))
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


class _RunBus(EventBus):
    """A run's own bus; hands what clients may see on to the run.

    Not by subscribing: OpenJarvis swallows what a subscriber raises, and a cancelled run must stop its agent.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self.usages: list[Usage | None] = []

    def publish(self, event_type: EventType, data: dict[str, Any] | None = None) -> Event:
        """Emit, then tell the bus's subscribers. Raises RunCancelled; a tool waits until its start is stored."""
        if event_type.value in NAMED_EVENTS:
            # What is published is for Python: enums, paths, times.
            self._run.emit(event_type.value, json.loads(json.dumps(data or {}, default=str)))
        if event_type is EventType.INFERENCE_END:
            used = (data or {}).get("usage") or {}
            self.usages.append(usage_of(used.get("prompt_tokens"), used.get("completion_tokens")))
        return super().publish(event_type, data)


def _message(message: ChatMessage) -> Message:
    """Return a message in OpenJarvis's form; of images it takes those of data URLs."""
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
