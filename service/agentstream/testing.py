"""Runs an agent in a test, without Redis and without other processes.

In a plain test::

    from agentstream.testing import run_agent

    def test_greeting():
        assert run_agent(my_agent, "hi").text == "Hello!"

In an async test: ``outcome = await run_agent_async(my_agent, "hi")``.

A worker's own code calls the agent. So every shape of agent works, a wrong result or event is refused as in a worker,
and the text is the text that a client gets.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson

from agentstream.agents import Agent, AgentResult, Caller, EmittedEvent
from agentstream.agents.lifespan import ManagedAgent, is_context_manager
from agentstream.agents.shapes import as_agent, takes_nothing
from agentstream.errors import RUN_TIMEOUT, AgentError
from agentstream.protocol.events import RESERVED_EVENTS, RUN_CHECKPOINT, TEXT, Event, encode_event
from agentstream.protocol.jobs import Job, new_request_id, new_run_id
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.store.queue import Claim
from agentstream.stream.transcript import AnswerFold
from agentstream.worker.execution import CLEANUP_TIMEOUT_S, Execution

TIMEOUT_S: Final = 60.0

__all__ = ["AgentOutcome", "Caller", "EmittedEvent", "ToolCall", "run_agent", "run_agent_async"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the client's tools. ``arguments`` is JSON text, as the agent wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """The outcome of a run of an agent.

    ``text`` is the answer: what the agent wrote, or else the ``content`` of its result. ``pieces`` are the texts that
    the agent wrote or yielded, one by one. ``reasoning`` is the model's reasoning. ``events`` are the events that the
    agent emitted, in order; they include those that no client sees. ``tool_calls`` are its calls of the client's tools.
    ``result`` is the AgentResult. ``finish_reason`` and ``usage`` are those that a client gets.
    """

    text: str
    pieces: list[str]
    reasoning: str
    events: list[EmittedEvent]
    tool_calls: list[ToolCall]
    result: AgentResult
    finish_reason: str
    usage: Usage

    def events_of(self, type: str) -> list[dict[str, Any]]:  # noqa: A002 -- as in ``Run.emit``
        """Return the data of the events of one type, for example ``tool_call_start``."""
        return [event.data for event in self.events if event.type == type]


def run_agent(
    agent: object,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    caller: Caller | None = None,
    timeout_s: float = TIMEOUT_S,
    **request: Any,  # noqa: ANN401 -- JSON
) -> AgentOutcome:
    """Run an agent in a new event loop, and return its outcome. For async tests see ``run_agent_async``.

    ``agent`` may be everything that a worker accepts: a function, a generator, an object, or an async context manager,
    which is entered before the run and left after it. ``messages`` is the text of the user, or a list of messages in
    OpenAI's form. ``request`` has more fields of the request, for example ``tools``. ``caller`` becomes ``run.caller``.

    Raises the exception of the agent unchanged, InvalidAgentOutput for a wrong result or event, TypeError if the object
    cannot be an agent, and TimeoutError after ``timeout_s``. Raises RuntimeError on a running event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run_agent_async(agent, messages, caller=caller, timeout_s=timeout_s, **request))
    message = "run_agent was called on a running event loop; in an async test write `await run_agent_async(...)`"
    raise RuntimeError(message)


async def run_agent_async(
    agent: object,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    caller: Caller | None = None,
    timeout_s: float = TIMEOUT_S,
    **request: Any,  # noqa: ANN401 -- JSON
) -> AgentOutcome:
    """Run an agent on this event loop, and return its outcome; see ``run_agent``. A cancel cancels the agent."""
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(each) for each in messages]
    chat = ChatCompletionRequest.model_validate({"model": "test", "messages": given, **request})
    async with _started(agent, timeout_s) as called:
        return await _Recording(called, _job(chat, caller)).outcome(timeout_s)


@contextlib.asynccontextmanager
async def _started(agent: object, timeout_s: float) -> Any:  # noqa: ANN401 -- contextlib's
    """Yield the agent. If it must be started, enter its context manager and leave it afterwards."""
    if not (is_context_manager(agent) or takes_nothing(agent)):
        try:
            called = as_agent(agent)
        except TypeError as exc:
            message = f"the agent {exc}"
            raise TypeError(message) from exc
        yield called
        return
    managed = ManagedAgent("the agent", agent)
    async with asyncio.timeout(timeout_s):
        await managed.enter()
    try:
        yield managed.agent
    finally:
        async with asyncio.timeout(timeout_s):
            await managed.leave()


def _job(chat: ChatCompletionRequest, caller: Caller | None) -> Job:
    now = time.time()
    return Job(
        run_id=new_run_id(),
        request=chat.model_dump(mode="json", exclude_unset=True),
        created=int(now),
        start_by=now,
        request_id=caller.request_id if caller and caller.request_id else new_request_id(),
        owner=caller.key_hash if caller else "",
        headers=dict(caller.headers) if caller else {},
    )


class _Recording(Execution):
    """An execution that keeps the events in memory."""

    def __init__(self, agent: Agent, job: Job) -> None:
        super().__init__(lambda _model: agent, Claim("", job, 0.0), lambda _success: None)
        self._lock = threading.Lock()
        self._facts: list[tuple[str, Any]] = []

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Record an event as it would be sent. Any thread may call it. Raises InvalidAgentOutput like a worker."""
        item = orjson.loads(encode_event(event_type, data))
        with self._lock:
            self._facts.append((event_type, item if event_type == TEXT else item[1]))
            self.tally.record(event_type, data)

    def put_checkpoint(self, state: bytes) -> bool:
        """Record a checkpoint. Any thread may call it."""
        with self._lock:
            self._facts.append((RUN_CHECKPOINT, orjson.loads(state)))
        return True

    async def wait_for_room(self) -> None:
        """Let other tasks run, as in a worker: an agent that never waits could not reach its time limit."""
        await asyncio.sleep(0)

    async def outcome(self, timeout_s: float) -> AgentOutcome:
        """Run the agent and return its outcome. Raises its exception."""
        try:
            terminal = await self.run_agent(timeout_s)
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                    await self.wait_until_finished()
            raise
        if self.failure is not None:
            raise self.failure
        event_type, data = cast("tuple[str, dict[str, Any]]", terminal)
        if self.result is None:
            raise (TimeoutError if data["code"] == RUN_TIMEOUT else AgentError)(data["message"])
        fold = AnswerFold()
        for seq, fact in enumerate([*self._facts, (event_type, data)], 1):
            fold.receive(Event(1, seq, *fact))
        calls = [ToolCall(call["id"], **call["function"]) for call in fold.tool_calls]
        return AgentOutcome(
            text=fold.content,
            pieces=[text for kind, text in self._facts if kind == TEXT],
            reasoning=fold.reasoning,
            events=[EmittedEvent(*fact) for fact in self._facts if fact[0] not in RESERVED_EVENTS],
            tool_calls=calls,
            result=self.result,
            finish_reason=data["finish_reason"],
            usage=Usage.model_validate(data["usage"]),
        )
