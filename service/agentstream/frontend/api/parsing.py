"""From a request's bytes to a validated request of one of our APIs, or a 400 that names the field."""

import asyncio
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web
from pydantic import ValidationError

from agentstream.config import Settings
from agentstream.errors import BodyTimeout, InvalidRequest, UnsupportedMediaType
from agentstream.protocol.openai import SharedFields

# Nesting of a body. OpenAI's deepest (a JSON schema in a tool) stays below 30; recursion elsewhere is bounded too.
MAX_DEPTH: Final = 64
# Values on one level of it: each wrong one costs a validation error of about 1 KB, and time on the loop.
MAX_VALUES: Final = 50_000
MAX_REASON_CHARACTERS: Final = 500  # pydantic quotes some of what was sent, however long
MAX_IDEMPOTENCY_KEY: Final = 255  # as elsewhere

RequestT = TypeVar("RequestT", bound=SharedFields)


async def read_request(request: web.Request, settings: Settings, model: type[RequestT]) -> RequestT:
    """Read and validate the body; raises InvalidRequest, UnsupportedMediaType, BodyTimeout or aiohttp's 413."""
    if request.content_type != "application/json":
        # Also keeps web pages of other origins out: a JSON content type makes their browser ask first.
        message = f"the body must be JSON: send 'Content-Type: application/json', not {request.content_type[:80]!r}"
        raise UnsupportedMediaType(message)
    raw = await _body_of(request, settings.body_timeout_s)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        message = f"the body is not valid JSON: {exc}"
        raise InvalidRequest(message, code="invalid_json") from exc
    if not isinstance(body, dict):
        message = f"the body must be a JSON object, not {type(body).__name__}"
        raise InvalidRequest(message)
    if _depth_exceeds(body, MAX_DEPTH):
        message = f"the body is nested deeper than {MAX_DEPTH} levels"
        raise InvalidRequest(message)
    for name in ("messages", "input"):
        messages = body.get(name)
        if isinstance(messages, list) and len(messages) > settings.max_messages:
            message = f"{len(messages)} messages are too many; the limit is {settings.max_messages}"
            raise InvalidRequest(message, param=name)
    try:
        return model.model_validate(body, strict=True)
    except ValidationError as exc:
        raise to_invalid_request(exc, body) from exc


async def _body_of(request: web.Request, timeout_s: float) -> bytes:
    """Return the body; raises InvalidRequest, BodyTimeout or aiohttp's 413."""
    try:
        if request.content.is_eof():  # most come together with their head
            return await request.read()
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except TimeoutError as exc:
        message = f"the body did not come within {timeout_s:g} s"
        raise BodyTimeout(message) from exc
    except web.RequestPayloadError as exc:
        message = f"the body cannot be read: {' '.join(str(exc).split())}"
        raise InvalidRequest(message) from exc


def idempotency_key(request: web.Request) -> str | None:
    """Return the Idempotency-Key, if one was sent; raises InvalidRequest if it is unusable."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable() and key.isascii()):
        message = f"Idempotency-Key must have 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidRequest(message, param="Idempotency-Key")
    return key


def to_invalid_request(exc: ValidationError, body: dict[str, Any]) -> InvalidRequest:
    """Return the first problem in words; ``param`` is its path, such as messages[0].role."""
    errors = [(_path(error["loc"], body), error["msg"]) for error in exc.errors(include_url=False, include_input=False)]
    # A value that fits no member of a union gives an error for each: the deepest is the one that was meant.
    place = errors[0][0]
    here = [error for error in errors if error[0] == place or error[0].startswith((f"{place}.", f"{place}["))]
    param, message = max(here, key=lambda error: len(error[0]))
    message = message.removeprefix("Value error, ")[:MAX_REASON_CHARACTERS]
    if not param:  # our own validators say "field: what is wrong"
        param = message.partition(":")[0]
    more = len(errors) - len(here)
    others = f" (and {more} more problems)" if more else ""
    shown = "" if message.startswith(param) else f"{param}: "
    return InvalidRequest(f"{shown}{message}{others}", param=param)


def _path(location: tuple[int | str, ...], body: Any) -> str:  # noqa: ANN401 -- JSON
    """Return where in the body an error is; pydantic's location also names the union branches it tried."""
    path, here = "", body
    for step in location:
        if isinstance(step, int) and isinstance(here, list):
            path += f"[{step}]"
            here = here[step] if step < len(here) else None
        elif isinstance(here, dict) and (step in here or (step == location[-1] and "[" not in str(step))):
            path += f".{step}" if path else str(step)
            here = here.get(step)
    return path


def _depth_exceeds(value: Any, limit: int) -> bool:  # noqa: ANN401 -- JSON
    level = [value]
    for _ in range(limit):
        if sum(map(len, level)) > MAX_VALUES:
            message = f"the body holds more than {MAX_VALUES} values on one level"
            raise InvalidRequest(message)
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
