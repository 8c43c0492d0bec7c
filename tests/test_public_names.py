"""The public names of the package, and the modules that importing the package loads."""

import subprocess
import sys

import pytest

import agentstream
from agentstream import agents

PUBLIC = [
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
    "resumable",
    "takes_inputs",
]


def test_importing_the_package_loads_nothing_else() -> None:
    """``import agentstream`` loads none of its submodules, so that the command line starts quickly."""
    program = "import sys, agentstream; print([name for name in sys.modules if name.startswith('agentstream.')])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_the_agent_contract(name: str) -> None:
    """Each public name of the package is the same object as in ``agentstream.agents``."""
    assert getattr(agentstream, name) is getattr(agents, name)


def test_public_names_are_listed() -> None:
    """``__all__`` and ``dir`` list the public names of the package."""
    assert sorted(agentstream.__all__) == sorted([*PUBLIC, "__version__"])
    assert set(PUBLIC) <= set(dir(agentstream))


def test_an_unknown_name_raises_attribute_error() -> None:
    """An unknown name raises AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="module 'agentstream' has no attribute 'Agnet'"):
        _ = agentstream.Agnet
