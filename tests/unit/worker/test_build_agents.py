"""The agents that a worker process loads, and the agent that answers for a model."""

import sys
from pathlib import Path

import pytest

from agentstream.agents.orchestrator import Orchestrator
from agentstream.config import load_settings
from agentstream.errors import StartupError
from agentstream.worker.serve import build_agents, build_mcp


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with two agents, in the working directory."""
    name = f"agents_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("def one(run): ...\nasync def two(run): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


def test_each_model_of_a_queue_has_its_agent(module: str) -> None:
    """Jobs of a queue go to the agent of their model, and a model of another queue has no agent here."""
    settings = load_settings(agents=f"a={module}:one@x, b={module}:two@x, c={module}:two@y")
    agents, engine = build_agents(settings)
    loaded = sys.modules[module]
    assert set(agents) == {"x", "y"}
    assert [agents["x"]("a"), agents["x"]("b"), agents["y"]("c")] == [loaded.one, loaded.two, loaded.two]
    with pytest.raises(ValueError, match="no agent for the model 'c'"):
        agents["x"]("c")
    assert engine is None


def test_only_agents_of_served_queues_are_loaded(module: str) -> None:
    """A worker imports only the agents of its queues, and an error names the agent that cannot be imported."""
    spec = f"a={module}:one@x, b=no_such_module:f@y, c=builtin@y"
    agents, engine = build_agents(load_settings(agents=spec, queues="x"))
    assert set(agents) == {"x"}
    assert engine is None
    with pytest.raises(StartupError, match="no_such_module:f"):
        build_agents(load_settings(agents=spec))


def test_the_built_in_agent_can_be_named(module: str) -> None:
    """The built-in orchestrator is built once and answers for every model that names it."""
    agents, engine = build_agents(load_settings(agents=f"a=builtin@x, b=builtin, c={module}:one"))
    assert isinstance(agents["x"]("a"), Orchestrator)
    assert agents["default"]("b") is agents["x"]("a")
    assert agents["default"]("c") is sys.modules[module].one
    assert engine is not None


def test_one_agent_answers_for_every_model(module: str) -> None:
    """Without a map of agents, the one agent answers for every model on every queue."""
    agents, _ = build_agents(load_settings(agent=f"{module}:one", queues="x,y"))
    assert [agents["x"]("a"), agents["y"]("anything")] == [sys.modules[module].one] * 2


@pytest.mark.parametrize(
    ("missing", "setting", "extra"),
    [
        ("openai", {"openai_base_url": "http://127.0.0.1:9/v1"}, "openai"),
        ("mcp", {"mcp_servers": "mcp.json"}, "mcp"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, setting: dict[str, str], extra: str
) -> None:
    """A setting that needs an optional package which is not installed stops the start with the exact pip command."""
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "agentstream.engines.openai", raising=False)
    monkeypatch.delitem(sys.modules, "agentstream.tools.mcp", raising=False)
    settings = load_settings(**setting)
    with pytest.raises(StartupError, match=rf"pip install 'agentstream\[{extra}\]'"):
        build_agents(settings, build_mcp(settings))
