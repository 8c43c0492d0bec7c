"""The watch of source files: which files it watches, and which changes it reports."""

import asyncio
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentstream.processes import file_watch
from agentstream.processes.file_watch import FileWatch
from tests.helpers import TIMEOUT_S


def write(path: Path, text: str = "x = 1\n") -> Path:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


async def changed_by(watch: FileWatch, act: Callable[[], object]) -> list[Path]:
    """Return the next reported files after ``act``."""
    act()
    async with asyncio.timeout(TIMEOUT_S):
        return list(await anext(watch.changes()))


def test_files_of_tools_are_not_watched(tmp_path: Path) -> None:
    """Python files count, but not those in hidden folders, caches, virtual environments and installed packages."""
    for name in ("agent.py", "package/tool.py"):
        write(tmp_path / name)
    for name in (
        ".git/hook.py",
        "__pycache__/a.py",
        "node_modules/b/c.py",
        "lib/site-packages/d.py",
        "env/pyvenv.cfg",
        "env/e.py",
        "notes.txt",
        "data.json",
    ):
        write(tmp_path / name)
    assert FileWatch(tmp_path).count == 2


@pytest.mark.parametrize(
    "act",
    [
        lambda file: write(file, "x = 2\n"),
        lambda file: file.unlink(),
        lambda file: write(file.with_suffix(".tmp"), "x = 3\n").rename(file),  # as editors save
    ],
    ids=["written", "removed", "replaced"],
)
async def test_a_change_is_reported(tmp_path: Path, act: Callable[[Path], object]) -> None:
    """A file that was written, removed or replaced is reported, even if its size is the same as before."""
    file = write(tmp_path / "package" / "agent.py")
    write(tmp_path / "other.py")
    assert await changed_by(FileWatch(tmp_path), lambda: act(file)) == [file]


async def test_new_files_and_named_files_are_reported(tmp_path: Path) -> None:
    """A new Python file is reported, and so is a change of a named file of another kind."""
    named = write(tmp_path / "mcp.json", "{}")
    watch = FileWatch(tmp_path, [named])

    def act() -> None:
        write(tmp_path / "new.py")
        write(named, "{ }")

    assert set(await changed_by(watch, act)) <= {named, tmp_path / "new.py"}


async def test_changes_that_follow_each_other_are_one(tmp_path: Path) -> None:
    """Files that are written within a moment are reported together."""
    files = [write(tmp_path / f"{number}.py") for number in range(5)]
    watch = FileWatch(tmp_path)
    reported = await changed_by(watch, lambda: [write(file, "x = 22\n") for file in files])
    assert reported == files


async def test_python_does_not_use_old_bytecode(tmp_path: Path) -> None:
    """The bytecode of a changed file is removed: Python takes it for current if time in seconds and size are equal."""
    file = write(tmp_path / "agent.py")
    bytecode = write(Path(importlib.util.cache_from_source(str(file))))
    watch = FileWatch(tmp_path)
    seconds = file.stat().st_mtime

    def act() -> None:
        write(file, "x = 2\n")
        os.utime(file, (seconds, seconds + 1e-3))

    assert await changed_by(watch, act) == [file]
    assert not bytecode.exists()


@pytest.mark.parametrize("bound", ["MAX_FILES", "MAX_FOLDERS"])
def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """In a large folder the watch stops at its bounds and says so."""
    for number in range(5):
        write(tmp_path / f"folder{number}" / "agent.py")
    assert not FileWatch(tmp_path).truncated
    monkeypatch.setattr(file_watch, bound, 3)
    watch = FileWatch(tmp_path)
    assert watch.truncated
    assert watch.count <= 3
