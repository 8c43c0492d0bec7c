"""Helps adapters to continue a run that another worker began: their checkpoints, and texts for the model."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from agentstream.agents import Run
from agentstream.errors import AgentError, InvalidAgentOutput

log = logging.getLogger(__name__)

# These texts are for the model, which reads them after a part of its answer or in the place of a tool's result.
CONTINUE_PROMPT: Final = "Your answer was interrupted. Continue exactly where it stops. Do not repeat any of it."
UNKNOWN_OUTCOME: Final = "The tool was interrupted because its worker was lost. It may have run, or only a part of it."
NOT_RUN: Final = "The tool was not run because the worker was lost. Call it again if you still need its result."

_MAY_RUN_AGAIN: Final = ("idempotent", "read_only", "idempotentHint", "readOnlyHint")
_ADAPTER: Final = "adapter"
_REFUSED: Final = "refused"


async def keep(run: Run, adapter: str, state: dict[str, Any]) -> None:
    """Make a checkpoint of an adapter. If the state is too large, log it: the run goes on, but only on this worker.

    A sub-agent makes no checkpoints: if the worker is lost, the agent that called it calls it again.
    """
    if run.agent_path:
        return
    try:
        await run.checkpoint({_ADAPTER: adapter, **state})
    except InvalidAgentOutput as exc:
        log.warning("no other worker can continue this run from here on: %s", exc)
        await run.checkpoint({_ADAPTER: adapter, _REFUSED: str(exc)})


def kept(run: Run, adapter: str) -> dict[str, Any] | None:
    """Return the state of the last checkpoint; None if there is none.

    Raises AgentError if the state was too large to be stored, or if it is not from this adapter.
    """
    state = run.restored.state if run.restored is not None else None
    if state is None:
        return None
    if not isinstance(state, dict) or state.get(_ADAPTER) != adapter:
        message = f"the run cannot be continued: its checkpoint is not from the adapter {adapter!r}"
        raise AgentError(message)
    if _REFUSED in state:
        message = f"the run cannot be continued, because its last state was not stored: {state[_REFUSED]}"
        raise AgentError(message)
    return state


def shown_text(run: Run) -> str:
    """Return the text that clients have seen since the last checkpoint."""
    return run.restored.text if run.restored is not None else ""


def rest_of(text: str, shown: str) -> str:
    """Return the part of a text that clients have not seen. Raises AgentError if they have seen a different text."""
    if not text.startswith(shown):
        raise different_text()
    return text[len(shown) :]


def different_text() -> AgentError:
    """Return the error of an agent that is repeated and writes another text than clients have seen."""
    return AgentError(
        "the run cannot be continued: its worker was lost in the middle of an answer, and the repeated answer differs "
        "from the part that was already sent"
    )


def may_run_again(metadata: Mapping[str, Any] | None) -> bool:
    """Return whether a tool declares in its metadata that it may run twice: it is idempotent, or it only reads.

    The names are ``idempotent``, ``read_only``, and those of MCP's annotations, which the frameworks' MCP clients keep.
    """
    metadata = metadata or {}
    annotations = metadata.get("annotations")
    sources = (metadata, annotations if isinstance(annotations, Mapping) else {})
    return any(source.get(name) is True for source in sources for name in _MAY_RUN_AGAIN)
