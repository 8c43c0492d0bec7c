"""Runs a command in its own terminal: a real pty, its screen and typed keys."""

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

# Makes the pty the controlling terminal, so that a typed ctrl-C sends a signal.
_LOGIN = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Terminal:
    """A process in a terminal, and the screen of the terminal."""

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
        """The rows of the screen."""
        return [line.rstrip() for line in self._screen.display]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Resize the window. Like a terminal, this resets the scroll margins."""
        self._screen.resize(rows, columns)
        self._screen.set_margins()
        set_size(self._master, rows, columns)

    def close_window(self) -> None:
        """Close the terminal: its foreground processes get SIGHUP, and can neither read nor write it."""
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._master = -1

    async def until(self, matches: Callable[[list[str]], object]) -> None:
        """Wait until the rows of the screen match. Fails with the rows of the screen."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                while not matches(self.lines):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError("\n".join(self.lines)) from None

    async def until_text(self, pattern: str) -> re.Match[str]:
        """Wait until the text of the screen matches, and return the first match."""

        def find(lines: list[str]) -> re.Match[str] | None:
            return re.search(pattern, "\n".join(lines).rstrip())

        await self.until(find)
        match = find(self.lines)
        assert match
        return match

    async def ended(self) -> int:
        """Wait until the process has ended and return its exit code."""
        async with asyncio.timeout(2 * TIMEOUT_S):
            return await self.process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError as exc:  # the other side of the pty is closed
            if exc.errno != errno.EIO:
                raise
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.output += data.decode(errors="replace")
        self._stream.feed(data)
        self._news.set()


def set_size(descriptor: int, rows: int, columns: int) -> None:
    """Set the size of a terminal. Its processes get SIGWINCH."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.asynccontextmanager
async def terminal(
    *arguments: str, rows: int = 24, columns: int = 100, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Terminal]:
    """Run ``agentstream <arguments>`` in a terminal. On exit, stop it with SIGTERM if it still runs."""
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
        shown.close_window()
