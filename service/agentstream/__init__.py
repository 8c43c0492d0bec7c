"""agentstream: an OpenAI-compatible streaming front end for agents that run in other processes.

The package exports the names that the author of an agent needs. It loads them on first use, so that an import of the
package stays fast: the command line imports it at every start.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentstream.agents import (
        Agent,
        AgentError,
        AgentResult,
        Caller,
        ChildRun,
        EmittedEvent,
        InterruptTimeout,
        Restored,
        RestoredToolCall,
        Run,
        RunCancelled,
        ToolCallWriter,
        ToolResult,
        resumable,
        takes_inputs,
    )

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentError",
    "AgentResult",
    "Caller",
    "ChildRun",
    "EmittedEvent",
    "InterruptTimeout",
    "Restored",
    "RestoredToolCall",
    "Run",
    "RunCancelled",
    "ToolCallWriter",
    "ToolResult",
    "__version__",
    "resumable",
    "takes_inputs",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- a class, a type alias or a function
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from agentstream import agents  # noqa: PLC0415 -- loaded on first use

    return getattr(agents, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
