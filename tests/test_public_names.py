"""The names that ``from agentstream import ...`` gives, and what importing them loads."""

import subprocess
import sys

import pytest

import agentstream
from agentstream import agents

PUBLIC = ["Agent", "AgentResult", "Run", "RunCancelled", "ToolCallWriter", "ToolResult"]


def test_importing_the_package_loads_nothing_else() -> None:
    """``import agentstream`` loads none of its own modules, so that the command line starts quickly."""
    program = "import sys, agentstream; print([name for name in sys.modules if name.startswith('agentstream.')])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_the_agent_contract(name: str) -> None:
    """Each public name of the package is the one of the agent contract."""
    assert getattr(agentstream, name) is getattr(agents, name)


def test_public_names_are_listed() -> None:
    """The package lists its public names, in ``__all__`` and in ``dir``."""
    assert sorted(agentstream.__all__) == sorted([*PUBLIC, "__version__"])
    assert set(PUBLIC) <= set(dir(agentstream))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that the package does not have raises AttributeError, as with every module."""
    with pytest.raises(AttributeError, match="module 'agentstream' has no attribute 'Agnet'"):
        _ = agentstream.Agnet
