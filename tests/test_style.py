"""The rules of this codebase that a linter does not check."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 450  # a longer file does more than one thing

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(folder: str, *suffixes: str) -> list[Path]:
    """Return the files of a folder that have one of these suffixes."""
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def named(path: Path) -> str:
    """Return the path as the id of a test."""
    return path.relative_to(ROOT).as_posix()


each_module = pytest.mark.parametrize("path", files("service", ".py"), ids=named)
each_python_file = pytest.mark.parametrize("path", files("service", ".py") + files("tests", ".py"), ids=named)
each_source = pytest.mark.parametrize(
    "path",
    files("service", ".py", ".lua", ".js", ".css", ".html") + files("tests", ".py", ".js"),
    ids=named,
)


def functions_that_test(source: str) -> Iterator[Function]:
    """Yield the test functions of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and node.name.startswith("test"):
            yield node


def is_one_sentence(docstring: str | None) -> bool:
    """Return whether a docstring is one sentence, on one line or wrapped."""
    text = " ".join((docstring or "").splitlines())
    return "  " not in text and re.fullmatch(r"\S(?:(?![.!?] [A-Z]).)*\.", text) is not None


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each comment."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def loose_ends(source: str) -> list[str]:
    """Return the comments that postpone work, or that switch a check off without a reason."""
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|\bpragma\b(?!.* -- \S)")
    return [f"line {line}: {text}" for line, text in comments(source) if marks.search(text)]


def unexplained_skips(source: str) -> list[str]:
    """Return the places where a test is skipped, or expected to fail, without a reason."""
    tree = ast.parse(source)
    explained = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        if any(keyword.arg == "reason" for keyword in node.keywords)
        or (ast.unparse(node.func) in {"pytest.skip", "pytest.xfail", "pytest.fail"} and node.args)
    }
    skips = re.compile(r"pytest\.(?:mark\.)?(?:skip|skipif|xfail|importorskip)")
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and skips.fullmatch(ast.unparse(node)) and id(node) not in explained
    ]


@pytest.mark.parametrize("path", files("tests", ".py"), ids=named)
def test_every_test_says_what_it_promises(path: Path) -> None:
    """The docstring of each test is one sentence on the promised behaviour."""
    functions = functions_that_test(path.read_text(encoding="utf-8"))
    assert [node.name for node in functions if not is_one_sentence(ast.get_docstring(node))] == []


@each_source
def test_no_file_is_too_long(path: Path) -> None:
    """No file of the service or of the tests is longer than the limit."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_module_is_called_utils() -> None:
    """No module has a name that says nothing about its content, for example utils."""
    python = files("service", ".py") + files("tests", ".py")
    assert [path for path in python if path.stem in {"util", "utils", "misc", "common"}] == []


@each_module
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """Every module of the service begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", files("service", ".lua"), ids=named)
def test_every_script_says_what_it_is_for(path: Path) -> None:
    """The first line of each Lua script is a comment that states its purpose in one sentence."""
    assert re.match(r"-- [A-Z][^\n]{10,}\.$", path.read_text(encoding="utf-8"), re.MULTILINE)


@each_python_file
def test_no_work_is_postponed_and_no_check_is_off_without_a_reason(path: Path) -> None:
    """No file has a note of unfinished work, a pragma without a reason, or a skipped test without a reason."""
    source = path.read_text(encoding="utf-8")
    assert loose_ends(source) + unexplained_skips(source) == []


@pytest.mark.parametrize(
    ("docstring", "fine"),
    [
        ("It holds.", True),
        ("It holds, e.g. for\nwrapped lines: 1.5 times.", True),
        (None, False),
        ("No full stop", False),
        ("One. Two.", False),
        ("One.\n\nMore of it.", False),
    ],
)
def test_one_sentence_is_recognised(docstring: str | None, *, fine: bool) -> None:
    """One sentence ends with a full stop, and has no second sentence and no blank line."""
    assert is_one_sentence(docstring) == fine


@pytest.mark.parametrize(
    "line",
    [
        "x = 1  # TODO: later",
        "# FIXME",
        "x = 1  # pragma: no cover",
        "@pytest.mark.skip\ndef f(): pass",
        "@pytest.mark.skipif(True)\ndef f(): pass",
        "pytest.skip()",
        "x = pytest.mark.xfail(strict=True)",
    ],
)
def test_unexplained_pragmas_and_skips_are_found(line: str) -> None:
    """A note of unfinished work, a pragma without a reason and a skip without a reason are found."""
    assert loose_ends(line) + unexplained_skips(line)


@pytest.mark.parametrize(
    "line",
    [
        'x = "TODO"',
        "x = 1  # pragma: no cover -- runs in a child process",
        '@pytest.mark.skipif(True, reason="no fork")\ndef f(): pass',
        'pytest.skip("no openssl")',
    ],
)
def test_explained_pragmas_and_skips_are_not_reported(line: str) -> None:
    """Strings, and pragmas and skips with a reason, are not reported."""
    assert loose_ends(line) + unexplained_skips(line) == []
