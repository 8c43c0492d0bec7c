"""Runs a LangGraph graph as an agent.

In your own module::

    from agentstream.adapters.langgraph import LangGraphAgent

    agent = LangGraphAgent(graph)  # AGENTSTREAM_AGENT=my_module:agent

The input of the graph is ``{"messages": [...]}``. The answer is the streamed text of all chat models in the graph,
except models with the tag "nostream". A message that a node creates without a model is written after the node has
ended. The usage is known only if the models report it: ``ChatOpenAI(stream_usage=True)``.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from agentstream.adapters.run_reporter import RunReporter, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError, missing_extra
from agentstream.protocol.openai import ChatCompletionRequest

try:
    from langchain_core.callbacks import AsyncCallbackHandler
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.outputs import LLMResult
    from langgraph.constants import TAG_NOSTREAM
    from langgraph.pregel import Pregel
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "langgraph")) from exc

# With the mode "messages" LangGraph asks models for streams. The callbacks below receive the pieces, in order with
# tool calls, so the items of this mode are not used.
_STREAM_MODES = ["updates", "messages"]


def conversation(request: ChatCompletionRequest) -> dict[str, Any]:
    """Return the input of a graph with a ``messages`` channel. LangChain accepts messages in OpenAI's form."""
    return {"messages": [message.model_dump(exclude_none=True) for message in request.messages]}


class LangGraphAgent:
    """An agent: ``await agent(run)`` runs the graph once.

    One instance serves any number of concurrent runs. The ``thread_id`` for a checkpointer is the run's id, so each
    run is a new LangGraph thread. The earlier conversation comes with each request.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        make_input: Callable[[ChatCompletionRequest], Any] = conversation,
        **options: Any,  # noqa: ANN401 -- LangGraph's own
    ) -> None:
        """Create an agent from a compiled graph. To configure the graph, use ``graph.with_config(...)``.

        ``make_input`` converts a request to the graph's input; set it if the graph's state has no ``messages``.
        ``options``, for example ``context``, are passed to ``graph.astream``.
        """
        self._graph = graph
        self._make_input = make_input
        self._options = options

    async def __call__(self, run: Run) -> AgentResult:
        """Run the graph and return the result. Exceptions of the graph are raised unchanged.

        Raises AgentError if the graph interrupts to ask a person.
        """
        reporter = RunReporter(run, self._graph.get_name())
        reporter.turn_start()
        listener = _Listener(run, reporter)
        config = {"callbacks": [listener], "configurable": {"thread_id": run.id}}
        given = self._make_input(run.request)
        graph: Any = self._graph  # Any: of the many forms of astream, this one yields (mode, step)
        steps = graph.astream(given, config, stream_mode=_STREAM_MODES, **self._options)
        async with aclosing(steps):
            async for mode, step in steps:
                if mode == "updates":
                    listener.step_ended(step)
                await run.drain()
        return reporter.result()


class _Listener(AsyncCallbackHandler):
    """Receives LangChain's callbacks of the graph's models and tools."""

    raise_error = True  # otherwise LangChain only logs exceptions of callbacks, also RunCancelled, and continues
    run_inline = True  # so that a tool waits until its start is stored

    def __init__(self, run: Run, reporter: RunReporter) -> None:
        self._run = run
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
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
            self._run.write(text)
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
                self._run.write(text)
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

    def step_ended(self, step: dict[str, Any]) -> None:
        """Write the messages that nodes created without a model. Raises AgentError for an interrupt."""
        if "__interrupt__" in step:
            message = "the graph interrupted to ask a person, but a chat completion cannot be resumed with an answer"
            raise AgentError(message)
        for update in step.values():
            for value in update.values() if isinstance(update, dict) else [update]:
                for message in value if isinstance(value, list) else [value]:
                    if isinstance(message, AIMessage):
                        self._write_message(message)

    def _write_message(self, message: AIMessage) -> None:
        text = str(message.text)
        if text and self._shown.isdisjoint({text, message.id}):
            self._shown |= {text, message.id or text}
            self._run.write(text)

    async def _drain(self) -> None:
        """Wait for room. The callbacks of a node that is not async run in another thread, where ``emit`` waits."""
        if asyncio.get_running_loop() is self._loop:
            await self._run.drain()
