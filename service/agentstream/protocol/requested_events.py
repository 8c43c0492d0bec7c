"""The types of agent events that a client may ask for, beside those that every client receives."""

from collections.abc import Iterable
from typing import Final

from agentstream.protocol.events import (
    EVENT_TYPE,
    HIDDEN_EVENTS,
    INPUT_APPLIED,
    INTERRUPT,
    NAMED_EVENTS,
    RESERVED_EVENTS,
    TOOL_RESULTS,
)

ALL: Final = "all"
# A client with more types asks for all of them and ignores the rest.
MAX_TYPES: Final = 50
# Clients receive these types without asking.
ALWAYS_SENT: Final = NAMED_EVENTS | {INTERRUPT, INPUT_APPLIED, TOOL_RESULTS}

# Nobody can ask for these types: agentstream uses them itself, or they become other parts of the stream.
NEVER_ASKED: Final = (RESERVED_EVENTS | HIDDEN_EVENTS) - ALWAYS_SENT

# None stands for all types.
RequestedEvents = frozenset[str] | None


def requested_events(names: Iterable[str]) -> RequestedEvents:
    """Return the types that a list of names asks for; ``all`` is every type. Empty names are ignored.

    Raises ValueError for a name that is no event type, for a type that only agentstream uses, and for more than
    MAX_TYPES names.
    """
    types = {stripped for name in names if (stripped := name.strip())}
    if len(types) > MAX_TYPES:
        message = f"{len(types)} event types are too many: name at most {MAX_TYPES}, or ask for {ALL}"
        raise ValueError(message)
    for name in sorted(types):
        if EVENT_TYPE.fullmatch(name) is None:
            message = f"event type {name[:80]!r} is not valid: use a letter, then up to 63 letters, digits or _ . : -"
            raise ValueError(message)
        if name in NEVER_ASKED:
            message = f"event type {name!r} cannot be asked for: only agentstream itself uses it"
            raise ValueError(message)
    return None if ALL in types else frozenset(types - ALWAYS_SENT)


def is_sent(event_type: str, requested: RequestedEvents) -> bool:
    """Return whether a client that asked for these types receives an event that an agent emitted."""
    return requested is None or event_type in requested
