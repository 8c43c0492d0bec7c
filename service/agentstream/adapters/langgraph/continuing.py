"""A model that continues its own answer after the loss of a worker, instead of repeating it."""

from contextvars import ContextVar
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from agentstream.adapters.langgraph.progress import Progress
from agentstream.adapters.resuming import CONTINUE_PROMPT

# The progress of the run whose graph calls the model. LangGraph passes the context on to nodes and their threads.
current_progress: ContextVar[Progress | None] = ContextVar("current_progress", default=None)

_NAMESPACE: Final = "langgraph_checkpoint_ns"


def namespace_of(metadata: dict[str, Any] | None) -> str:
    """Return the namespace of the task that calls a model or a tool, from the metadata of its config."""
    return str((metadata or {}).get(_NAMESPACE) or "")


def continuing(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return the model, which continues an answer that was cut because a worker was lost.

    Use it in a node, for example ``await continuing(model).ainvoke(state["messages"])``. If an earlier attempt was cut
    in the middle of the node's text, the model gets that text as the start of its answer and is asked to continue. The
    message that it returns has the whole text. In all other cases nothing changes. The cut text must be that of the
    node's first answer.
    """

    def ask(given: Any, config: RunnableConfig) -> Any:  # noqa: ANN401 -- LangChain's
        cut = _cut_text(config)
        return _whole(cut, model.invoke(_with_cut(given, cut), config))

    async def ask_async(given: Any, config: RunnableConfig) -> Any:  # noqa: ANN401 -- LangChain's
        cut = _cut_text(config)
        return _whole(cut, await model.ainvoke(_with_cut(given, cut), config))

    return RunnableLambda(ask, ask_async)


def _cut_text(config: RunnableConfig) -> str:
    progress = current_progress.get()
    return progress.cut_text_of(namespace_of(config.get("metadata"))) if progress is not None else ""


def _with_cut(given: Any, cut: str) -> Any:  # noqa: ANN401 -- LangChain's
    """Return the input of the model with the text that was cut."""
    if not cut:
        return given
    prompt = StringPromptValue(text=given) if isinstance(given, str) else given
    messages = prompt.to_messages() if isinstance(prompt, PromptValue) else convert_to_messages(prompt)
    return [*messages, AIMessage(cut), HumanMessage(CONTINUE_PROMPT)]


def _whole(cut: str, answer: Any) -> Any:  # noqa: ANN401 -- LangChain's
    """Return the answer with the text that was cut before it."""
    if not cut or not isinstance(answer, BaseMessage):
        return answer
    content = answer.content
    whole = cut + content if isinstance(content, str) else [{"type": "text", "text": cut}, *content]
    return answer.model_copy(update={"content": whole})
