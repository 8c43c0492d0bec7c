"""The tool that counts the words, characters, lines and sentences of a text."""

import re
from collections import Counter
from typing import Any, ClassVar

from agentstream.tools.base import ToolError

# Counting blocks the event loop for about 0.2 s per million characters, so for at most 40 ms.
MAX_LENGTH_CHARS = 200_000
MOST_FREQUENT = 5

_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['’-]\w+)*")  # noqa: RUF001 -- the typographic apostrophe is meant
# A mark ends a sentence only before a space, a closing quote or the end of the text: 3.14 and example.org do not.
# A series of marks is matched only at its first mark; matching at each mark would take quadratic time.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++(?=[\s\"'”’)\]]|$)|[。！？]+")  # noqa: RUF001 -- full-width marks are meant


class TextStatistics:
    """The tool: it counts the characters, words, lines and sentences of ``{"text": ...}`` and its frequent words."""

    name = "text_statistics"
    read_only = True
    description = "Count the characters, words, lines and sentences of a text, and list its most frequent words."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"text": {"type": "string", "description": "the text itself"}},
        "required": ["text"],
        "additionalProperties": False,
    }

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return one line, for example ``2 words, 11 characters (10 without spaces), 1 line, 1 sentence; ...``.

        Raises ToolError if the text is too long.
        """
        return describe(arguments["text"])


def describe(text: str) -> str:
    """Return the statistics of ``text`` in one line; raises ToolError if it is too long.

    A character is a Unicode code point. A sentence ends with ``.``, ``!``, ``?`` or a similar mark. Words after the
    last mark count as one more sentence. Words that differ only in case count as the same word.
    """
    if len(text) > MAX_LENGTH_CHARS:
        message = f"the text has {len(text)} characters; at most {MAX_LENGTH_CHARS} can be counted in one call"
        raise ToolError(message)
    words = [word.casefold() for word in _WORD.findall(text)]
    without_spaces = sum(not character.isspace() for character in text)
    counts = [
        _counted(len(words), "word"),
        f"{_counted(len(text), 'character')} ({without_spaces} without spaces)",
        _counted(len(text.splitlines()), "line"),
        _counted(_sentences(text), "sentence"),
    ]
    frequent = ", ".join(f"{word} ({count})" for word, count in Counter(words).most_common(MOST_FREQUENT))
    return ", ".join(counts) + (f"; most frequent words: {frequent}" if frequent else "")


def _sentences(text: str) -> int:
    sentences, position = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if _WORD.search(text, position, end.start()):
            sentences += 1
        position = end.end()
    return sentences + bool(_WORD.search(text, position))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
