"""agentstream: an OpenAI-compatible streaming front end for agents that run in other processes.

These are the names that an agent's author needs. They are loaded on first use, so that importing the package, as the
command line does, costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentstream.agents import Agent, AgentResult, Run, RunCancelled, ToolCallWriter, ToolResult

__version__ = "0.1.0"

__all__ = ["Agent", "AgentResult", "Run", "RunCancelled", "ToolCallWriter", "ToolResult", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- a class, a type alias or a function
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from agentstream import agents  # noqa: PLC0415 -- on first use

    return getattr(agents, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
