"""Sample values for the request types of the openai package: at least one for each literal and each union member."""

import itertools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic import BaseModel

_numbers = itertools.count()
_REQUIRED = (typing.Required, typing_extensions.Required)
_WRAPPERS = (typing.Required, typing.NotRequired, typing_extensions.Required, typing.Annotated)


def _text() -> str:
    return f"text{next(_numbers)}"


_PLAIN: dict[Any, Callable[[], list[Any]]] = {
    str: lambda: [_text()],
    int: lambda: [1],
    float: lambda: [0.5],
    bool: lambda: [True, False],
    type(None): lambda: [None],
    object: lambda: [{"key": _text()}],
}


def fields_of(params: Any) -> dict[str, Any]:
    """Return the fields of a TypedDict or model with their types."""
    return get_type_hints(params, include_extras=True)


def samples(annotation: Any) -> Iterator[Any]:
    """Yield sample values of a type. Every text is unique, so that a test can look for it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in _WRAPPERS:
        yield from samples(arguments[0])
    elif origin in {Union, types.UnionType}:
        for member in arguments:
            yield from samples(member)
    elif origin is Literal:
        yield from arguments
    elif typing_extensions.is_typeddict(annotation) or _is_model(annotation):
        yield from _objects(annotation)
    elif origin in {list, Iterable, Sequence} or getattr(origin, "__name__", "") == "SequenceNotStr":
        for sample in samples(arguments[0]):
            yield [sample]
    elif origin in {dict, Mapping}:
        yield {"key": next(samples(arguments[1]))}
    else:
        yield from _PLAIN[annotation]()


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _objects(annotation: Any) -> Iterator[dict[str, Any]]:
    """Yield the smallest object, then one for each further sample of each field."""
    fields = fields_of(annotation)
    if _is_model(annotation):
        fields = {name: fields[name] for name in annotation.model_fields}
        required = {name for name, field in annotation.model_fields.items() if field.is_required()}
    else:
        required = {name for name, kind in fields.items() if get_origin(kind) in _REQUIRED}
    smallest = {name: next(samples(fields[name])) for name in sorted(required)}
    yield smallest
    for name, kind in fields.items():
        for sample in itertools.islice(samples(kind), 1 if name in required else 0, None):
            yield {**smallest, name: sample}


def texts_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each unique text in a sample with the names of the fields around it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_in(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner, path)
    elif isinstance(value, str) and value.startswith("text") and value[4:].isdigit():
        yield path, value
