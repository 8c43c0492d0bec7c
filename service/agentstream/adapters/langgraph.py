"""A LangGraph graph as an agent of ours.

In a module of your own::

    from agentstream.adapters.langgraph import LangGraphAgent

    agent = LangGraphAgent(graph)  # AGENTSTREAM_AGENT=my_module:agent

The conversation goes in as ``{"messages": [...]}``. The text of every chat model in the graph streams as the answer,
but of those tagged "nostream"; a message that a node makes itself is written when the node has ended. Models report
usage where they are told to: ``ChatOpenAI(stream_usage=True)``.
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

# A mode of the messages makes LangGraph ask models for streams; the callbacks below hear them, in order with tools.
_STREAM_MODES = ["updates", "messages"]


def conversation(request: ChatCompletionRequest) -> dict[str, Any]:
    """Return a request as the input of a graph with a ``messages`` channel; LangChain reads OpenAI's message form."""
    return {"messages": [message.model_dump(exclude_none=True) for message in request.messages]}


class LangGraphAgent:
    """An agent: ``await agent(run)`` runs the graph once, on a thread of its own.

    One instance serves any number of runs at once. A ``checkpointer`` sees the run's id as its thread id: the
    conversation so far comes with each request.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        make_input: Callable[[ChatCompletionRequest], Any] = conversation,
        **options: Any,  # noqa: ANN401 -- LangGraph's own
    ) -> None:
        """Take the compiled graph; configure it with ``graph.with_config(...)``.

        ``make_input`` makes the graph's input of a request, for a state without ``messages``. ``options`` are passed
        on to ``graph.astream``, such as ``context``.
        """
        self._graph = graph
        self._make_input = make_input
        self._options = options

    async def __call__(self, run: Run) -> AgentResult:
        """Run the graph; whatever it raises ends the run. Raises AgentError if it stops to ask a human."""
        reporter = RunReporter(run, self._graph.get_name())
        reporter.turn_start()
        listener = _Listener(run, reporter)
        config = {"callbacks": [listener], "configurable": {"thread_id": run.id}}
        given = self._make_input(run.request)
        graph: Any = self._graph  # its astream has many forms; this one yields (mode, step)
        steps = graph.astream(given, config, stream_mode=_STREAM_MODES, **self._options)
        async with aclosing(steps):
            async for mode, step in steps:
                if mode == "updates":
                    listener.step_ended(step)
                await run.drain()
        return reporter.result()


class _Listener(AsyncCallbackHandler):
    """Hears the graph's models and tools; called inline, so that a tool waits until its start is told."""

    raise_error = True  # else LangChain logs what is raised here, a cancel included, and goes on
    run_inline = True

    def __init__(self, run: Run, reporter: RunReporter) -> None:
        self._run = run
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._models: dict[Any, tuple[str, bool]] = {}  # by LangChain's run id: the model's name, and whether it shows
        self._streamed: set[Any] = set()  # of those, which have shown text
        # What was said already, by id and by text: nodes hand on messages of others, some under new ids.
        self._shown = {message.text for message in run.request.messages if message.role == "assistant"}

    # -- models -------------------------------------------------------------------------------------

    async def on_chat_model_start(self, *_: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Hear that a chat model is asked."""
        metadata = about.get("metadata") or {}
        model = str(metadata.get("ls_model_name") or about.get("name") or "")
        self._models[about["run_id"]] = (model, TAG_NOSTREAM not in (about.get("tags") or ()))
        self._reporter.inference_start(model, str(metadata.get("ls_provider") or "langgraph"))

    on_llm_start = on_chat_model_start  # of models that complete text

    async def on_llm_new_token(self, token: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Hear a piece of an answer."""
        message = getattr(about.get("chunk"), "message", None)
        text = str(message.text if message is not None else token)
        run_id = about["run_id"]
        if text and self._models.get(run_id, ("", False))[1]:
            self._streamed.add(run_id)
            self._run.write(text)
            await self._drain()

    async def on_llm_end(self, response: LLMResult, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Hear a whole answer."""
        run_id = about["run_id"]
        model, shows = self._models.pop(run_id, ("", False))
        answer = response.generations[0][0] if response.generations and response.generations[0] else None
        message = getattr(answer, "message", None)
        if shows and answer is not None:
            text = str(message.text) if message is not None else answer.text
            if run_id not in self._streamed:  # a model that cannot stream
                self._run.write(text)
            self._shown |= {text, getattr(message, "id", None) or text}
        self._streamed.discard(run_id)
        counted = getattr(message, "usage_metadata", None) or {}
        reason = getattr(message, "response_metadata", {}).get("finish_reason")
        usage = usage_of(counted.get("input_tokens"), counted.get("output_tokens"))
        self._reporter.inference_end(model, usage, reason if isinstance(reason, str) else None)

    # -- tools --------------------------------------------------------------------------------------

    async def on_tool_start(self, serialized: Any, input_str: str, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Hear that a tool begins; it waits until this returns."""
        name = str((serialized or {}).get("name") or about.get("name") or "")
        arguments, run_id = about.get("inputs"), about["run_id"]
        call_id = str(about.get("tool_call_id") or run_id)
        self._reporter.tool_start(run_id, name, input_str if arguments is None else arguments, call_id)
        await self._drain()

    async def on_tool_end(self, output: Any, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Hear a tool's result."""
        if isinstance(output, ToolMessage):
            self._reporter.tool_end(about["run_id"], str(output.text), success=output.status != "error")
        else:
            self._reporter.tool_end(about["run_id"], output, success=True)

    async def on_tool_error(self, error: BaseException, **about: Any) -> None:  # noqa: ANN401 -- LangChain's
        """Hear that a tool failed."""
        self._reporter.tool_end(about["run_id"], f"{type(error).__name__}: {error}", success=False)

    # -- nodes --------------------------------------------------------------------------------------

    def step_ended(self, step: dict[str, Any]) -> None:
        """Write what nodes said without a model."""
        if "__interrupt__" in step:
            message = "the graph stopped to ask a human; there is nobody to answer in a chat completion"
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
        """Wait for room; a node that is not async is heard in a thread of its own, where ``emit`` itself waits."""
        if asyncio.get_running_loop() is self._loop:
            await self._run.drain()
