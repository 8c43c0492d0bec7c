"""Importing the user's agent: the working directory is searched first, and errors give the reason."""

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentstream.agents import AgentResult, Run
from agentstream.agents.loading import load_agent
from agentstream.agents.shapes import is_async
from agentstream.errors import StartupError

ROOT = Path(__file__).parents[3]
AGENT = "def agent(run):\n    return {name!r}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; the test's imports and the search path are reset afterwards."""
    known = set(sys.modules)
    # Without the root of this checkout: Python would import its folder ``service`` as a package.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != ROOT])
    monkeypatch.delitem(sys.modules, "service", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: Path, text: str) -> None:
    """Write a module and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(spec: str) -> Any:
    """Load an agent without its type, so that a test can call it with any argument."""
    return load_agent(spec)


def test_a_module_of_the_working_directory_is_found(folder: Path) -> None:
    """An agent in the working directory can be imported without another setting."""
    write(folder / "loaded_here.py", AGENT.format(name="here"))
    assert load("loaded_here:agent")(None) == "here"


def test_the_working_directory_comes_first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A module in the working directory wins over a module of the same name elsewhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "loaded_twice.py", AGENT.format(name="elsewhere"))
    sys.path.insert(0, str(elsewhere))
    write(folder / "loaded_twice.py", AGENT.format(name="here"))
    assert load("loaded_twice:agent")(None) == "here"


def test_packages_and_dotted_attributes_are_found(folder: Path) -> None:
    """The module may be inside a package, and the attribute may be an attribute of another object."""
    write(folder / "loaded_package/inner.py", "class Agents:\n    @staticmethod\n    def one(run):\n        return 1\n")
    assert load("loaded_package.inner:Agents.one")(None) == 1


def test_a_callable_object_is_an_agent(folder: Path) -> None:
    """An object with a __call__ method can be an agent, like a function."""
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
        ("class agent:\n    def __call__(self, run): ...", "agent", ["is the class agent", "`agent = agent()`"]),
        ("async def f(run): ...\nagent = f(None)", "agent", ["is a coroutine object", "name the function 'f'"]),
        ("def f(run): yield\nagent = f(None)", "agent", ["is a generator object", "name the function 'f'"]),
        ("async def f(run): yield\nagent = f(None)", "agent", ["is a generator object", "name the function 'f'"]),
        ("async def agent(): ...", "agent", ["takes no parameter", "`async def agent(run: Run) -> AgentResult:`"]),
        ("async def agent(): yield", "agent", ["takes no parameter", "`async def agent(run: Run) -> AgentResult:`"]),
        ("def agent(): yield", "agent", ["takes no parameter", "`async def agent(run: Run) -> AgentResult:`"]),
        ("async def agent(run, db): ...", "agent", ["takes the parameters (run, db)", "one argument, the run"]),
        ("def agent(*, run): ...", "agent", ["takes the parameters (*, run)", "one argument, the run"]),
        ("class A:\n    def __call__(self): ...\nagent = A()", "agent", ["takes no parameter"]),
    ],
    ids=[
        "no module",
        "the module's import fails",
        "not Python",
        "raises",
        "exits",
        "no attribute",
        "no inner attribute",
        "a string",
        "None",
        "a class",
        "a coroutine object",
        "a generator object",
        "an async generator object",
        "async without a parameter",
        "an async generator without a parameter",
        "a generator without a parameter",
        "two parameters",
        "a keyword parameter",
        "an object whose call takes no parameter",
    ],
)
def test_a_wrong_agent_is_refused(folder: Path, source: str | None, attribute: str, reasons: list[str]) -> None:
    """If a name leads to no agent, the error contains the name and the reason."""
    if source is not None:
        write(folder / "loaded_wrong.py", source)
    with pytest.raises(StartupError) as refusal:
        load_agent(f"loaded_wrong:{attribute}")
    assert f"'loaded_wrong:{attribute}'" in str(refusal.value)
    for reason in reasons:
        assert reason in str(refusal.value)


def test_the_error_names_the_working_directory(folder: Path) -> None:
    """The error names the working directory, because a wrong one is the usual mistake."""
    with pytest.raises(StartupError, match=str(folder)):
        load_agent("loaded_wrong:agent")


def test_the_cause_is_kept(folder: Path) -> None:
    """The exception of the user's module is the cause of the error, so that its traceback is shown."""
    write(folder / "loaded_raising.py", "raise ValueError('no licence')")
    with pytest.raises(StartupError) as refusal:
        load_agent("loaded_raising:agent")
    assert isinstance(refusal.value.__cause__, ValueError)


IN_A_TASK = """import asyncio
async def load():
    raise OSError('no server')
async def load_all():
    async with asyncio.TaskGroup() as group:
        group.create_task(load())
asyncio.run(load_all())
"""


@pytest.mark.parametrize(
    ("source", "reason", "line"),
    [
        ("import os\nimport loaded_nowhere", "ModuleNotFoundError: No module named 'loaded_nowhere'", 2),
        ("from json import nothing", "ImportError: cannot import name 'nothing' from 'json'", 1),
        ("x = 1\ndef agent(run) return 1", "SyntaxError: expected ':'", 2),
        ("def agent(run):\nreturn 1", "IndentationError: ", 2),
        (b"x = 1\ny = '\xff'", "SyntaxError: (unicode error) 'utf-8' codec can't decode byte 0xff", 2),
        (b"x = '\0'", "SyntaxError: source code string cannot contain null bytes", None),
        ("def load():\n    raise KeyError('API_KEY')\nload()", "KeyError: 'API_KEY'", 2),
        ("assert False", "AssertionError", 1),
        ("import json\njson.loads('{')", "JSONDecodeError: ", 2),
        ("import ast\n\nast.literal_eval('1 +')", "SyntaxError: invalid syntax", 3),
        ("import sys\nsys.exit('usage')", "SystemExit: usage", 2),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError", 2),
        (IN_A_TASK, "OSError: no server", 3),
        ("class Odd(Exception):\n    def __str__(self):\n        raise self\nraise Odd", "Odd: its text cannot", 4),
    ],
)
def test_an_import_error_shows_file_and_line_of_its_cause(
    folder: Path, source: str | bytes, reason: str, line: int | None
) -> None:
    """For every kind of error in the agent's module, the message has its class, text, file and line."""
    path = folder / "loaded_faulty.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(StartupError) as refusal:
        load_agent("loaded_faulty:agent")
    place = f"{path}, line {line}" if line else str(path)
    assert re.search(re.escape(reason) + r".*, at " + re.escape(place) + r"\b", str(refusal.value)), refusal.value


@pytest.mark.parametrize("source", ["\n\nimport loaded_nowhere", "\n\nx = = 1", "\n\nraise ValueError"])
def test_the_line_is_that_of_the_module_that_the_agents_module_imports(folder: Path, source: str) -> None:
    """If a module that the agent's module imports is faulty, the error shows the line of that module."""
    write(folder / "loaded_helper.py", source)
    write(folder / "loaded_by_helper.py", "import loaded_helper\n")
    with pytest.raises(StartupError, match=rf", at {re.escape(str(folder))}/loaded_helper\.py, line 3\b"):
        load_agent("loaded_by_helper:agent")


def test_an_error_that_a_library_raises_shows_both_lines(folder: Path) -> None:
    """If a library raises, the error shows the line of the user's module and the line of the library."""
    write(folder / "loaded_calling.py", "import json\njson.loads('{')")
    with pytest.raises(StartupError, match=r"loaded_calling\.py, line 2 \(raised at \S+decoder\.py, line \d+\)"):
        load_agent("loaded_calling:agent")


def test_an_attribute_that_raises_is_explained(folder: Path) -> None:
    """If reading the agent's attribute raises, the error has the reason and the line."""
    write(folder / "loaded_lazy.py", "def __getattr__(name):\n    raise RuntimeError('no key')\n")
    with pytest.raises(StartupError, match=r"RuntimeError: no key, at \S+loaded_lazy\.py, line 2"):
        load_agent("loaded_lazy:agent")


def test_a_module_may_use_asyncio_run(folder: Path) -> None:
    """A module that runs a coroutine to its end while it is imported gets the result."""
    write(
        folder / "loaded_running.py",
        "import asyncio\nasync def load():\n    return 7\n"
        "TOOLS = asyncio.run(load())\ndef agent(run):\n    return TOOLS\n",
    )
    assert load("loaded_running:agent")(None) == 7


def test_a_module_that_needs_a_running_loop_gets_advice(folder: Path) -> None:
    """If the agent's module needs a running event loop, the error says where to create what needs it."""
    write(folder / "loaded_needy.py", "import asyncio\nLOOP = asyncio.get_running_loop()\n")
    with pytest.raises(StartupError, match="imported before the event loop runs: create what needs the loop inside"):
        load_agent("loaded_needy:agent")


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
def test_async_agents_are_recognised(agent: Any, *, on_the_loop: bool) -> None:
    """Async functions, methods, callable objects and partials run on the event loop, and plain ones in a thread."""
    assert is_async(agent) == on_the_loop


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("service.agents:Run", "write agentstream.agents instead of service.agents"),
        ("service.adapters.command:x", "write agentstream.adapters.command instead of service.adapters.command"),
    ],
)
def test_the_old_name_of_the_package_gets_a_hint(folder: Path, spec: str, hint: str) -> None:
    """If the agent's name contains the old name of the package, the error gives the new name."""
    assert folder.exists()
    with pytest.raises(StartupError, match=hint):
        load_agent(spec)


def test_a_module_that_imports_the_old_name_gets_a_hint(folder: Path) -> None:
    """If the agent's module imports the package by its old name, the error gives the new name."""
    write(folder / "loaded_old.py", "from service.agents import AgentResult\n")
    with pytest.raises(StartupError, match="write agentstream instead of service"):
        load_agent("loaded_old:agent")


def test_a_package_of_the_user_called_service_gets_no_hint(folder: Path) -> None:
    """The error for a missing module of the user's own package ``service`` has no hint."""
    (folder / "service").mkdir()
    write(folder / "service" / "__init__.py", "")
    with pytest.raises(StartupError) as refusal:
        load_agent("service.billing:agent")
    assert "No module named 'service.billing'" in str(refusal.value)
    assert "called agentstream now" not in str(refusal.value)
