"""The agents that a worker process loads, and the agent that answers for a model."""

import asyncio
import sys
from pathlib import Path

import pytest

from agentstream.agents.orchestrator import Orchestrator
from agentstream.config import load_settings
from agentstream.errors import StartupError
from agentstream.tools.own_tools import PythonTool
from agentstream.worker.agent_set import build_agents


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
    built = build_agents(settings)
    agents, engine = built.resolvers, built.engine
    loaded = sys.modules[module]
    assert set(agents) == {"x", "y"}
    assert [agents["x"]("a"), agents["x"]("b"), agents["y"]("c")] == [loaded.one, loaded.two, loaded.two]
    with pytest.raises(ValueError, match="no agent for the model 'c'"):
        agents["x"]("c")
    assert engine is None


def test_only_agents_of_served_queues_are_loaded(module: str) -> None:
    """A worker imports only the agents of its queues, and an error names the agent that cannot be imported."""
    spec = f"a={module}:one@x, b=no_such_module:f@y, c=builtin@y"
    built = build_agents(load_settings(agents=spec, queues="x"))
    agents, engine = built.resolvers, built.engine
    assert set(agents) == {"x"}
    assert engine is None
    with pytest.raises(StartupError, match="no_such_module:f"):
        build_agents(load_settings(agents=spec))


def test_the_built_in_agent_can_be_named(module: str) -> None:
    """The built-in orchestrator is built once and answers for every model that names it."""
    built = build_agents(load_settings(agents=f"a=builtin@x, b=builtin, c={module}:one"))
    agents, engine = built.resolvers, built.engine
    assert isinstance(agents["x"]("a"), Orchestrator)
    assert agents["default"]("b") is agents["x"]("a")
    assert agents["default"]("c") is sys.modules[module].one
    assert engine is not None


def test_one_agent_answers_for_every_model(module: str) -> None:
    """Without a map of agents, the one agent answers for every model on every queue."""
    agents = build_agents(load_settings(agent=f"{module}:one", queues="x,y")).resolvers
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
        build_agents(settings)


MANAGED = """
from contextlib import asynccontextmanager

@asynccontextmanager
async def lifespan():
    async def agent(run): ...
    yield agent

alias = lifespan
"""
OWN = """
from agentstream.engines.base import EngineDelta

def weather(city: str) -> str: ...
def calculator(text: str) -> str: ...
def again(): ...
again.__name__ = "weather"

class MyEngine:
    name = "mine"
    async def stream(self, request, messages, tools, tool_choice=None):
        yield EngineDelta(text="hi", finish_reason="stop")

engine = MyEngine()
make = MyEngine
number = 3

class NoYield(MyEngine):
    async def stream(self, request, messages, tools, tool_choice=None): ...
no_yield = NoYield()

class Short(MyEngine):
    async def stream(self, messages): yield
short = Short()

class NoName(MyEngine):
    name = None
no_name = NoName()

def failing(): raise OSError("no licence")
"""


def write_module(folder: Path, text: str) -> str:
    """Write a module with a name that no other test uses; return the name."""
    name = f"objects_of_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.mark.usefixtures("module")
def test_an_agent_with_a_lifespan_is_started_once(tmp_path: Path) -> None:
    """Several models, also under several names, share one start, and its agent answers for each of them."""
    name = write_module(tmp_path, MANAGED)
    built = build_agents(load_settings(agents=f"a={name}:lifespan, b={name}:lifespan@y, c={name}:alias"))
    (managed,) = built.managed
    with pytest.raises(RuntimeError, match="was not started"):
        built.resolvers["default"]("a")
    asyncio.run(managed.enter())
    agents = [built.resolvers["default"]("a"), built.resolvers["y"]("b"), built.resolvers["default"]("c")]
    assert agents == [managed.agent] * 3
    asyncio.run(managed.leave())


@pytest.mark.usefixtures("module")
def test_the_built_in_agent_gets_tools_of_the_user(tmp_path: Path) -> None:
    """The tools of the setting join the built-in ones, and one of the same name replaces the built-in one."""
    name = write_module(tmp_path, OWN)
    built = build_agents(load_settings(tools=f"{name}:weather,{name}:calculator"))
    orchestrator = built.resolvers["default"]("m")
    assert isinstance(orchestrator, Orchestrator)
    tools = orchestrator._toolbox.tools()
    assert set(tools) == {"calculator", "current_time", "send_postcard", "text_statistics", "weather"}
    assert all(isinstance(tools[tool], PythonTool) for tool in ("weather", "calculator"))


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tools": "NAME:number"}, "tool 'NAME:number' is a int; write a function"),
        ({"tools": "NAME:MyEngine"}, "tool 'NAME:MyEngine' is the class MyEngine; name an object"),
        ({"tools": "NAME:weather,NAME:again"}, "another tool of AGENTSTREAM_TOOLS has the name 'weather' already"),
        ({"tools": "NAME:nothing"}, "tool 'NAME:nothing': NAME has no attribute 'nothing'"),
        ({"engine": "NAME:number"}, "engine 'NAME:number' is a int without a method `stream`"),
        ({"engine": "NAME:weather"}, "engine 'NAME:weather' cannot be made: TypeError"),
        ({"engine": "NAME:failing"}, "engine 'NAME:failing' cannot be made: OSError: no licence"),
        ({"engine": "NAME:no_yield"}, "its method `stream` yields nothing: write `async def stream"),
        ({"engine": "NAME:short"}, r"takes the parameters \(messages\): write `async def stream"),
        ({"engine": "NAME:no_name"}, "has no `name`"),
    ],
)
def test_a_wrong_tool_or_engine_is_refused(tmp_path: Path, settings: dict[str, str], reason: str) -> None:
    """An object that is no tool or no engine stops the start, with its name, the reason and the right form."""
    name = write_module(tmp_path, OWN)
    given = {field: value.replace("NAME", name) for field, value in settings.items()}
    with pytest.raises(StartupError, match=reason.replace("NAME", name)):
        build_agents(load_settings(**given))


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("attribute", ["engine", "make"])
def test_the_built_in_agent_gets_an_engine_of_the_user(tmp_path: Path, attribute: str) -> None:
    """The engine of the setting replaces the model server; it may be an object, or a function that makes it."""
    name = write_module(tmp_path, OWN)
    built = build_agents(load_settings(engine=f"{name}:{attribute}", openai_base_url="http://127.0.0.1:9/v1"))
    assert built.engine is not None
    assert built.engine.name == "mine"
    asyncio.run(built.close())  # the engine has no method `close`


@pytest.mark.parametrize("setting", ["tools", "engine"])
def test_settings_of_the_built_in_agent_without_effect_are_warned_of(
    module: str, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    """If no model has the built-in agent, a setting for it gives a warning and loads nothing."""
    build_agents(load_settings(agent=f"{module}:one", **{setting: "no_such_module:x"}))
    assert f"AGENTSTREAM_{setting.upper()} is for the built-in agent" in caplog.text
