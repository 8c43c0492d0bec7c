"""A few rows at the bottom of a terminal that stay, while everything else scrolls above them.

The rows below the terminal's scroll region (DECSTBM, known to every terminal since the VT100) are not scrolled. So
other processes may go on writing to the same terminal, and need not know: nothing is piped through us.
"""

import os
from collections.abc import Sequence
from typing import Final, Self, TextIO

from agentstream.config import terminal_type

# Fewer rows than this above it, and there is no panel: the log matters more.
MIN_SCROLL_ROWS: Final = 4

_SAVE_CURSOR, _RESTORE_CURSOR = "\x1b7", "\x1b8"
_RESET_SCROLL_REGION: Final = "\x1b[r"
_CLEAR_BELOW: Final = "\x1b[J"
_REVERSED, _RESET_ATTRIBUTES = "\x1b[7m", "\x1b[0m"


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that obeys escape sequences."""
    return stream.isatty() and terminal_type() != "dumb"


class Panel:
    """The rows; a context manager that gives them back. Raises OSError once the terminal is gone."""

    def __init__(self, stream: TextIO, height: int) -> None:
        """Take a terminal; its rows are taken by the first ``show``."""
        self._stream = stream
        self._height = height
        self._size: os.terminal_size | None = None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the whole screen scroll again."""
        if self._fits():
            first = self._first_row()
            self._write(f"{_SAVE_CURSOR}{_RESET_SCROLL_REGION}\x1b[{first};1H{_CLEAR_BELOW}{_RESTORE_CURSOR}")
        self._size = None

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines, as many as there are rows, each cut at the terminal's width."""
        size = os.get_terminal_size(self._stream.fileno())
        if size != self._size:
            self._size = size
            self._reserve_rows()
        if not self._fits():
            return
        rows = [
            f"\x1b[{row};1H{_REVERSED}{line[: size.columns].ljust(size.columns)}{_RESET_ATTRIBUTES}"
            for row, line in enumerate(lines, self._first_row())
        ]
        self._write(_SAVE_CURSOR + "".join(rows) + _RESTORE_CURSOR)

    def _reserve_rows(self) -> None:
        """Free the rows, wherever the cursor is, and let the others scroll. To set a region moves the cursor."""
        anew = f"{_SAVE_CURSOR}{_RESET_SCROLL_REGION}{_RESTORE_CURSOR}{_CLEAR_BELOW}"
        if not self._fits():
            self._write(anew)
            return
        room = "\n" * self._height + f"\x1b[{self._height}A"
        self._write(f"{anew}{room}{_SAVE_CURSOR}\x1b[1;{self._first_row() - 1}r{_RESTORE_CURSOR}")

    def _first_row(self) -> int:
        assert self._size is not None  # noqa: S101 -- narrows the type
        return self._size.lines - self._height + 1

    def _fits(self) -> bool:
        return self._size is not None and self._size.lines >= self._height + MIN_SCROLL_ROWS

    def _write(self, text: str) -> None:
        """Write in one piece: what other processes write goes before or after it."""
        self._stream.flush()
        os.write(self._stream.fileno(), text.encode())
