"""Runs a LangGraph graph as an agent.

In your own module::

    from agentstream.adapters.langgraph import LangGraphAgent

    agent = LangGraphAgent(graph)  # AGENTSTREAM_AGENT=my_module:agent

The input of the graph is ``{"messages": [...]}``. The answer is the streamed text of all chat models in the graph,
except models with the tag "nostream". A message that a node creates without a model is written after the node has
ended; it may also be a dict or a tuple, such as ``("assistant", "hi")``. The usage is known only if the models report
it: ``ChatOpenAI(stream_usage=True)``. Options may depend on the run, for example the thread of a checkpointer::

    agent = LangGraphAgent(graph, thread_id=lambda run: run.caller.headers["X-Conversation"])
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from agentstream.adapters.per_run import options_for, since_last_answer, value_for
from agentstream.adapters.run_reporter import RunReporter, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError, missing_extra
from agentstream.protocol.openai import ChatCompletionRequest

try:
    from langchain_core.callbacks import AsyncCallbackHandler
    from langchain_core.messages import AIMessage, ToolMessage, convert_to_messages
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables.config import RunnableConfig, merge_configs
    from langgraph.constants import TAG_NOSTREAM
    from langgraph.graph.message import add_messages
    from langgraph.pregel import Pregel
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "langgraph")) from exc

log = logging.getLogger(__name__)

# With the mode "messages" LangGraph asks models for streams. The callbacks below receive the pieces, in order with
# tool calls, so the items of this mode are not used.
_STREAM_MODES = ["updates", "messages", "values"]
MESSAGES: Final = "messages"
_ASSISTANT: Final = frozenset({"ai", "assistant", "AIMessage", "AIMessageChunk"})


def conversation(request: ChatCompletionRequest) -> dict[str, Any]:
    """Return the input of a graph with a ``messages`` channel. LangChain accepts messages in OpenAI's form."""
    return {"messages": [message.model_dump(exclude_none=True) for message in request.messages]}


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


class LangGraphAgent:
    """An agent: ``await agent(run)`` runs the graph once.

    One instance serves any number of concurrent runs. By default the ``thread_id`` for a checkpointer is the run's id,
    so each run is a new LangGraph thread. The earlier conversation comes with each request.

    With your own ``thread_id`` a checkpointer remembers the conversation. Once the thread has messages, only the
    messages after the last answer of the request are added to it. Two runs of one thread at the same time are not
    kept apart.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        make_input: Callable[[ChatCompletionRequest], Any] = conversation,
        *,
        config: Any = None,  # noqa: ANN401 -- a RunnableConfig, or a function of the run
        thread_id: str | Callable[[Run], str] | Callable[[Run], Awaitable[str]] | None = None,
        **options: Any,  # noqa: ANN401 -- LangGraph's own
    ) -> None:
        """Create an agent from a compiled graph.

        ``make_input`` converts a request to the graph's input; set it if the graph's state has no ``messages``.
        ``config`` is a RunnableConfig. ``options``, for example ``context``, are passed to ``graph.astream``.
        ``config``, ``thread_id`` and each option may be functions of the run, which may be async.
        """
        self._graph = graph
        self._channels = message_channels(graph)
        self._make_input = make_input
        self._config = config
        self._thread_id = thread_id
        self._options = options

    async def __call__(self, run: Run) -> AgentResult:
        """Run the graph and return the result. Exceptions of the graph are raised unchanged.

        Raises AgentError if the graph interrupts to ask a person. A graph that ends without any text gives an empty
        answer, and a warning in the log.
        """
        reporter = RunReporter(run, self._graph.get_name())
        reporter.turn_start()
        listener = _Listener(run, reporter, self._channels)
        config = await self._config_for(run)
        given = await self._input_for(run, config)
        options = await options_for(self._options, self._options, run)
        graph: Any = self._graph  # the types of astream do not show that it yields (mode, step) here
        steps = graph.astream(
            given, merge_configs(config, {"callbacks": [listener]}), stream_mode=_STREAM_MODES, **options
        )
        final: object = None
        async with aclosing(steps):
            async for mode, step in steps:
                if mode == "updates":
                    listener.step_ended(step)
                elif mode == "values":
                    final = step
                await run.drain()
        if not listener.wrote:
            listener.write_final(final)
        return reporter.result()

    async def _config_for(self, run: Run) -> RunnableConfig:
        """Return the config of a run.

        Its thread id is ``thread_id`` if given, otherwise that of ``config``, otherwise the run id.
        """
        config = merge_configs({"configurable": {"thread_id": run.id}}, await value_for(self._config, run))
        if self._thread_id is not None:
            config["configurable"]["thread_id"] = str(await value_for(self._thread_id, run))
        return config

    async def _input_for(self, run: Run, config: RunnableConfig) -> object:
        """Return the input of a run. A thread that remembers the conversation gets only its new messages."""
        own_thread = config["configurable"]["thread_id"] != run.id
        if self._make_input is conversation and own_thread and self._graph.checkpointer:
            state = await self._graph.aget_state(config)
            if isinstance(state.values, dict) and state.values.get("messages"):
                new = since_last_answer(run.request.messages)
                return conversation(run.request.model_copy(update={"messages": new}))
        return self._make_input(run.request)


class _Listener(AsyncCallbackHandler):
    """Receives LangChain's callbacks of the graph's models and tools."""

    raise_error = True  # otherwise LangChain only logs exceptions of callbacks, also RunCancelled, and continues
    run_inline = True  # so that a tool waits until its start is stored

    def __init__(self, run: Run, reporter: RunReporter, channels: frozenset[str]) -> None:
        self._run = run
        self._channels = channels
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._wrote = False
        # LangChain's run id -> (the model's name, whether its text is part of the answer)
        self._models: dict[Any, tuple[str, bool]] = {}
        self._streamed: set[Any] = set()  # LangChain's run ids whose text was streamed
        # Ids and texts of messages that are already shown. Nodes return messages of other nodes, some with new ids.
        self._shown = {message.text for message in run.request.messages if message.role == "assistant"}

    # -- models -------------------------------------------------------------------------------------

    async def on_chat_model_start(self, *_: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the start of an inference."""
        metadata = about.get("metadata") or {}
        model = str(metadata.get("ls_model_name") or about.get("name") or "")
        self._models[about["run_id"]] = (model, TAG_NOSTREAM not in (about.get("tags") or ()))
        self._reporter.inference_start(model, str(metadata.get("ls_provider") or "langgraph"))

    on_llm_start = on_chat_model_start  # for text completion models

    async def on_llm_new_token(self, token: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Write a piece of a model's text."""
        message = getattr(about.get("chunk"), "message", None)
        text = str(message.text if message is not None else token)
        run_id = about["run_id"]
        if text and self._models.get(run_id, ("", False))[1]:
            self._streamed.add(run_id)
            self._write(text)
            await self._drain()

    async def on_llm_end(self, response: LLMResult, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the end of an inference. Write the text of a model that does not stream."""
        run_id = about["run_id"]
        model, is_shown = self._models.pop(run_id, ("", False))
        answer = response.generations[0][0] if response.generations and response.generations[0] else None
        message = getattr(answer, "message", None)
        if is_shown and answer is not None:
            text = str(message.text) if message is not None else answer.text
            if run_id not in self._streamed:
                self._write(text)
            self._shown |= {text, getattr(message, "id", None) or text}
        self._streamed.discard(run_id)
        counted = getattr(message, "usage_metadata", None) or {}
        reason = getattr(message, "response_metadata", {}).get("finish_reason")
        usage = usage_of(counted.get("input_tokens"), counted.get("output_tokens"))
        self._reporter.inference_end(model, usage, reason if isinstance(reason, str) else None)

    # -- tools --------------------------------------------------------------------------------------

    async def on_tool_start(self, serialized: Any, input_str: str, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the start of a tool. The tool runs after this returns."""
        name = str((serialized or {}).get("name") or about.get("name") or "")
        arguments, run_id = about.get("inputs"), about["run_id"]
        call_id = str(about.get("tool_call_id") or run_id)
        self._reporter.tool_start(run_id, name, input_str if arguments is None else arguments, call_id)
        await self._drain()

    async def on_tool_end(self, output: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the result of a tool."""
        if isinstance(output, ToolMessage):
            self._reporter.tool_end(about["run_id"], str(output.text), success=output.status != "error")
        else:
            self._reporter.tool_end(about["run_id"], output, success=True)

    async def on_tool_error(self, error: BaseException, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Report the failure of a tool."""
        self._reporter.tool_end(about["run_id"], f"{type(error).__name__}: {error}", success=False)

    # -- nodes --------------------------------------------------------------------------------------

    @property
    def wrote(self) -> bool:
        """Whether any text was written."""
        return self._wrote

    def write_final(self, final: object) -> None:
        """Write the text of the graph's last message, or its value if it is a text. Nothing was written before."""
        texts = [final] if isinstance(final, str) else []
        values = [final.get(name) for name in self._channels] if isinstance(final, dict) else [final]
        for value in values:
            message = as_answer(value[-1] if isinstance(value, list) and value else value)
            texts += [str(message.text)] if message is not None else []
        if text := "".join(texts):
            self._write(text)
        else:
            log.warning(
                "the graph ended without text: return a message of the assistant in `messages`, "
                "for example AIMessage('hi') or ('assistant', 'hi')"
            )

    def step_ended(self, step: dict[str, Any]) -> None:
        """Write the messages that nodes created without a model. Raises AgentError for an interrupt."""
        if "__interrupt__" in step:
            message = "the graph interrupted to ask a person, but a chat completion cannot be resumed with an answer"
            raise AgentError(message)
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
        if message is not None and text and self._shown.isdisjoint({text, message.id}):
            self._shown |= {text, message.id or text}
            self._write(text)

    def _write(self, text: str) -> None:
        self._wrote = self._wrote or bool(text)
        self._run.write(text)

    async def _drain(self) -> None:
        """Wait for room. The callbacks of a node that is not async run in another thread, where ``emit`` waits."""
        if asyncio.get_running_loop() is self._loop:
            await self._run.drain()
