"""Writes values of agents and tools as JSON, also values that JSON lacks but everybody has.

======================================  ================================================================
value                                   JSON
======================================  ================================================================
str, int, float, bool, None             the same; NaN and infinity become null
an integer of more than 64 bits         a string with its digits, because readers would round the number
dict, and other mappings                an object; a key that is no str is written as JSON, in a string
list, tuple, set, deque, range, …       an array
dataclass, pydantic model, attrs        an object with the fields
datetime, date, time                    a string in ISO 8601
Decimal, UUID, Path, timedelta, …       a string, in pydantic's form
Enum                                    its value
bytes                                   a string: the text if the bytes are UTF-8, otherwise base64
NumPy                                   a number or an array
======================================  ================================================================
"""

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, Final

import orjson
import pydantic
from pydantic_core import to_jsonable_python

_MAX_INT: Final = 2**64 - 1  # orjson's bounds of an integer
_MIN_INT: Final = -(2**63)

Unknown = Callable[[object], str]


def json_bytes(value: object, unknown: Unknown | None = None) -> bytes:
    """Return ``value`` as compact JSON in UTF-8.

    ``unknown`` returns the text for an object of a class that is not in the table above. Without it such an object
    raises TypeError. Raises TypeError or ValueError for a value that cannot be written, such as one that contains
    itself.
    """
    try:
        return orjson.dumps(value)
    except TypeError:  # rare: it has a value that JSON lacks, or a lone surrogate
        try:
            return orjson.dumps(_plain(value, unknown))
        except RecursionError as exc:
            message = "it contains itself, or is nested too deeply"
            raise ValueError(message) from exc


def json_text(value: object, unknown: Unknown | None = None) -> str:
    """Return a string unchanged, and any other value as compact JSON. Arguments and errors are as in ``json_bytes``.

    A value whose JSON is a string, for example a datetime, becomes that string without quotes.
    """
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    encoded = json_bytes(value, unknown)
    text: str = orjson.loads(encoded) if encoded.startswith(b'"') else encoded.decode()
    return text


def whole_text(text: str) -> str:
    """Return the text with its surrogate pairs joined, and each lone surrogate replaced by U+FFFD.

    A pair is two characters in Python if the text was joined from two pieces. UTF-8 cannot encode surrogates.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: Any, unknown: Unknown | None) -> Any:  # noqa: ANN401, PLR0911 -- JSON; one return per kind
    """Return a value that orjson can write."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, unknown)
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, float | int):
        return _plain_number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text_of(bytes(value))
    if isinstance(fields := _fields_of(value), Mapping):
        return {_key(key, unknown): _plain(item, unknown) for key, item in fields.items()}
    if isinstance(value, Collection):
        return [_plain(item, unknown) for item in value]
    return _plain_object(value, unknown)


def _plain_number(value: float) -> float | str:
    """Return a number that orjson can write: it refuses NumPy's subclass of float, and integers of many bits."""
    if isinstance(value, int):
        return int(value) if _MIN_INT <= value <= _MAX_INT else str(int(value))
    return float(value)


def _fields_of(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return the fields of an object of a class that declares fields, otherwise the object."""
    if isinstance(value, type):
        return value
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    attrs = getattr(type(value), "__attrs_attrs__", None)
    return value if attrs is None else {field.name: getattr(value, field.name) for field in attrs}


def _plain_object(value: Any, unknown: Unknown | None) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(value, os.PathLike):
        return _plain(os.fspath(value), unknown)
    if callable(to_list := getattr(value, "tolist", None)) and not isinstance(value, type):
        return _plain(to_list(), unknown)
    try:
        return orjson.loads(orjson.dumps(value))  # datetime and UUID, in the form that they have without a rare value
    except TypeError:
        try:
            return to_jsonable_python(value)  # Decimal, Path, timedelta, URL ...
        except ValueError:
            if unknown is None:
                raise
            return whole_text(unknown(value))


def _key(key: object, unknown: Unknown | None) -> str:
    plain = _plain(key, unknown)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
