"""Error replies of the broker: the words in them, and what they mean for the command and its connection."""

import re
from collections.abc import Sequence
from typing import Final

from agentstream.errors import BusError, ConnectionRefused, WrongBroker

# Error replies that mean "not now": the command is sent again until its caller gives up. OOM is one of them because
# memory may be freed, NOREPLICAS because a replica may come back.
_NOT_NOW: Final = (
    "LOADING",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY ",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
)
# Error replies of a server that is not the primary, or no longer. On this connection the command would be refused for
# ever, although the same address may lead to the primary now.
_NOT_PRIMARY: Final = ("READONLY", "MASTERDOWN", "UNBLOCKED")

# Before version 7, Redis puts the error of a command in a script into a sentence of its own (measured with 6.2.14).
_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -([A-Z]+ .*)", re.DOTALL)
# Later versions append the place in the script.
_PLACE: Final = re.compile(r" script: (?:\w+, )?on @user_script:\d+\.?$")


def words_of(error: object) -> str:
    """Return the server's own words in an error reply, without the place in a script and the command's arguments.

    The reply to an unknown command repeats its arguments, which may be a password or the content of a run.
    """
    text = str(error).partition(", with args beginning with")[0]
    if match := _IN_SCRIPT.search(text):
        text = match[1]
    return _PLACE.sub("", text).strip().removesuffix(".")


def is_not_now(words: str) -> bool:
    """Return whether the same server may accept the command later."""
    return words.startswith(_NOT_NOW)


def is_not_primary(words: str) -> bool:
    """Return whether the server refuses the command because it is not the primary."""
    return words.startswith(_NOT_PRIMARY)


def joined(errors: Sequence[BusError], before: str = "") -> BusError:
    """Return one error for several servers, of which none was of use. It has their class, if all have the same.

    Then one message stands for all of them: each says what to change.
    """
    texts = list(dict.fromkeys(map(str, errors)))
    for cause in (WrongBroker, ConnectionRefused):
        if errors and all(isinstance(error, cause) for error in errors):
            message = before + texts[0] + (f" (and {len(texts) - 1} more servers like this)" if len(texts) > 1 else "")
            first = errors[0]
            if cause is WrongBroker or not isinstance(first, ConnectionRefused):
                return WrongBroker(message)
            return ConnectionRefused(message, words=first.words)
    return BusError(before + "; ".join(texts))
