"""Tells an agent's author about events that clients see only if they ask for them."""

import difflib
import logging
import re
from typing import Final

from agentstream.protocol.events import HIDDEN_EVENTS, NAMED_EVENTS, OPTIONAL_EVENTS

log = logging.getLogger(__name__)

# An agent may make a new type for each run. After so many types this process warns no more.
MAX_WARNED_TYPES: Final = 100
# Other words for the parts of a named event's type. "tool_call_begin" is closer to "tool_call_end" than to
# "tool_call_start" by its letters alone.
_SYNONYMS: Final = {
    "begin": "start", "began": "start", "begun": "start", "started": "start", "starting": "start",
    "finish": "end", "finished": "end", "done": "end", "ended": "end", "stop": "end", "complete": "end",
    "completed": "end", "result": "end", "error": "end", "failed": "end",
    "tools": "tool", "function": "tool", "calls": "call", "calling": "call", "use": "call",
    "llm": "inference", "model": "inference", "generation": "inference", "turns": "turn",
}  # fmt: skip
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_CLOSE: Final = 0.84  # the ratio from which two types differ by a slip of the pen

# agentstream itself emits these types.
_OWN_TYPES: Final = OPTIONAL_EVENTS | HIDDEN_EVENTS

_warned: set[str] = set()


def warn_if_unseen(event_type: str) -> None:
    """Log one warning per type in this process for an event that clients do not receive without asking."""
    if event_type in NAMED_EVENTS or event_type in _OWN_TYPES or event_type in _warned:
        return
    if len(_warned) >= MAX_WARNED_TYPES:
        return
    _warned.add(event_type)
    similar = similar_type(event_type)
    log.warning(
        "a client receives events of type %r only if it asks for them, with the header X-Agent-Event-Types: %s, or if "
        "the front end's AGENTSTREAM_EVENT_TYPES names them%s. Every client receives the types %s",
        event_type,
        event_type,
        f"; did you mean {similar!r}?" if similar else "",
        ", ".join(sorted(NAMED_EVENTS)),
    )


def similar_type(event_type: str) -> str | None:
    """Return the type of a named event that this type is probably meant to be, or None."""
    words = [_SYNONYMS.get(word.lower(), word.lower()) for word in _WORDS.findall(event_type)]
    for meant in (words, [*words, "start"]):
        for named in sorted(NAMED_EVENTS):
            if len(meant) > 1 and meant[-1] == named.split("_")[-1] and _are_among(meant, named.split("_")):
                return named
    close = difflib.get_close_matches("_".join(words), NAMED_EVENTS, n=1, cutoff=_CLOSE)
    return close[0] if close and event_type not in _OWN_TYPES else None


def _are_among(words: list[str], others: list[str]) -> bool:
    """Return whether ``others`` has these words in the same order, perhaps with more words between them."""
    left = iter(others)
    return all(word in left for word in words)
