"""The types that an agent's author uses: Run, AgentResult, ToolResult and ToolCallWriter.

New versions add to these types. They do not remove or change anything.
"""

import asyncio
import contextlib
import itertools
import secrets
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from agentstream.agents.caller import Caller
from agentstream.agents.checkpoint import Restored, StoredSoon, encode_state
from agentstream.agents.event_sink import EventSink
from agentstream.agents.interrupts import new_interrupt
from agentstream.agents.result import AgentResult, ToolResult, has_type, result_text
from agentstream.agents.sub_agents import SubAgentSink, path_of_child, request_with
from agentstream.agents.text_joiner import TextJoiner
from agentstream.agents.tool_calls import ToolCallWriter
from agentstream.agents.unseen_events import warn_if_unseen
from agentstream.errors import AgentStreamError, InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import REASONING, TEXT, TOOL_CALL_DELTA, check_agent_event
from agentstream.protocol.interrupts import APPROVAL, APPROVAL_SCHEMA
from agentstream.protocol.openai import ChatCompletionRequest, ChatMessage
from agentstream.telemetry.masking import mask_json

__all__ = ["Agent", "AgentResult", "ChildRun", "EventSink", "Run", "ToolResult"]


class Run:
    """One execution of an agent for one request; the agent's only argument.

    ``id`` is the completion id (``chatcmpl-...``). ``request`` is the validated request: ``request.messages``,
    ``request.model`` and the other fields of OpenAI's chat completions. ``request.extra`` holds unknown fields.
    ``caller`` describes the client that sent the request. ``restored`` holds what an earlier attempt at the run left;
    it is None in the first attempt, and for agents that are not ``resumable``. ``agent_path`` holds the names of the
    sub-agents down to this one (``child``); it is empty for the agent itself.

    Any thread may call ``emit``, ``write``, ``write_reasoning`` and ``write_tool_call``. They return without waiting
    for the broker. In a thread there are two exceptions: ``emit("tool_call_start", ...)`` waits until the event is
    stored, and every call waits, for up to 60 s, while more than 4 MiB of the run's events wait to be stored.
    """

    def __init__(
        self,
        run_id: str,
        request: ChatCompletionRequest,
        sink: EventSink,
        caller: Caller | None = None,
        put_text: Callable[[str], None] | None = None,
    ) -> None:
        """Create a run that sends its events to ``sink``. The answer's text goes to ``put_text`` if it is given."""
        self.agent_path: tuple[str, ...] = ()
        self.restored: Restored | None = None
        self.id = run_id
        self.request = request
        self.caller = caller or Caller()
        self._sink = sink
        self._put_text = put_text or partial(sink.put, TEXT)
        self._cancelled = False
        self._children: set[weakref.ref[Run]] = set()  # of all depths; the children share it
        self._joiner = TextJoiner()
        self._halves = self._joiner.halves
        self._call_numbers = itertools.count()  # gives each number once, also to concurrent threads
        self._interrupt_numbers = itertools.count(1)

    def restore(self, restored: Restored | None, calls: int, interrupts: int = 0) -> None:
        """Continue an earlier attempt. Only the worker calls this.

        ``calls`` is the number of calls of the client's tools so far, and ``interrupts`` that of interrupts up to the
        last checkpoint.
        """
        self.restored = restored
        self._call_numbers = itertools.count(calls)
        self._interrupt_numbers = itertools.count(interrupts + 1)
        for call in restored.tool_calls if restored else ():
            call.bind(self._write_tool_call_delta)

    @property
    def cancelled(self) -> bool:
        """Whether this attempt is over: by a cancel, the time limit, the worker's stop or the loss of its lease.

        An async agent does not need it, because its task is cancelled. A threaded agent checks it in long loops that
        emit and write nothing. Any thread may read it.
        """
        return self._cancelled

    def cancel(self, *, continued: bool = False) -> None:
        """Mark the run as cancelled: from now on its methods raise RunCancelled. Only the worker calls this.

        ``continued`` says that another attempt continues it: then half a character at the end of a text is not sent.
        """
        self._finish(continued=continued)
        for child in tuple(self._children):
            if (run := child()) is not None:
                run.cancel(continued=continued)

    def _finish(self, *, continued: bool) -> None:
        for channel, text in () if continued else self._joiner.rest():
            with contextlib.suppress(AgentStreamError):  # the run may be over already
                is_call = isinstance(channel, int)
                self._sink.put(
                    TOOL_CALL_DELTA if is_call else str(channel),
                    {"index": channel, "arguments": text} if is_call else text,
                )
        self._cancelled = True

    def emit(self, type: str, data: dict[str, Any]) -> None:  # noqa: A002 -- the published name
        """Publish an event. Any thread may call it.

        ``type`` is a letter, then up to 63 letters, digits or ``_ . : -``. All clients receive the types
        ``agent_turn_start``, ``inference_start``, ``inference_end``, ``tool_call_start`` and ``tool_call_end``. Other
        types are your own: a client receives those that it asks for (``X-Agent-Event-Types``). A line in the log says
        so once per type. ``data`` is an object that can be written as JSON, up to 1 MiB; known secrets in it are
        masked. In the two events of a tool call it has the name of the ``tool``.

        After a ``tool_call_start`` no other attempt runs this agent again, unless it is ``resumable``, so that no tool
        runs twice. In a thread the call returns when that event is stored; on the event loop, await ``drain`` before
        you run the tool.

        Raises RunCancelled if the run is cancelled or this attempt is over. Raises InvalidAgentOutput if the type is
        malformed or reserved, or if ``data`` is no dict, names no tool, cannot be written as JSON or is too large.
        Raises BufferFull if too many events wait to be stored: more than 16 MiB on the event loop, or more than 4 MiB
        for 60 s in a thread.
        """
        self._raise_if_cancelled()
        check_agent_event(type, data)
        warn_if_unseen(type)
        self._sink.put(type, mask_json(data))

    def write(self, text: str) -> None:
        """Stream the next piece of the answer's text. Any thread may call it.

        An empty text sends nothing. A piece has at most 1 MiB as JSON. If a character was cut in two between two
        pieces, it is sent whole with the second. After the first piece no other attempt runs this agent again, unless
        it is ``resumable``, so that no text is shown twice.

        Raises RunCancelled if the run is cancelled or this attempt is over. Raises InvalidAgentOutput if ``text`` is
        no str or is too large, and BufferFull as ``emit`` does.
        """
        if self._cancelled or text.__class__ is not str:  # this runs for each token
            text = self._plain("run.write", text)
        if self._halves or not text.isascii():
            text = self._joiner.join(TEXT, text)
        if text:
            self._put_text(text)

    def write_reasoning(self, text: str) -> None:
        """Stream the next piece of the model's reasoning, which is no part of the answer. Any thread may call it.

        Clients receive it as ``reasoning_content``. Raises the same errors as ``write``.
        """
        if self._cancelled or text.__class__ is not str:
            text = self._plain("run.write_reasoning", text)
        if self._halves or not text.isascii():
            text = self._joiner.join(REASONING, text)
        if text:
            self._sink.put(REASONING, text)

    def write_tool_call(
        self,
        name: str,
        arguments: str | dict[str, Any] = "",
        *,
        id: str | None = None,  # noqa: A002 -- the wire's name
    ) -> ToolCallWriter:
        """Send the client a call of one of its own tools (``run.request.tools``). Any thread may call it.

        ``arguments`` is the complete object as a dict, or the beginning of its JSON text as a str; then write the rest
        with the ``write`` method of the returned ToolCallWriter. Without ``id`` the call gets a random id.

        The client runs the tool after the run has ended. It sends the result as a ``tool`` message in its next request.

        Raises the same errors as ``write``, and InvalidAgentOutput if ``name`` is empty or no str, or if ``arguments``
        is a dict that cannot be written as JSON.
        """
        self._raise_if_cancelled()
        if not (has_type(name, str) and name and has_type(arguments, str, dict) and has_type(id, str, type(None))):
            message = (
                "run.write_tool_call takes a name that is not empty, arguments as str or dict, and an id as str or "
                f"None; got {name!r:.120}, {type(arguments).__name__} and {id!r:.120}"
            )
            raise InvalidAgentOutput(message)
        text = result_text(arguments, "run.write_tool_call: the arguments")
        call_id = id or f"call_{secrets.token_hex(12)}"
        call = ToolCallWriter(self._write_tool_call_delta, next(self._call_numbers), call_id)
        self._write_tool_call_delta({"index": call.index, "id": call_id, "name": name, "arguments": text})
        return call

    def _write_tool_call_delta(self, piece: dict[str, Any]) -> None:
        self._raise_if_cancelled()
        arguments = piece["arguments"]
        if self._halves or not arguments.isascii():
            piece["arguments"] = self._joiner.join(piece["index"], arguments)
        if piece["arguments"] or "name" in piece:
            self._sink.put(TOOL_CALL_DELTA, piece)

    def child(self, name: str, messages: str | Iterable[Any] | None = None) -> "ChildRun":
        """Return a run for a sub-agent: an agent, or a part of one, that works for this one. Any thread may call it.

        Every event that the sub-agent emits carries the path of its names in the field ``agent_path``, for example
        ``["researcher", "summariser"]`` for a child of a child. Its tools are the run's tools. Its text and reasoning
        are not part of the answer: clients that ask for the types ``agent_text`` and ``agent_reasoning`` receive them
        as events. The text is also in ``child.text``, so that you can pass it on: ``run.write(child.text)``.

        ``messages`` is the sub-agent's request: a text, or a list of messages. Without it, the request is that of the
        client. With ``messages``, any agent can be a sub-agent: ``await researcher(run.child("researcher", "..."))``.

        A child makes no checkpoints, and calls no tools of the client.

        Raises InvalidAgentOutput if ``name`` is empty, has more than 64 characters or control characters, if the
        sub-agent is more than 8 levels deep, or if ``messages`` are malformed.
        """
        return ChildRun(self, name, messages, self._sink, self._children)

    def checkpoint(self, state: Any) -> Awaitable[None]:  # noqa: ANN401 -- JSON
        """Store the state from which another attempt can continue, together with all events so far. Await the result.

        If the worker is lost or stopped later, another worker calls the agent again, if the agent is ``resumable``. It
        finds ``state`` in ``run.restored``, beside everything that was sent after this checkpoint. ``state`` is JSON of
        up to 1 MiB; known secrets in it are masked. Each checkpoint replaces the one before.

        On the event loop, the awaited call returns when the checkpoint is stored. In a thread the call itself waits for
        that; there is nothing to await. It takes one round trip to the broker.

        Raises RunCancelled if the run is cancelled or this attempt is over: a newer attempt does not see the state.
        Raises InvalidAgentOutput if ``state`` is not JSON or is too large, and BufferFull as ``emit`` does.
        """
        self._raise_if_cancelled()
        return StoredSoon(None if self._sink.put_checkpoint(encode_state(state)) else self._sink)

    def interrupt(
        self,
        kind: str,
        payload: Any = None,  # noqa: ANN401 -- JSON
        *,
        id: str | None = None,  # noqa: A002 -- the wire's name
        timeout_s: float | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 -- JSON
        """Ask people, and return the answer. On the event loop await the result; in a thread the call itself waits.

        ``kind`` names the form of the question; ``approval`` asks whether a tool may run, with a payload of ``tool``
        and ``arguments``, and is answered with ``{"approve": bool, "reason": str}``. ``payload`` is JSON for the
        people who answer. ``schema`` describes the answer: a flat object, as in MCP's elicitation; without it every
        JSON value is an answer. ``timeout_s`` is AGENTSTREAM_INTERRUPT_TIMEOUT_S by default (24 hours).

        The run of a resumable agent is parked while it waits: its streams end with the status ``requires_action``,
        and it holds no worker. When all its open interrupts are answered, the agent is called again from its last
        checkpoint. It asks again, and the same call returns the answer at once. The call is known by its ``id``;
        without it, by its kind and its number in the run, so an agent must ask in the same order each time. An agent
        that is not resumable waits in its worker, at most until the run's time limit.

        Raises InterruptTimeout if nobody answers in time, RunCancelled if this attempt is over, and InvalidAgentOutput
        if the kind, id, payload or schema is malformed or too large.
        """
        self._raise_if_cancelled()
        number = next(self._interrupt_numbers)
        interrupt_id = f"{kind}-{number}" if id is None else id
        schema = APPROVAL_SCHEMA if schema is None and kind == APPROVAL else schema
        asked = new_interrupt(interrupt_id, kind, payload, schema, timeout_s)
        answer = self._sink.ask(asked)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return answer.result()
        return asyncio.wrap_future(answer)

    def inputs(self) -> Any:  # noqa: ANN401 -- a list, or an awaitable of it
        """Return the messages that clients have sent to this run since the last call, oldest first; often none.

        On the event loop await the result; in a thread the call itself returns it. The messages are ChatMessage
        objects. An event (``input_applied``) shows all readers at which place the agent took them. Only an agent with
        ``takes_inputs = True`` gets messages.

        An attempt that continues another one gets the messages again that were taken after the last checkpoint: they
        are not in its state. Raises RunCancelled if this attempt is over.
        """
        self._raise_if_cancelled()
        taken = [ChatMessage.model_validate(message) for message in self._sink.take_inputs()]
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return taken
        return self._after_room(taken)

    async def _after_room(self, taken: list[ChatMessage]) -> list[ChatMessage]:
        if taken:
            await self._sink.wait_for_room()
        return taken

    async def drain(self) -> None:
        """Wait until every ``tool_call_start`` is stored and at most 4 MiB of the run's events wait to be stored.

        Only async agents can call it, on the event loop. An agent that writes a lot awaits it between writes. An agent
        with tools awaits it between ``emit("tool_call_start", ...)`` and the tool, so that no later attempt runs the
        tool again. A threaded agent does not need it, because in a thread ``emit`` and ``write`` wait.

        Raises RunCancelled if this attempt is over before a ``tool_call_start`` could be stored.
        """
        await self._sink.wait_for_room()

    def _plain(self, method: str, text: object) -> str:
        """Return the text as a plain str: the publisher must not rely on the methods of a subclass."""
        self._raise_if_cancelled()
        if not isinstance(text, str):
            message = f"{method} takes a str, got {type(text).__name__}"
            raise InvalidAgentOutput(message)
        return str.__str__(text)

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            message = f"run {self.id} was cancelled"
            raise RunCancelled(message)


class ChildRun(Run):
    """The run of a sub-agent, from ``Run.child``. It is over when the whole run is over.

    ``id``, ``caller``, ``cancelled`` and ``drain`` are those of the whole run. ``restored`` is None.
    """

    _sink: SubAgentSink

    def __init__(
        self,
        parent: Run,
        name: str,
        messages: str | Iterable[Any] | None,
        sink: EventSink,
        children: "set[weakref.ref[Run]]",
    ) -> None:
        """Create the run of a sub-agent of ``parent``, and add it to the ``children`` of the whole run."""
        path = path_of_child(parent.agent_path, name)
        request = parent.request if messages is None else request_with(parent.request, messages)
        super().__init__(parent.id, request, SubAgentSink(sink, path), parent.caller)
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


Agent = Callable[[Run], Awaitable[AgentResult]] | Callable[[Run], AgentResult]
