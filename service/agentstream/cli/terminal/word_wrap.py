"""Wraps streamed text between words at the width of a terminal. It shows each character at once.

A terminal itself breaks a line inside a word. Here a word that reaches the edge is erased and written again on the next
line. Text in Markdown's code fences stays as it is, so that copied code has no extra line ends.
"""

import os
import unicodedata
from collections.abc import Callable
from typing import Final, TextIO

from agentstream.cli.terminal.panel import is_terminal

MIN_COLUMNS: Final = 20  # in a narrower terminal, words do not fit anyway

_FENCES: Final = ("```", "~~~")
_FENCE_CHARS: Final = 3
_TAB: Final = 8


def terminal_columns(stream: TextIO) -> int | None:
    """Return the width of the terminal that ``stream`` writes to, or None if it is no terminal or a narrow one."""
    if not is_terminal(stream):
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:  # the terminal has closed
        return None
    return columns if columns >= MIN_COLUMNS else None


class WordWrap:
    """Wraps one stream of text. ``columns`` returns the current width, or None for no wrapping."""

    def __init__(self, columns: Callable[[], int | None], *, indent: int = 0) -> None:
        """Start at the beginning of a line. Every line after the first is indented by ``indent`` spaces."""
        self._columns = columns
        self._indent = indent
        self._in_fence = False
        self.restart()

    def restart(self) -> None:
        """Begin a line, of which the first ``indent`` columns are already taken."""
        self._column = self._indent
        self._word = ""  # the word that ends at the cursor
        self._line_start = ""

    def feed(self, text: str) -> str:
        """Return what to write to the terminal for the next piece of text."""
        columns = self._columns()
        # The last column stays free: a cursor behind it is in a state that terminals treat differently.
        return text if columns is None else "".join(self._place(char, columns - 1) for char in text)

    def _place(self, char: str, limit: int) -> str:
        if char == "\n":
            if self._line_start in _FENCES:
                self._in_fence = not self._in_fence
            self.restart()
            return "\n" + self._indent * " "
        if len(self._line_start) < _FENCE_CHARS and not (char == " " and not self._line_start):
            self._line_start += char
        if self._in_fence:
            return char
        cells = _TAB - self._column % _TAB if char == "\t" else _cells(char)
        if char in " \t":
            self._word = ""
            if self._column + cells > limit:
                self._column = limit  # the next word starts a new line, which needs no space
                return ""
            self._column += cells
            return char
        moved = ""
        if self._column + cells > limit:
            moved = self._start_line(cells, limit)
        self._column += cells
        # A line may break after every wide character: Chinese and Japanese have no spaces.
        self._word = "" if cells > 1 else self._word + char
        return moved + char

    def _start_line(self, cells: int, limit: int) -> str:
        """Begin a new line and move the word at the cursor there, if the whole word fits into one line."""
        word, self._word, self._column = self._word, "", self._indent
        new_line = "\n" + self._indent * " "
        shown = sum(map(_cells, word))
        if not word or self._indent + shown + cells > limit:
            return new_line
        self._word, self._column = word, self._indent + shown
        return f"\x1b[{shown}D\x1b[K{new_line}{word}"


def _cells(char: str) -> int:
    """Return the number of columns that a character takes."""
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
