"""Shortens a conversation to fit a model's context window; the least important parts go first."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

Message = dict[str, Any]

# The model has already used an old tool result. Its beginning and its end are enough to recognise it.
OLD_RESULT_CHARS: Final = 1000
# The results of the latest turn keep at least this length. The model could not use a shorter piece.
LEAST_RESULT_CHARS: Final = 200
# Models count an image by its tiles (about 1,000 tokens), not by the length of its data URL.
IMAGE_CHARS: Final = 4000
MESSAGE_CHARS: Final = 16  # role and separators of each message
NOTE_CHARS: Final = 50  # the note that replaces the cut text


@dataclass(frozen=True, slots=True)
class TrimResult:
    """A shorter conversation, with the numbers of shortened tool results and dropped messages."""

    messages: list[Message]
    results_shortened: int
    messages_dropped: int


def size_of(messages: Sequence[Message]) -> int:
    """Return a conversation's size in characters; each image counts as ``IMAGE_CHARS``."""
    return sum(_size(message) for message in messages)


def trim(messages: Sequence[Message], target_chars: int, keep: Collection[int]) -> TrimResult | None:
    """Return the conversation shortened to about ``target_chars``, or None if nothing can be removed.

    The result can be longer than ``target_chars``: system and developer messages are never changed, nor are the
    messages whose ``id()`` is in ``keep`` (the question that the model must answer). The other messages are shortened
    in these steps, the oldest first, until the conversation is short enough:

    1. Cut tool results to their beginning and end, except those of the latest turn.
    2. Drop whole exchanges (a user message and all messages up to the next one) before the first message to keep.
    3. Drop whole turns (calls with their results) after it, except the latest.
    4. Cut the results of the latest turn to their beginning and end.

    A call and its results are dropped together, because model servers refuse one without the other.
    """
    trimming = _Trimming(messages, keep)
    latest = trimming.latest_turn
    trimming.shorten([index for index in trimming.results if index not in latest], target_chars, OLD_RESULT_CHARS)
    trimming.drop(trimming.exchanges, target_chars)
    trimming.drop(trimming.turns[:-1], target_chars)
    results = [index for index in trimming.results if index in latest]
    if results and trimming.size > target_chars:
        others = trimming.size - sum(_size(trimming.messages[index]) for index in results)
        share = (target_chars - others) // len(results)
        trimming.shorten(results, 0, max(LEAST_RESULT_CHARS, share))
    return trimming.result()


class _Trimming:
    """A conversation during trimming. Indexes are those of the original list; a dropped message becomes None."""

    def __init__(self, messages: Sequence[Message], keep: Collection[int]) -> None:
        self.messages: list[Any] = list(messages)
        self.size = size_of(messages)
        self._shortened = 0
        kept = [index for index, message in enumerate(messages) if id(message) in keep]
        boundary = kept[0] if kept else len(messages)
        free = [
            index
            for index, message in enumerate(messages)
            if index not in kept and message["role"] not in {"system", "developer"}
        ]
        self.results = [index for index in free if messages[index]["role"] == "tool"]
        self.exchanges = _split(messages, [index for index in free if index < boundary], "user")
        self.turns = _split(messages, [index for index in free if index > boundary], "assistant")
        self.latest_turn = self.turns[-1] if self.turns else []

    def shorten(self, indexes: Sequence[int], target_chars: int, result_chars: int) -> None:
        """Cut results to their beginning and end, one by one, until the conversation is short enough."""
        for index in indexes:
            if self.size <= target_chars:
                return
            text = _text_of(self.messages[index])
            if len(text) > result_chars + NOTE_CHARS:
                before = _size(self.messages[index])
                self.messages[index] = {**self.messages[index], "content": _ends_of(text, result_chars)}
                self.size += _size(self.messages[index]) - before
                self._shortened += 1

    def drop(self, groups: Sequence[Sequence[int]], target_chars: int) -> None:
        """Drop groups of messages, one by one, until the conversation is short enough."""
        for group in groups:
            if self.size <= target_chars:
                return
            for index in group:
                self.size -= _size(self.messages[index])
                self.messages[index] = None

    def result(self) -> TrimResult | None:
        left = [message for message in self.messages if message is not None]
        dropped = len(self.messages) - len(left)
        return TrimResult(left, self._shortened, dropped) if self._shortened or dropped else None


def _split(messages: Sequence[Message], indexes: Sequence[int], first_role: str) -> list[list[int]]:
    """Split the indexes into groups; each message of ``first_role`` starts a new group."""
    groups: list[list[int]] = []
    for index in indexes:
        if not groups or messages[index]["role"] == first_role:
            groups.append([])
        groups[-1].append(index)
    return groups


def _size(message: Message) -> int:
    content = message.get("content") or ()
    images = 0 if isinstance(content, str) else sum(part.get("type") != "text" for part in content)
    calls = message.get("tool_calls") or ()
    arguments = sum(len(call["function"]["name"]) + len(call["function"]["arguments"]) for call in calls)
    return MESSAGE_CHARS + len(_text_of(message)) + arguments + images * IMAGE_CHARS


def _text_of(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _ends_of(text: str, characters: int) -> str:
    tail = characters // 3
    left_out = len(text) - characters
    return f"{text[: characters - tail]}\n[{left_out} characters left out]\n{text[len(text) - tail :]}"
