"""The rest of a JSON text whose beginning clients already have."""

import re
from typing import Final

import orjson

_FENCE: Final = re.compile(r"\A\s*```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)


def is_json_object(text: str) -> bool:
    """Return whether the text is one complete JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False


def rest_of_object(beginning: str, answer: str) -> str | None:
    """Return the text that completes ``beginning`` to a JSON object, from a model's answer; None if there is none.

    The answer is the rest, or the whole object that begins with the same characters. It may be in a Markdown fence,
    and have whitespace around it.
    """
    fenced = _FENCE.match(answer)
    for text in (answer, answer.strip(), fenced[1] if fenced else ""):
        if beginning and text.startswith(beginning) and is_json_object(text):
            return text[len(beginning) :]
        if is_json_object(beginning + text):
            return text
    return None
