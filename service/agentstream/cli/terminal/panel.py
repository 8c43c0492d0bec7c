"""A panel: rows at the bottom of a terminal that stay in place while other output scrolls above them.

The terminal does not scroll the rows below its scroll region (DECSTBM; every terminal since the VT100 knows it). So
other processes can write to the same terminal directly. Their output does not pass through this process.
"""

import os
from collections.abc import Sequence
from typing import Final, Self, TextIO

from agentstream.config import terminal_type

# Without this many rows above the panel, there is no panel: log lines are more important.
MIN_SCROLL_ROWS: Final = 4

_SAVE_CURSOR, _RESTORE_CURSOR = "\x1b7", "\x1b8"
_RESET_SCROLL_REGION: Final = "\x1b[r"
_CLEAR_BELOW: Final = "\x1b[J"
_REVERSED, _RESET_ATTRIBUTES = "\x1b[7m", "\x1b[0m"


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that understands escape sequences."""
    return stream.isatty() and terminal_type() != "dumb"


class Panel:
    """Reserves rows of a terminal. A context manager that frees them. Raises OSError if the terminal has closed."""

    def __init__(self, stream: TextIO, height: int) -> None:
        """Prepare a panel of ``height`` rows. The first ``show`` reserves them."""
        self._stream = stream
        self._height = height
        self._size: os.terminal_size | None = None

    def __enter__(self) -> Self:
        """Return the panel."""
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the panel and let the whole screen scroll again."""
        if self._fits():
            first = self._first_row()
            self._write(f"{_SAVE_CURSOR}{_RESET_SCROLL_REGION}\x1b[{first};1H{_CLEAR_BELOW}{_RESTORE_CURSOR}")
        self._size = None

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines, one for each row of the panel. Each is truncated to the width of the terminal."""
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
        """Scroll the panel's rows free and let only the other rows scroll.

        Setting a scroll region moves the cursor, so its position is saved and restored.
        """
        reset = f"{_SAVE_CURSOR}{_RESET_SCROLL_REGION}{_RESTORE_CURSOR}{_CLEAR_BELOW}"
        if not self._fits():
            self._write(reset)
            return
        room = "\n" * self._height + f"\x1b[{self._height}A"
        self._write(f"{reset}{room}{_SAVE_CURSOR}\x1b[1;{self._first_row() - 1}r{_RESTORE_CURSOR}")

    def _first_row(self) -> int:
        assert self._size is not None  # noqa: S101 -- narrows the type
        return self._size.lines - self._height + 1

    def _fits(self) -> bool:
        return self._size is not None and self._size.lines >= self._height + MIN_SCROLL_ROWS

    def _write(self, text: str) -> None:
        """Write in one system call, so that output of other processes cannot split it."""
        self._stream.flush()
        os.write(self._stream.fileno(), text.encode())
