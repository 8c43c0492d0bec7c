"""Reads and validates a request body. An invalid body gets a 400 that names the wrong field."""

import asyncio
from typing import Any, Final, TypeVar

import orjson
from aiohttp import http_exceptions, web
from pydantic import BaseModel, ValidationError

from agentstream.config import Settings
from agentstream.errors import BodyTimeout, InvalidRequest, UnsupportedMediaType

# Nesting levels of a body. The deepest body for OpenAI's API (a JSON schema in a tool) has fewer than 30. This also
# limits recursion in later code.
MAX_DEPTH: Final = 64
# Values on one nesting level. Each invalid value costs a validation error of about 1 KB, and time on the event loop.
MAX_VALUES: Final = 50_000
_NESTED: Final = (dict, list)  # the classes of JSON values that contain others
MAX_REASON_CHARACTERS: Final = 500  # pydantic's messages quote the body, and a quote may be long
MAX_IDEMPOTENCY_KEY: Final = 255  # characters; other APIs have the same limit
# The values of Content-Encoding that a body may have. aiohttp also decodes br and zstd, but only if further packages
# are installed.
CODINGS: Final = ("", "identity", "gzip", "deflate")
CODINGS_WORDS: Final = "send it uncompressed, or with 'Content-Encoding: gzip' or 'deflate'"

MAX_OTHER_FIELDS: Final = 5  # wrong fields that an error names beside the first one
# Words for pydantic's messages that do not say what to write. The only pattern in requests is that of names.
_WORDS: Final = {"string_pattern_mismatch": "must not contain control characters, such as line ends"}

RequestT = TypeVar("RequestT", bound=BaseModel)


async def read_request(request: web.Request, settings: Settings, model: type[RequestT]) -> RequestT:
    """Return the validated body; raises InvalidRequest, UnsupportedMediaType, BodyTimeout or aiohttp's 413."""
    if request.content_type != "application/json":
        # This also blocks web pages of other origins: for a JSON content type, a browser sends a CORS preflight first.
        message = f"the body must be JSON: send 'Content-Type: application/json', not {request.content_type[:80]!r}"
        raise UnsupportedMediaType(message)
    coding = ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()
    if coding not in CODINGS:
        message = f"the body has the Content-Encoding {coding[:80]!r}, which is not supported; {CODINGS_WORDS}"
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
            message = f"the request has {len(messages)} messages; the limit is {settings.max_messages}"
            raise InvalidRequest(message, param=name)
    try:
        return model.model_validate(body, strict=True)
    except ValidationError as exc:
        raise to_invalid_request(exc, body) from exc


async def _body_of(request: web.Request, timeout_s: float) -> bytes:
    """Return the body; raises InvalidRequest, BodyTimeout or aiohttp's 413."""
    try:
        if request.content.is_eof():  # most bodies arrive together with the headers and need no timer
            return await request.read()
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except TimeoutError as exc:
        message = f"the body did not arrive within {timeout_s:g} s"
        raise BodyTimeout(message) from exc
    except (web.RequestPayloadError, http_exceptions.HttpProcessingError) as exc:
        coding = request.headers.get("Content-Encoding", "")
        broken = f"it is not valid {coding} data" if coding else "its chunks are malformed or incomplete"
        message = f"the body cannot be read: {broken}"
        raise InvalidRequest(message) from exc


def idempotency_key(request: web.Request) -> str | None:
    """Return the Idempotency-Key header, or None without it; raises InvalidRequest if it is malformed."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable() and key.isascii()):
        message = f"Idempotency-Key must have 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidRequest(message, param="Idempotency-Key")
    return key


def to_invalid_request(exc: ValidationError, body: dict[str, Any]) -> InvalidRequest:
    """Return the first problem of a body as an error; its ``param`` is the path of the field, like messages[0].role."""
    errors = [
        (_path(error["loc"], body), _WORDS.get(error["type"], error["msg"]))
        for error in exc.errors(include_url=False, include_input=False)
    ]
    # A value that matches no member of a union has one error for each member. The member with the deepest error is the
    # one that the client most likely meant.
    first_path = errors[0][0]
    candidates = [
        error for error in errors if error[0] == first_path or error[0].startswith((f"{first_path}.", f"{first_path}["))
    ]
    param, message = max(candidates, key=lambda error: len(error[0]))
    message = message.removeprefix("Value error, ")[:MAX_REASON_CHARACTERS]
    if not param:  # the messages of our own validators begin with "field: "
        param = message.partition(":")[0]
    known = [path for path, _ in candidates]
    more: list[str] = []
    for path, _ in errors:
        if path and not any(path == other or path.startswith((f"{other}.", f"{other}[")) for other in known + more):
            more.append(path)
    left = f" and {len(more) - MAX_OTHER_FIELDS} more" if len(more) > MAX_OTHER_FIELDS else ""
    others = f"; also wrong: {', '.join(more[:MAX_OTHER_FIELDS])}{left}" if more else ""
    prefix = "" if message.startswith(param) else f"{param}: "
    return InvalidRequest(f"{prefix}{message}{others}", param=param)


def _path(location: tuple[int | str, ...], body: Any) -> str:  # noqa: ANN401 -- JSON
    """Return the path of a pydantic error in the body, without the names of union members in its location."""
    path, value = "", body
    for step in location:
        if isinstance(step, int) and isinstance(value, list):
            path += f"[{step}]"
            value = value[step] if step < len(value) else None
        elif isinstance(value, dict) and (step in value or (step == location[-1] and "[" not in str(step))):
            path += f".{step}" if path else str(step)
            value = value.get(step)
    return path


def _depth_exceeds(value: Any, limit: int) -> bool:  # noqa: ANN401 -- JSON
    level = [value]
    for _ in range(limit):
        if sum(map(len, level)) > MAX_VALUES:
            message = f"the body has more than {MAX_VALUES} values on one nesting level"
            raise InvalidRequest(message)
        level = [
            child
            for item in level
            for child in (item.values() if item.__class__ is dict else item)
            if child.__class__ in _NESTED
        ]
        if not level:
            return False
    return True
