"""Chooses the event format, the event types and the error form of a stream, from the request or the client's SDK."""

import re
from collections.abc import Iterable
from typing import Final, cast, get_args

from aiohttp import web

from agentstream.errors import InvalidRequest
from agentstream.frontend.context import CONTEXT
from agentstream.protocol.requested_events import RequestedEvents, requested_events
from agentstream.stream.chat import EventFormat, StreamOptions

FORMAT_HEADER: Final = "X-Agent-Events"
FORMAT_QUERY: Final = "agent_events"
TYPES_HEADER: Final = "X-Agent-Event-Types"
TYPES_QUERY: Final = "agent_event_types"
ERRORS_HEADER: Final = "X-Agent-Errors"

# Older SDKs turn every frame with an ``event:`` line into {data, event}, which breaks the loop in their README
# (measured).
_NAMED_EVENTS_SINCE: Final = {"python": (1, 98, 0), "js": (5, 11, 0)}
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})")


def stream_options(
    request: web.Request, *, include_usage: bool, default_format: EventFormat | None = None
) -> StreamOptions:
    """Return how to stream to this client.

    The event format comes from the query or else the header. Without either it is ``default_format``, and if that is
    None, or if the client asks for event types, the format that the client's SDK supports. The event types come from
    the query, the header or the settings; the error form comes from the header or the settings. Raises InvalidRequest
    for a wrong event format, event type or error form.
    """
    requested = request.query.get(FORMAT_QUERY, request.headers.get(FORMAT_HEADER))
    if requested is not None and requested not in get_args(EventFormat):
        message = f"unknown event format {requested[:40]!r}; use one of {', '.join(get_args(EventFormat))}"
        raise InvalidRequest(message, param=FORMAT_QUERY)
    settings = request.app[CONTEXT].settings
    names = _named_types(request)
    if names:
        default_format = None
    errors = request.headers.get(ERRORS_HEADER, settings.error_form)
    if errors not in {"strict", "text"}:
        message = f"unknown error form {errors[:40]!r}; use strict or text"
        raise InvalidRequest(message, param=ERRORS_HEADER)
    return StreamOptions(
        event_format=cast("EventFormat", requested) if requested else default_format or _supported_format(request),
        event_types=_event_types(settings.event_types if names is None else names),
        include_usage=include_usage,
        strict_errors=errors == "strict",
        interrupt_text=settings.interrupt_text,
    )


def _named_types(request: web.Request) -> list[str] | None:
    """Return the event types that the request names, in one list or in several; None if it has no such parameter."""
    lists = request.query.getall(TYPES_QUERY, None) or request.headers.getall(TYPES_HEADER, None)
    return None if lists is None else [name for names in lists for name in names.split(",") if name.strip()]


def _event_types(names: Iterable[str]) -> RequestedEvents:
    try:
        return requested_events(names)
    except ValueError as exc:
        message = f"{TYPES_QUERY}: {exc}"
        raise InvalidRequest(message, param=TYPES_QUERY) from exc


def _supported_format(request: web.Request) -> EventFormat:
    since = _NAMED_EVENTS_SINCE.get(request.headers.get("X-Stainless-Lang", ""))
    version = _VERSION.match(request.headers.get("X-Stainless-Package-Version", ""))
    if since and version and tuple(map(int, version.groups())) < since:
        return "chunk"
    return "named"
