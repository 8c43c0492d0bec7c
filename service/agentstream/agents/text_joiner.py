"""Joins characters that were cut in two: by a model server, a program or an adapter, between two pieces of text.

A character outside of Unicode's first 65,536, such as an emoji, is two surrogates in JSON and UTF-16. If a text is cut
between them, each half alone means nothing. A half at the end of a piece waits here for the next piece.
"""

from collections.abc import Hashable

from agentstream.protocol.plain_json import whole_text

FIRST_HIGH_SURROGATE, LAST_HIGH_SURROGATE = "\ud800", "\udbff"


class TextJoiner:
    """Joins the pieces of the channels of one run: text, reasoning, and the arguments of each tool call."""

    def __init__(self) -> None:
        """Start without a half."""
        self.halves: dict[Hashable, str] = {}

    def join(self, channel: Hashable, text: str) -> str:
        """Return the part of the channel's text that is whole now, with other lone surrogates replaced by U+FFFD.

        Call it if the text is not ASCII, or if there are ``halves``. Any thread may call it.
        """
        text = self.halves.pop(channel, "") + text
        if FIRST_HIGH_SURROGATE <= text[-1:] <= LAST_HIGH_SURROGATE:
            self.halves[channel] = text[-1]
            text = text[:-1]
        return whole_text(text)

    def rest(self) -> list[tuple[Hashable, str]]:
        """Return the channels whose text ended with a half, with U+FFFD for it."""
        return [(channel, whole_text(self.halves.pop(channel))) for channel in list(self.halves)]
