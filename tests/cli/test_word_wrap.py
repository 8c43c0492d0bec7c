"""The word wrap of streamed text, on the screen of a terminal."""

from itertools import pairwise
from unicodedata import normalize

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.cli.terminal.word_wrap import WordWrap

COLUMNS = 24
TEXTS = st.lists(st.sampled_from(["a", "b", " ", "\n", "漢", "é", "e\u0301", "word"]), max_size=120).map("".join)


def screen(pieces: list[str], *, indent: int = 0) -> list[str]:
    """Return the rows of a terminal after these pieces of text were written to it."""
    terminal = pyte.Screen(COLUMNS, 200)
    stream = pyte.Stream(terminal)
    terminal.set_mode(pyte.modes.LNM)  # a terminal's driver sends CR before LF
    wrap = WordWrap(lambda: COLUMNS, indent=indent)
    stream.feed(indent * "-")
    for piece in pieces:
        stream.feed(wrap.feed(piece))
    return "\n".join(line.rstrip() for line in terminal.display).rstrip().split("\n")


def test_lines_break_between_words() -> None:
    """A word that does not fit is moved to the next line as a whole, also if it arrives in pieces."""
    text = "the quick brown fox jumps over the lazy dog"
    expected = ["the quick brown fox", "jumps over the lazy dog"]
    assert screen([text]) == expected
    assert screen(list(text)) == expected


def test_a_word_longer_than_a_line_is_cut() -> None:
    """A word that fits on no line, such as a long URL, begins on a new line and is cut at the edge."""
    assert screen(["see " + "x" * 50]) == ["see", "x" * 23, "x" * 23, "x" * 4]


def test_wide_characters_break_anywhere() -> None:
    """Chinese and Japanese text, which has no spaces, breaks between two characters."""
    assert [line.replace(" ", "") for line in screen(["漢" * 20])] == ["漢" * 11, "漢" * 9]


def test_following_lines_are_indented() -> None:
    """With an indent, the following lines begin below the first text."""
    assert screen(["one two three four five six"], indent=4) == ["----one two three four", "    five six"]


def test_code_is_not_wrapped() -> None:
    """Lines in a code fence keep their line ends; text after the fence is wrapped again."""
    code = "print('a long line of code', end='')"
    wrap = WordWrap(lambda: COLUMNS)
    text = f"code:\n```python\n{code}\n```\n"
    assert wrap.feed(text) == text
    assert "\n" in wrap.feed("and now a text that is longer than a line")


def test_without_a_terminal_nothing_changes() -> None:
    """Without a width the text stays as it is."""
    text = "word " * 50
    assert WordWrap(lambda: None).feed(text) == text


@given(TEXTS, st.lists(st.integers(0, 120), max_size=5))
def test_the_screen_shows_all_words_in_order(text: str, cuts: list[int]) -> None:
    """However the text is cut into pieces, the screen is the same and shows every character in order."""
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    whole = screen([text])
    assert screen(pieces) == whole
    shown = "".join("".join(whole).split())
    assert normalize("NFC", shown) == normalize("NFC", "".join(text.split()))


@pytest.mark.parametrize("ending", ["", " ", "  ", "\n", " \n"])
def test_a_space_at_the_edge_makes_no_empty_line(ending: str) -> None:
    """A space or a line end that follows a full line adds no empty line."""
    full = "x" * (COLUMNS - 1)
    assert screen([full + ending + "y"]) == ([full, "y"] if ending else ["x" * (COLUMNS - 1), "y"])
