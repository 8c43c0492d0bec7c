"""The types of events that clients ask for."""

import pytest

from agentstream.protocol.events import HIDDEN_EVENTS, NAMED_EVENTS, RESERVED_EVENTS
from agentstream.protocol.requested_events import ALWAYS_SENT, MAX_TYPES, NEVER_ASKED, is_sent, requested_events


def test_a_list_asks_for_its_types() -> None:
    """A client gets the types that it names, whatever spaces and empty entries its list has, and no others."""
    requested = requested_events([" progress", "", "note ", "x.y:z-1", " "])
    assert {name for name in ("progress", "note", "x.y:z-1", "other", "all", "") if is_sent(name, requested)} == {
        *("progress", "note", "x.y:z-1")
    }


@pytest.mark.parametrize("names", [["all"], ["progress", "all"]])
def test_all_asks_for_every_type(names: list[str]) -> None:
    """With ``all``, alone or beside other types, a client gets every type."""
    assert is_sent("anything", requested_events(names))


def test_types_that_everybody_gets_may_be_named() -> None:
    """A list may name the types that every client gets; that changes nothing."""
    assert requested_events(ALWAYS_SENT) == frozenset()
    assert ALWAYS_SENT >= NAMED_EVENTS
    assert {"run_started", "run_checkpoint", "run_handed_over", "run_completed", "text", *HIDDEN_EVENTS} <= NEVER_ASKED
    assert NEVER_ASKED | ALWAYS_SENT >= RESERVED_EVENTS


@pytest.mark.parametrize("name", sorted(NEVER_ASKED))
def test_internal_types_are_refused(name: str) -> None:
    """A type that only agentstream uses is refused, and the error names it."""
    with pytest.raises(ValueError, match=rf"event type '{name}' cannot be asked for"):
        requested_events(["progress", name])


@pytest.mark.parametrize("name", ["1st", "a b", "a\nb", "ä", "-", "x" * 65, "a\0", "*"])
def test_malformed_names_are_refused(name: str) -> None:
    """A name that no event can have is refused, and the error names its form."""
    with pytest.raises(ValueError, match="is not valid: use a letter, then up to 63 letters"):
        requested_events(["progress", name])


def test_too_many_types_are_refused() -> None:
    """A list has at most MAX_TYPES names."""
    names = [f"type{number}" for number in range(MAX_TYPES + 1)]
    assert requested_events(names[1:]) == frozenset(names[1:])
    with pytest.raises(ValueError, match=f"{MAX_TYPES + 1} event types are too many: name at most {MAX_TYPES}"):
        requested_events(names)
