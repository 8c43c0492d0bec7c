"""The files of the page are small, load nothing from elsewhere, and use what browsers have had for three years."""

import re
from pathlib import Path

import pytest

from agentstream import errors
from agentstream.telemetry.names import REJECTIONS
from tests.processes import ROOT

FOLDER = ROOT / "service/agentstream/frontend/page/static"
FILES = sorted(FOLDER.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
STYLES = [path for path in FILES if path.suffix == ".css"]

# Safari 17.0, Firefox 119 or Chrome 119 lack these, or a page on plain http does.
NEWER_SCRIPT = (
    r"AbortSignal\.(any|timeout)|URL\.(canParse|parse)|WellFormed\(|structuredClone|\.at\(|\.findLast|\.toSorted"
    r"|Object\.(groupBy|hasOwn)|Promise\.(withResolvers|try)|randomUUID|\.checkVisibility|startViewTransition"
    r"|requestIdleCallback|requestSubmit|keepalive|\(\?<[=!]|/v\b|for await \(const \w+ of \w+\.body|\.setHTML"
)
NEWER_STYLE = r":has\(|light-dark\(|color-mix\(|@(layer|scope|container|starting-style|property)|^\s*&|\banchor\("


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short(path: Path) -> None:
    """A file of the page has one purpose and fewer than 450 lines."""
    assert path.read_text().count("\n") < 450


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_files_use_nothing_newer(path: Path) -> None:
    """No script or style uses an interface that a browser of the last three years lacks."""
    newer = NEWER_SCRIPT if path.suffix == ".js" else NEWER_STYLE
    code = re.sub(r"(?ms)/\*.*?\*/|//[^\n]*", "", path.read_text())
    assert [line for line in code.splitlines() if re.search(newer, line)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_touch_storage_only_through_one_module(path: Path) -> None:
    """Only storage.js touches the storage of the browser, which may be blocked or full."""
    uses = re.findall(r"\b(?:session|local)Storage\b", path.read_text())
    assert not uses or path.name == "storage.js"


def test_every_error_code_has_a_sentence() -> None:
    """The page has a sentence for each code of a failed run, and for each code of a refused request."""
    (table,) = re.findall(r"(?s)const WORDS = .*?\}\)\)", (FOLDER / "failures.js").read_text())
    codes = {*errors.FAILURE_MEANINGS, *REJECTIONS, "headers_too_large"} - {"other", "invalid_request_error"}
    assert codes - set(re.findall(r"(?m)^  (\w+):", table)) == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_only_their_neighbours(path: Path) -> None:
    """A script imports only files of its folder, by relative names."""
    imported = re.findall(r'from "([^"]+)"', path.read_text())
    assert [name for name in imported if not (path.parent / name).is_file() or not name.startswith("./")] == []
