"""Values that JSON lacks are written in the usual way."""

import datetime as dt
import enum
import json
import pathlib
import re
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import pydantic
import pytest

from agentstream.protocol.plain_json import json_bytes, json_text, whole_text

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@dataclass
class Order:
    """A dataclass with a value that JSON lacks."""

    number: int
    price: Decimal
    tags: set[str] = field(default_factory=set)


class Model(pydantic.BaseModel):
    """A pydantic model with values that JSON lacks."""

    price: Decimal
    key: pydantic.SecretStr = pydantic.SecretStr("hunter2")
    tags: set[int] = {1}


class Point(NamedTuple):
    """A named tuple."""

    x: int
    y: int


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


def readable(value: object) -> str:
    """Return the id of a case. It has no address in memory, which would differ in each process of the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class Array:
    """An array like NumPy's."""

    def tolist(self) -> list[float]:
        """Return the numbers."""
        return [1.5, 2.5]


class Number(float):
    """A number like NumPy's float64."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"ok": True}, {"ok": True}),
        ([1, [2]], [1, [2]]),
        (None, None),
        (7, 7),
        (float("nan"), None),
        (Decimal("1.50"), "1.50"),
        ({1: "a", None: "b", 1.5: "c", False: "d"}, {"1": "a", "null": "b", "1.5": "c", "false": "d"}),
        ({(1, 2): "a", Decimal(3): "b", Colour.RED: "c", b"k": "d"}, {"[1, 2]": "a", "3": "b", "red": "c", "k": "d"}),
        (NOON, "2026-03-01T12:00:00+00:00"),
        ([NOON, Decimal(1)], ["2026-03-01T12:00:00+00:00", "1"]),
        ({NOON.date(): 1}, {"2026-03-01": 1}),
        ([dt.timedelta(minutes=1)], ["PT1M"]),
        ({1}, [1]),
        (frozenset("a"), ["a"]),
        (deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"keys": {"a": 1}.keys()}, {"keys": ["a"]}),
        ({"map": MappingProxyType({"a": Decimal(1)})}, {"map": {"a": "1"}}),
        (OrderedDict(a=1), {"a": 1}),
        (b"caf\xc3\xa9", "café"),
        (bytearray(b"\xff\x00"), "/wA="),
        (Order(1, Decimal("9.90"), {"x"}), {"number": 1, "price": "9.90", "tags": ["x"]}),
        (Model(price=Decimal("9.90")), {"price": "9.90", "key": "**********", "tags": [1]}),
        ([Order(1, Decimal(2)), Point(1, 2)], [{"number": 1, "price": "2", "tags": []}, [1, 2]]),
        ({"colour": Colour.RED, "at": {1}}, {"colour": "red", "at": [1]}),
        ([uuid.UUID(int=1), pathlib.PurePosixPath("/x"), {2}], [str(uuid.UUID(int=1)), "/x", [2]]),
        ([Array(), Number(1.5)], [[1.5, 2.5], 1.5]),
        ({"id": 2**70, "small": -(2**70)}, {"id": str(2**70), "small": str(-(2**70))}),
        ({"half \ud83d": "\ud83d\ude00"}, {"half \ufffd": "😀"}),
    ],
    ids=readable,
)
def test_a_value_is_written_in_the_usual_way(value: object, expected: object) -> None:
    """Each value that programs often have becomes the JSON that other libraries write for it."""
    assert json.loads(json_bytes(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("as it is", "as it is"), ({"a": "é"}, '{"a":"é"}'), (None, "null"), (2**70, str(2**70)), (Decimal("1.5"), "1.5")],
)
def test_text_is_unchanged_and_other_values_become_json(value: object, expected: str) -> None:
    """A string is its own text, and other values become compact JSON."""
    assert json_text(value) == expected


class Opaque:
    """An object that says nothing about its fields."""

    def __str__(self) -> str:
        return "opaque"


def _contains_itself() -> list[Any]:
    value: list[Any] = [{1}]
    value.append(value)
    return value


@pytest.mark.parametrize("value", [Opaque(), {"x": Opaque()}, Opaque, Model, _contains_itself()], ids=readable)
def test_a_value_that_cannot_be_json_is_refused(value: object) -> None:
    """An object without known fields, a class and a value that contains itself raise an error."""
    with pytest.raises((TypeError, ValueError)):
        json_bytes(value)


def test_an_unknown_object_may_become_text() -> None:
    """With ``unknown`` an object without known fields becomes the text that the function returns."""
    assert json_text({"x": [Opaque(), {1}]}, unknown=str) == '{"x":["opaque",[1]]}'


def test_whole_text_joins_pairs_and_replaces_the_rest() -> None:
    """A surrogate pair becomes one character, a lone surrogate becomes U+FFFD, and other text is unchanged."""
    assert whole_text("a\ud83d\ude00é\ude00") == "a😀é\ufffd"
    assert whole_text("plain") == "plain"


def test_a_finite_generator_is_written_as_a_list() -> None:
    """What a generator yields becomes an array."""

    def numbers() -> Iterator[int]:
        yield from (1, 2)

    assert json.loads(json_bytes({"n": numbers()})) == {"n": [1, 2]}
