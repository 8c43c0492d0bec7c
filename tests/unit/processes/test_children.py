"""Child processes that end: which of them are started again, and with which exit code their parent gives up."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from agentstream.processes import children
from agentstream.processes.children import MAX_FAILED_STARTS, Child, Children
from tests.helpers import TIMEOUT_S

# Ends with the next code of a file; the last one counts for all later starts.
PROGRAM = """
import pathlib, sys, os
file = pathlib.Path(sys.argv[1])
codes = file.read_text().split()
file.write_text(" ".join(codes[1:] or codes))
code = int(codes[0])
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(children, "MAX_BACKOFF_S", 0.001)
    monkeypatch.setattr(children, "START_S", TIMEOUT_S)


class Parent:
    """A parent of one child that ends with these codes, one after the other."""

    def __init__(self, folder: Path, codes: str) -> None:
        file = folder / "codes"
        file.write_text(codes)
        self.lines: list[str] = []
        self.stop = asyncio.Event()
        self.starts_until_stop = 0
        self._starts = 0
        self.child = Child(
            name="child", command=[sys.executable, "-c", PROGRAM, str(file)], env=os.environ, on_end=self._count
        )
        self._children = Children(
            [self.child], drain_timeout_s=0, print_line=self.lines.append, at_once=asyncio.Event()
        )

    def _count(self) -> None:
        self._starts += 1
        if self._starts == self.starts_until_stop:
            self.stop.set()

    async def serve(self, *, ready: bool = True) -> int:
        """Serve until the parent gives up or stops, and return the exit code."""

        async def never_ready() -> None:
            await asyncio.get_running_loop().create_future()

        async with asyncio.timeout(TIMEOUT_S):
            return await self._children.serve(self.stop, announce=None if ready else never_ready)


async def test_a_child_that_fails_in_the_same_way_at_each_start_is_given_up(tmp_path: Path) -> None:
    """After a number of starts that end with the same code, the parent says so and exits with 1."""
    parent = Parent(tmp_path, "7")
    assert await parent.serve() == 1
    assert sum("starting it again" in line for line in parent.lines) == MAX_FAILED_STARTS - 1
    assert f"ended with code 7 right after each of its last {MAX_FAILED_STARTS} starts" in parent.lines[-1]


@pytest.mark.parametrize("codes", ["7 8 7 8 7 8 7 8 7 8 7 8", "-9", "3", "7 7 7 7 -9 7 7 7 7 -9 7"])
async def test_other_ends_are_followed_by_another_start(tmp_path: Path, codes: str) -> None:
    """A child is started again if it fails in different ways, was killed, or cannot reach Redis."""
    parent = Parent(tmp_path, codes)
    parent.starts_until_stop = 2 * MAX_FAILED_STARTS
    assert await parent.serve() == 0


async def test_a_child_that_has_worked_is_started_again_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that has once run for long is started again, however often it then fails."""
    monkeypatch.setattr(children, "HEALTHY_AFTER_S", 0)
    parent = Parent(tmp_path, "7")
    parent.starts_until_stop = 2 * MAX_FAILED_STARTS
    assert await parent.serve() == 0


@pytest.mark.parametrize(("code", "said"), [("2", "refused to start"), ("3", "cannot reach Redis")])
async def test_the_reason_of_a_failed_start_is_the_exit_code(tmp_path: Path, code: str, said: str) -> None:
    """If a child refuses its settings or cannot reach Redis before all are ready, the parent exits with its code."""
    parent = Parent(tmp_path, code)
    assert await parent.serve(ready=False) == int(code)
    assert said in parent.lines[-1]
