"""The generated reference pages are those of the code, and they are complete."""

import re

import pytest

from agentstream import agents, errors, testing
from agentstream.config import Settings, env_name
from agentstream.protocol.event_types import EVENT_TYPES
from agentstream.protocol.events import NAMED_EVENTS, OPTIONAL_EVENTS, RESERVED_EVENTS
from tests import reference
from tests.processes import ROOT

FRONTEND = ROOT / "service/agentstream/frontend"


@pytest.mark.parametrize("name", reference.pages())
def test_reference_pages_are_current(name: str) -> None:
    """Each committed reference page equals the page that ``make reference`` writes now."""
    assert (reference.FOLDER / name).read_text(encoding="utf-8") == reference.pages()[name]


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_in_the_reference(field: str) -> None:
    """Each setting has a row with its variable, in a named group, and with a description."""
    assert reference.groups()[field]
    assert re.search(rf"(?m)^\| `{env_name(field)}`(?: or `\w+`)? \|", reference.settings_page())
    assert Settings.model_fields[field].description


def test_every_failure_code_has_a_meaning() -> None:
    """Each failure code of the module of errors is in the table of meanings."""
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}
    assert set(errors.FAILURE_MEANINGS) == codes - {errors.CANCELLED, errors.CANCELLED_MESSAGE, errors.MASK}


def test_every_code_of_a_refused_request_is_in_the_reference() -> None:
    """The page of errors has a row for each code that the service passes to a class, and for the code of each class."""
    passed = [re.findall(r'\bcode="(\w+)"', path.read_text(encoding="utf-8")) for path in FRONTEND.rglob("*.py")]
    codes = {code for found in passed for code in found} | {kind.code for kind in reference.request_errors()}
    page = reference.errors_page()
    assert {"invalid_json", "queue_full"} <= codes
    assert [code for code in codes if f"| `{code}` |" not in page] == []


@pytest.mark.parametrize("name", [*agents.__all__, *testing.__all__])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """The page of the agent API has a section for each name that agents and their tests can import."""
    assert re.search(rf"(?m)^##+ `?(?:await )?{name}\b", reference.agent_page())


def test_every_event_type_is_in_the_table() -> None:
    """The table of event types has exactly the named, the optional and the reserved types."""
    assert {event.name for event in EVENT_TYPES} == NAMED_EVENTS | OPTIONAL_EVENTS | RESERVED_EVENTS
