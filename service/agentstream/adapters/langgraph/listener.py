"""Receives LangChain's callbacks of a graph's models and tools, and writes the answer."""

import asyncio
import logging
from typing import Any, Final

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, ToolMessage, convert_to_messages
from langchain_core.outputs import LLMResult
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphInterrupt
from langgraph.graph.message import add_messages
from langgraph.prebuilt.tool_node import ToolInvocationError
from langgraph.pregel import Pregel

from agentstream.adapters.langgraph.continuing import namespace_of
from agentstream.adapters.langgraph.progress import NAMESPACE_SEPARATOR, Progress, call_mark
from agentstream.adapters.resuming import UNKNOWN_OUTCOME, may_run_again
from agentstream.adapters.run_reporter import RunReporter, usage_of
from agentstream.adapters.sub_agents import custom_event
from agentstream.agents import Run

log = logging.getLogger(__name__)

MESSAGES: Final = "messages"
_NO_MODEL: Final = ("", False, "")
_TYPE: Final = "type"  # the field that names the type of a custom event
_ASSISTANT: Final = frozenset({"ai", "assistant", "AIMessage", "AIMessageChunk"})


def as_answer(value: object) -> AIMessage | None:
    """Return a message of the assistant in any form that LangChain accepts: an object, a dict or a pair; else None."""
    if isinstance(value, AIMessage):
        return value
    if not _is_answer(value):
        return None
    (message,) = convert_to_messages([value])  # type: ignore[list-item]  # a dict, tuple or list
    return message if isinstance(message, AIMessage) else None


def message_channels(graph: Pregel[Any, Any, Any, Any]) -> frozenset[str]:
    """Return the names of the channels of a graph that hold messages."""
    operators = {name: getattr(channel, "operator", None) for name, channel in graph.channels.items()}
    adding = (name for name, operator in operators.items() if getattr(operator, "func", operator) is add_messages)
    return frozenset({MESSAGES, *adding})


def _is_answer(value: object) -> bool:
    """Return whether a dict, or a pair of a role and a content, is a message of the assistant."""
    if isinstance(value, dict):
        return "content" in value and (value.get("role") or value.get("type")) in _ASSISTANT
    return (
        isinstance(value, list | tuple)
        and len(value) == 2  # noqa: PLR2004 -- role and content
        and isinstance(value[0], str)
        and value[0] in _ASSISTANT
        and isinstance(value[1], str | list)
    )


def sub_graphs_of(namespace: str) -> tuple[str, ...]:
    """Return the path of the sub-graph that a task belongs to: the names of the nodes that hold the sub-graphs.

    A namespace has the form ``node:task|node:task``, with a number between them if a node runs several graphs.
    """
    *outer, _ = namespace.split(NAMESPACE_SEPARATOR)
    return tuple(part.partition(":")[0] for part in outer if not part.isdigit())


class InterruptedToolError(ToolInvocationError):
    """A tool that an earlier attempt began is not run again. A ToolNode gives the model this message as the result."""

    def __init__(self, tool: str, result: str) -> None:
        """Set the message to the result of the earlier attempt, or to a text that says that there is none."""
        self.tool_name = tool
        self.message = result

    def __str__(self) -> str:
        """Return the reason for the log and the client: nothing has caught the error."""
        return (
            f"the worker was lost during a node that had called the tool {self.tool_name!r}, and a repeated node must "
            "not call it again. If the tool may run twice, set metadata={'idempotent': True} on it"
        )


def call_of(serialized: Any, input_str: str, about: dict[str, Any]) -> tuple[str, object, str]:  # noqa: ANN401 -- LangChain's
    """Return the name and the arguments of a tool that starts, and the mark of the call."""
    name = str((serialized or {}).get("name") or about.get("name") or "")
    inputs = about.get("inputs")
    arguments = input_str if inputs is None else inputs
    return name, arguments, str(about.get("tool_call_id") or call_mark(name, arguments))


class ToolGuard(BaseCallbackHandler):
    """Stops a tool that an earlier attempt began, unless it may run again.

    It is not async, because LangChain ignores the exceptions of async callbacks of tools that are not async.
    """

    raise_error = True
    run_inline = True

    def __init__(self, reporter: RunReporter, progress: Progress) -> None:
        """``progress`` has the calls that earlier attempts began."""
        self._reporter = reporter
        self._progress = progress

    def on_tool_start(self, serialized: Any, input_str: str, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Raise InterruptedToolError for such a call, after its end was reported."""
        name, arguments, mark = call_of(serialized, input_str, about)
        call_id = self._progress.begun.get(mark)
        if call_id is None or mark in self._progress.repeatable or may_run_again(about.get("metadata")):
            return
        result = self._reporter.ended.get(call_id, UNKNOWN_OUTCOME)
        path = sub_graphs_of(namespace_of(about.get("metadata")))
        self._reporter.tool_start(mark, name, arguments, call_id, is_repeated=True, path=path)
        self._reporter.tool_end(mark, result, success=False)
        raise InterruptedToolError(name, result)


class Listener(AsyncCallbackHandler):
    """Receives LangChain's callbacks of the graph's models and tools."""

    raise_error = True  # otherwise LangChain only logs exceptions of callbacks, also RunCancelled, and continues
    run_inline = True  # so that a tool waits until its start is stored

    def __init__(self, run: Run, reporter: RunReporter, channels: frozenset[str], progress: Progress) -> None:
        """``channels`` are the names of the channels that hold messages."""
        self._run = run
        self._progress = progress
        self._channels = channels
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        # LangChain's run id -> (the model's name, whether its text is part of the answer, its task)
        self._models: dict[Any, tuple[str, bool, str]] = {}
        self._streamed: set[Any] = set()  # LangChain's run ids whose text was streamed
        # Nodes return messages of other nodes, some with new ids.
        progress.know(message.text for message in run.request.messages if message.role == "assistant")

    # -- models -------------------------------------------------------------------------------------

    async def on_chat_model_start(self, *_: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the start of an inference."""
        metadata = about.get("metadata") or {}
        model = str(metadata.get("ls_model_name") or about.get("name") or "")
        is_shown = TAG_NOSTREAM not in (about.get("tags") or ())
        self._models[about["run_id"]] = (model, is_shown, namespace_of(metadata))
        self._reporter.inference_start(
            model, str(metadata.get("ls_provider") or "langgraph"), sub_graphs_of(namespace_of(metadata))
        )

    on_llm_start = on_chat_model_start  # for text completion models

    async def on_llm_new_token(self, token: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Write a piece of a model's text."""
        message = getattr(about.get("chunk"), "message", None)
        text = str(message.text if message is not None else token)
        run_id = about["run_id"]
        _, is_shown, task = self._models.get(run_id, _NO_MODEL)
        if text and is_shown:
            self._streamed.add(run_id)
            self._run.write(self._progress.unseen_of(task, text))
            await self._drain()

    async def on_llm_end(self, response: LLMResult, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the end of an inference. Write the text of a model that does not stream."""
        run_id = about["run_id"]
        model, is_shown, task = self._models.pop(run_id, _NO_MODEL)
        answer = response.generations[0][0] if response.generations and response.generations[0] else None
        message = getattr(answer, "message", None)
        if is_shown and answer is not None:
            text = str(message.text) if message is not None else answer.text
            if run_id not in self._streamed:
                self._run.write(self._progress.unseen_of(task, text))
            self._progress.know((text, getattr(message, "id", None)))
        self._streamed.discard(run_id)
        counted = getattr(message, "usage_metadata", None) or {}
        reason = getattr(message, "response_metadata", {}).get("finish_reason")
        usage = usage_of(counted.get("input_tokens"), counted.get("output_tokens"))
        self._reporter.inference_end(model, usage, reason if isinstance(reason, str) else None, sub_graphs_of(task))

    # -- tools --------------------------------------------------------------------------------------

    async def on_tool_start(self, serialized: Any, input_str: str, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the start of a tool. The tool runs after this returns."""
        name, arguments, mark = call_of(serialized, input_str, about)
        task, run_id = namespace_of(about.get("metadata")), about["run_id"]
        earlier = self._progress.begun.pop(mark, None)
        call_id = earlier or str(about.get("tool_call_id") or run_id)
        self._progress.calls.setdefault(task, {})[mark] = call_id
        is_repeated = earlier is not None
        self._reporter.tool_start(run_id, name, arguments, call_id, is_repeated=is_repeated, path=sub_graphs_of(task))
        await self._drain()

    async def on_tool_end(self, output: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the result of a tool."""
        if isinstance(output, ToolMessage):
            self._reporter.tool_end(about["run_id"], str(output.text), success=output.status != "error")
        else:
            self._reporter.tool_end(about["run_id"], output, success=True)

    async def on_tool_error(self, error: BaseException, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the failure of a tool, or that it waits for people."""
        if isinstance(error, GraphInterrupt):
            self._reporter.suspend(about["run_id"])
            return
        self._reporter.tool_end(about["run_id"], f"{type(error).__name__}: {error}", success=False)

    # -- events of the user's own -------------------------------------------------------------------

    async def on_custom_event(self, name: str, data: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Emit an event that a node sent with ``dispatch_custom_event``."""
        path = sub_graphs_of(namespace_of(about.get("metadata")))
        self._reporter.custom(*custom_event(name, data), path)
        await self._drain()

    def custom(self, value: object) -> None:
        """Emit a value that a node wrote with the stream writer. The type is the field ``type`` of the value."""
        name = value.get(_TYPE) if isinstance(value, dict) else None
        rest = {key: each for key, each in value.items() if key != _TYPE} if isinstance(value, dict) else value
        self._reporter.custom(*custom_event(name, rest), ())

    # -- nodes --------------------------------------------------------------------------------------

    def write_final(self, final: object) -> None:
        """Write the text of the graph's last message, or its value if it is a text. Nothing was written before."""
        texts = [final] if isinstance(final, str) else []
        values = [final.get(name) for name in self._channels] if isinstance(final, dict) else [final]
        for value in values:
            message = as_answer(value[-1] if isinstance(value, list) and value else value)
            texts += [str(message.text)] if message is not None else []
        if text := "".join(texts):
            self._run.write(text)
        else:
            log.warning(
                "the graph ended without text: return a message of the assistant in `messages`, "
                "for example AIMessage('hi') or ('assistant', 'hi')"
            )

    def know(self, values: object) -> None:
        """Note the messages of a graph's input or state. They are not written."""
        for message in self._messages_in(values):
            self._progress.know((message.id or str(message.text),))  # a new message may have the same text

    def write_missed(self, values: object) -> None:
        """Write the messages of a graph's state that clients have not seen because their worker was lost."""
        for message in self._messages_in(values):
            text = str(message.text)
            if self._progress.knows(message.id):
                continue
            if text and self._progress.was_shown(text):
                self._progress.know((text, message.id))  # also if an earlier message had the same text
            self._write_message(message)

    def _messages_in(self, values: object) -> list[AIMessage]:
        named = values if isinstance(values, dict) else {}
        found = [named.get(name) for name in self._channels]
        members = [member for value in found if isinstance(value, list | tuple) for member in value]
        return [message for member in members if (message := as_answer(member)) is not None]

    def step_ended(self, step: dict[str, Any]) -> None:
        """Write the messages that nodes created without a model."""
        for update in step.values():
            named = update if isinstance(update, dict) and not _is_answer(update) else {MESSAGES: update}
            for name, value in named.items():
                members = value if isinstance(value, list | tuple) and not _is_answer(value) else [value]
                for member in members:
                    # A pair of texts is a message only where the graph keeps messages.
                    if name in self._channels or not isinstance(member, list | tuple):
                        self._write_message(as_answer(member))

    def _write_message(self, message: AIMessage | None) -> None:
        text = "" if message is None else str(message.text)
        if message is None or not text:
            return
        known = self._progress.knows(text, message.id)
        self._progress.know((text, message.id))
        if not known and not self._progress.was_shown(text):
            self._progress.wrote = True
            self._run.write(text)

    async def _drain(self) -> None:
        """Wait for room. The callbacks of a node that is not async run in another thread, where ``emit`` waits."""
        if asyncio.get_running_loop() is self._loop:
            await self._run.drain()
