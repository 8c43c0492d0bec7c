"""The agent that runs a graph, once for each run."""

import copy
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from langchain_core.runnables.config import RunnableConfig, merge_configs
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel

from agentstream.adapters.langgraph.continuing import current_progress
from agentstream.adapters.langgraph.listener import MESSAGES, Listener, ToolGuard, message_channels
from agentstream.adapters.langgraph.progress import Progress
from agentstream.adapters.langgraph.questions import ENDED, GraphQuestions
from agentstream.adapters.langgraph.savers import RUN_ID, RunSaver, noticing
from agentstream.adapters.langgraph.saving import Saving
from agentstream.adapters.per_run import options_for, since_last_answer, value_for
from agentstream.adapters.resuming import different_text, kept
from agentstream.adapters.run_reporter import RunReporter
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError
from agentstream.protocol.openai import ChatCompletionRequest

ADAPTER: Final = "langgraph"
# With the mode "messages" LangGraph asks models for streams. The callbacks below receive the pieces, in order with
# tool calls, so the items of this mode are not used.
_STREAM_MODES = ["updates", "messages", "values", "custom"]


def conversation(request: ChatCompletionRequest) -> dict[str, Any]:
    """Return the input of a graph with a ``messages`` channel. LangChain accepts messages in OpenAI's form."""
    return {"messages": [message.model_dump(exclude_none=True) for message in request.messages]}


class LangGraphAgent:
    """An agent: ``await agent(run)`` runs the graph once.

    One instance serves any number of concurrent runs. By default the ``thread_id`` for a checkpointer is the run's id,
    so each run is a new LangGraph thread. The earlier conversation comes with each request.

    With your own ``thread_id`` a checkpointer remembers the conversation. Once the thread has messages, only the
    messages after the last answer of the request are added to it. Two runs of one thread at the same time are not
    kept apart.

    The agent is ``resumable`` if the graph's checkpointer survives the worker, so every checkpointer except LangGraph's
    InMemorySaver. It then runs with the durability "sync".
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        make_input: Callable[[ChatCompletionRequest], Any] = conversation,
        *,
        config: Any = None,  # noqa: ANN401 -- a RunnableConfig, or a function of the run
        thread_id: str | Callable[[Run], str] | Callable[[Run], Awaitable[str]] | None = None,
        resumable: bool | None = None,
        **options: Any,  # noqa: ANN401 -- LangGraph's own
    ) -> None:
        """Create an agent from a compiled graph.

        ``make_input`` converts a request to the graph's input; set it if the graph's state has no ``messages``.
        ``config`` is a RunnableConfig. ``options``, for example ``context``, are passed to ``graph.astream``.
        ``config``, ``thread_id`` and each option may be functions of the run, which may be async.

        With ``resumable=True`` a graph without a checkpointer is resumable, too: the state of the graph (up to 1 MiB,
        and only values that LangGraph can serialize) is stored with the run after each step. ``False`` turns it off.
        Raises ValueError for True with a checkpointer in memory, or with a durability other than "sync".
        """
        is_in_memory = type(graph.checkpointer) is InMemorySaver
        is_sync = options.get("durability") in {None, "sync"}
        if resumable and (is_in_memory or not is_sync):
            message = (
                "resumable=True needs a checkpointer that survives the worker, or a graph without a checkpointer, and "
                f"the durability 'sync'; the graph has {graph.checkpointer!r} and {options.get('durability')!r}"
            )
            raise ValueError(message)
        has_saver = bool(graph.checkpointer) and not is_in_memory
        self.resumable = (has_saver and is_sync) if resumable is None else resumable
        self._graph = graph
        self._channels = message_channels(graph)
        self._make_input = make_input
        self._config = config
        self._thread_id = thread_id
        self._options = options

    async def __call__(self, run: Run) -> AgentResult:
        """Run the graph and return the result. Exceptions of the graph are raised unchanged.

        If the graph interrupts, people are asked, and the graph goes on with their answers. Raises AgentError if it
        interrupts without a checkpointer, which LangGraph needs for that, and InterruptTimeout if nobody answers a
        question that has no form of a denial. A graph that ends without any text gives an empty answer, and a warning
        in the log.
        """
        saved = kept(run, ADAPTER) if self.resumable else None
        reporter = RunReporter(run, self._graph.get_name(), saved and saved["reporter"], self._graph.nodes)
        reporter.turn_start()
        progress = Progress.restored(run, saved and saved["progress"])
        current_progress.set(progress)
        listener = Listener(run, reporter, self._channels, progress)
        config = await self._config_for(run)
        graph: Any = self._graph  # the types of astream do not show that it yields (mode, step) here
        options = await options_for(self._options, self._options, run)
        saving = Saving(run, ADAPTER, reporter, progress)
        if self.resumable:
            graph = self._graph_that_saves(run, config, saving, saved)
            options["durability"] = "sync"
        questions = GraphQuestions(run, graph, config, saving)
        given, final = await self._begin(graph, run, config, progress, listener)
        if given is None and (pending := await questions.pending(is_new=False)):
            given = await questions.ask(pending)
        config_with_callbacks = merge_configs(config, {"callbacks": [ToolGuard(reporter, progress), listener]})
        while given is not ENDED:
            steps = graph.astream(given, config_with_callbacks, stream_mode=_STREAM_MODES, **options)
            is_interrupted, final = await _follow(steps, run, listener, final)
            if not is_interrupted:
                break
            given = await questions.ask(await questions.pending(is_new=True))
        if progress.has_rest:
            raise different_text()
        if not progress.wrote:
            listener.write_final(final)
        return reporter.result()

    def _graph_that_saves(
        self, run: Run, config: RunnableConfig, saving: Saving, saved: dict[str, Any] | None
    ) -> Pregel[Any, Any, Any, Any]:
        """Return a copy of the graph that makes a checkpoint of the run after each step."""
        in_run = None
        if not self._graph.checkpointer:
            in_run = RunSaver(config["configurable"]["thread_id"], saved["saver"] if saved else [])
        saving.begin(in_run)
        graph = copy.copy(self._graph)
        saver: Any = in_run or self._graph.checkpointer
        graph.checkpointer = noticing(saver, run.id, saving.step_ended)
        return graph

    async def _begin(
        self,
        graph: Pregel[Any, Any, Any, Any],
        run: Run,
        config: RunnableConfig,
        progress: Progress,
        listener: Listener,
    ) -> tuple[object, object]:
        """Return the input of the graph, None to continue it or ENDED if it has ended, and its values, if known."""
        own_thread = config["configurable"]["thread_id"] != run.id
        remembers = own_thread and bool(self._graph.checkpointer)
        found = await graph.aget_state(config) if remembers or (self.resumable and run.restored) else None
        values = found.values if found is not None else None
        metadata = (found and found.metadata) or {}
        if not self.resumable or found is None or metadata.get(RUN_ID) != run.id:
            if progress.checkpoint_id is not None:
                message = "the run cannot be continued: its last checkpoint is not the last one of its LangGraph thread"
                raise AgentError(message)
            given = self._input_for(run, values if remembers else None)
            listener.know(values)
            listener.know(given)
            return given, None
        listener.know(self._make_input(run.request))
        if progress.checkpoint_id is None:  # the messages are those of the input and of earlier runs
            listener.know(values)
        else:
            if not await _is_stored(graph, config, progress):
                progress.repeat_step()
            listener.write_missed(values)
        return (None if found.tasks else ENDED), values

    async def _config_for(self, run: Run) -> RunnableConfig:
        """Return the config of a run.

        Its thread id is ``thread_id`` if given, otherwise that of ``config``, otherwise the run id.
        """
        config = merge_configs({"configurable": {"thread_id": run.id}}, await value_for(self._config, run))
        if self._thread_id is not None:
            config["configurable"]["thread_id"] = str(await value_for(self._thread_id, run))
        return config

    def _input_for(self, run: Run, remembered: object) -> object:
        """Return the input of a run. A thread that remembers the conversation gets only its new messages."""
        if self._make_input is conversation and isinstance(remembered, dict) and remembered.get(MESSAGES):
            new = since_last_answer(run.request.messages)
            return conversation(run.request.model_copy(update={"messages": new}))
        return self._make_input(run.request)


async def _follow(steps: Any, run: Run, listener: Listener, final: object) -> tuple[bool, object]:  # noqa: ANN401 -- a generator
    """Read a graph's stream. Return whether the graph was interrupted, and its last values, ``final`` if none came."""
    is_interrupted = False
    async with aclosing(steps):
        async for mode, step in steps:
            if mode == "updates" and "__interrupt__" in step:
                is_interrupted = True
            elif mode == "updates":
                listener.step_ended(step)
            elif mode == "values":
                final = step
            elif mode == "custom":
                listener.custom(step)
            await run.drain()
    return is_interrupted, final


async def _is_stored(graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, progress: Progress) -> bool:
    """Return whether LangGraph has stored the end of the last step in ``progress``."""
    saver: Any = graph.checkpointer
    found = await saver.aget_tuple(merge_configs(config, {"configurable": {"checkpoint_ns": progress.namespace}}))
    return found is not None and found.checkpoint["id"] == progress.checkpoint_id
