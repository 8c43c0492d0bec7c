"""A command in a terminal of its own: a real pty, its screen, and somebody who types."""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping

import pyte

from tests.cli.conftest import command_environment
from tests.helpers import TIMEOUT_S

# Makes the pty the controlling terminal, so that ctrl-C typed there is a signal.
_LOGIN = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Terminal:
    """A screen of some rows and columns, and the process that has it."""

    def __init__(self, process: asyncio.subprocess.Process, master: int, rows: int, columns: int) -> None:
        self.process = process
        self._master = master
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)
        self.output = ""

    @property
    def lines(self) -> list[str]:
        """What is seen, row by row."""
        return [line.rstrip() for line in self._screen.display]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Make the window another size, as a terminal does: margins are forgotten."""
        self._screen.resize(rows, columns)
        self._screen.set_margins()
        set_size(self._master, rows, columns)

    async def until(self, seen: Callable[[list[str]], object]) -> None:
        """Return once the screen's lines are as wanted; fails with what is seen instead."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                while not seen(self.lines):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError("\n".join(self.lines)) from None

    async def until_text(self, pattern: str) -> re.Match[str]:
        """Return the first match in what is seen."""

        def find(lines: list[str]) -> re.Match[str] | None:
            return re.search(pattern, "\n".join(lines).rstrip())

        await self.until(find)
        match = find(self.lines)
        assert match
        return match

    async def ended(self) -> int:
        """Return the exit code."""
        async with asyncio.timeout(2 * TIMEOUT_S):
            return await self.process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError as exc:  # nobody has the other side any more
            if exc.errno != errno.EIO:
                raise
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.output += data.decode(errors="replace")
        self._stream.feed(data)
        self._news.set()


def set_size(descriptor: int, rows: int, columns: int) -> None:
    """Tell a terminal how large it is; who has it gets SIGWINCH."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.asynccontextmanager
async def terminal(
    *arguments: str, rows: int = 24, columns: int = 100, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Terminal]:
    """Run ``agentstream <arguments>`` in a terminal; ends it with SIGTERM if it has not ended."""
    master, slave = os.openpty()
    set_size(slave, rows, columns)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _LOGIN,
        "-m",
        "agentstream",
        *arguments,
        env=command_environment(TERM="xterm", COLUMNS="", **(settings or {})),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = Terminal(process, master, rows, columns)
    try:
        yield shown
    finally:
        if process.returncode is None:
            process.terminate()
        await shown.ended()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
