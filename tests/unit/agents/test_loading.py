"""Finding the user's agent: by name, in the working directory first, refused with a reason."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentstream.agents import AgentResult, Run
from agentstream.agents.loading import is_async, load_agent
from agentstream.errors import StartupError

AGENT = "def agent(run):\n    return {name!r}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it, and the search path, are forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: Path, text: str) -> None:
    """Write a module, with the packages it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(spec: str) -> Any:
    """Load, for agents that are called with anything."""
    return load_agent(spec)


def test_a_module_of_the_working_directory_is_found(folder: Path) -> None:
    """An agent is importable from the working directory without any further setting."""
    write(folder / "loaded_here.py", AGENT.format(name="here"))
    assert load("loaded_here:agent")(None) == "here"


def test_the_working_directory_comes_first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A module of the working directory is taken before one of the same name elsewhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "loaded_twice.py", AGENT.format(name="elsewhere"))
    sys.path.insert(0, str(elsewhere))
    write(folder / "loaded_twice.py", AGENT.format(name="here"))
    assert load("loaded_twice:agent")(None) == "here"


def test_packages_and_dotted_attributes_are_followed(folder: Path) -> None:
    """A specification may name a module inside a package, and an attribute of an attribute."""
    write(folder / "loaded_package/inner.py", "class Agents:\n    @staticmethod\n    def one(run):\n        return 1\n")
    assert load("loaded_package.inner:Agents.one")(None) == 1


def test_an_instance_that_can_be_called_is_an_agent(folder: Path) -> None:
    """An object with state of its own is as good as a function."""
    write(
        folder / "loaded_instance.py", "class Agent:\n    def __call__(self, run):\n        return 2\nagent = Agent()\n"
    )
    assert load("loaded_instance:agent")(None) == 2


@pytest.mark.parametrize(
    ("source", "attribute", "reasons"),
    [
        (None, "agent", ["ModuleNotFoundError", "No module named 'loaded_wrong'", "searched "]),
        ("import loaded_nowhere", "agent", ["ModuleNotFoundError", "No module named 'loaded_nowhere'"]),
        ("def agent(run) return 1", "agent", ["SyntaxError"]),
        ("raise ValueError('no licence')", "agent", ["ValueError: no licence"]),
        ("raise SystemExit('usage: agent')", "agent", ["SystemExit: usage: agent"]),
        ("x = 1", "agent", ["has no attribute 'agent'"]),
        ("class A: pass\na = A()", "a.agent", ["has no attribute 'a.agent'"]),
        ("agent = 'me'", "agent", ["is a str", "expected a function"]),
        ("agent = None", "agent", ["is a NoneType", "expected a function"]),
        ("class agent:\n    def __call__(self, run): ...", "agent", ["is a type", "an instance"]),
    ],
    ids=[
        "no module",
        "an import of its own fails",
        "no Python",
        "raises",
        "exits",
        "no attribute",
        "no inner attribute",
        "a text",
        "nothing",
        "a class",
    ],
)
def test_what_is_no_agent_is_refused(folder: Path, source: str | None, attribute: str, reasons: list[str]) -> None:
    """A specification that leads to no agent is refused with the specification and the reason."""
    if source is not None:
        write(folder / "loaded_wrong.py", source)
    with pytest.raises(StartupError) as refusal:
        load_agent(f"loaded_wrong:{attribute}")
    assert f"'loaded_wrong:{attribute}'" in str(refusal.value)
    for reason in reasons:
        assert reason in str(refusal.value)


def test_the_refusal_says_where_it_looked(folder: Path) -> None:
    """The message names the working directory, which is most often the mistake."""
    with pytest.raises(StartupError, match=str(folder)):
        load_agent("loaded_wrong:agent")


def test_the_cause_is_kept(folder: Path) -> None:
    """The exception of the user's own module is chained, for its traceback."""
    write(folder / "loaded_raising.py", "raise ValueError('no licence')")
    with pytest.raises(StartupError) as refusal:
        load_agent("loaded_raising:agent")
    assert isinstance(refusal.value.__cause__, ValueError)


async def _async_function(run: Run) -> AgentResult:
    raise NotImplementedError


def _plain_function(run: Run) -> AgentResult:
    raise NotImplementedError


class _AsyncInstance:
    async def __call__(self, run: Run) -> AgentResult:
        raise NotImplementedError

    async def method(self, run: Run) -> AgentResult:
        raise NotImplementedError


class _PlainInstance:
    def __call__(self, run: Run) -> AgentResult:
        raise NotImplementedError

    def method(self, run: Run) -> AgentResult:
        raise NotImplementedError


async def _with_option(run: Run, *, option: int) -> AgentResult:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("agent", "on_the_loop"),
    [
        (_async_function, True),
        (_AsyncInstance(), True),
        (_AsyncInstance().method, True),
        (functools.partial(_with_option, option=1), True),
        (_plain_function, False),
        (_PlainInstance(), False),
        (_PlainInstance().method, False),
        (functools.partial(_plain_function), False),
    ],
)
def test_async_agents_are_told_from_plain_ones(agent: Any, *, on_the_loop: bool) -> None:
    """Functions, methods, callable instances and partials run on the loop if async, in a thread if not."""
    assert is_async(agent) == on_the_loop


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("service.agents:Run", "write agentstream.agents instead of service.agents"),
        ("service.adapters.command:x", "write agentstream.adapters.command instead of service.adapters.command"),
    ],
)
def test_the_old_name_of_the_package_gets_a_hint(folder: Path, spec: str, hint: str) -> None:
    """A specification that names the package by its old name is refused with the new name."""
    assert folder.exists()
    with pytest.raises(StartupError, match=hint):
        load_agent(spec)


def test_a_module_that_imports_the_old_name_gets_a_hint(folder: Path) -> None:
    """An agent's module that still imports the package by its old name is refused with the new name."""
    write(folder / "loaded_old.py", "from service.agents import AgentResult\n")
    with pytest.raises(
        StartupError, match="write agentstream instead of service"
    ):
        load_agent("loaded_old:agent")


def test_a_package_of_the_user_called_service_gets_no_hint(folder: Path) -> None:
    """A missing module of the user's own package ``service`` is reported as it is."""
    (folder / "service").mkdir()
    write(folder / "service" / "__init__.py", "")
    with pytest.raises(StartupError) as refusal:
        load_agent("service.billing:agent")
    assert "No module named 'service.billing'" in str(refusal.value)
    assert "called agentstream now" not in str(refusal.value)
