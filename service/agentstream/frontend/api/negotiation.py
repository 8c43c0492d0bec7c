"""Chooses the event format and the error form of a stream, from the request or from the client's SDK version."""

import re
from typing import Final, cast, get_args

from aiohttp import web

from agentstream.errors import InvalidRequest
from agentstream.frontend.context import CONTEXT
from agentstream.stream.chat import EventFormat, StreamOptions

FORMAT_HEADER: Final = "X-Agent-Events"
FORMAT_QUERY: Final = "agent_events"
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
    None, the format that the client's SDK supports. The error form comes from the header or else the settings. Raises
    InvalidRequest for an unknown event format or error form.
    """
    requested = request.query.get(FORMAT_QUERY, request.headers.get(FORMAT_HEADER))
    if requested is not None and requested not in get_args(EventFormat):
        message = f"unknown event format {requested[:40]!r}; use one of {', '.join(get_args(EventFormat))}"
        raise InvalidRequest(message, param=FORMAT_QUERY)
    errors = request.headers.get(ERRORS_HEADER, request.app[CONTEXT].settings.error_form)
    if errors not in {"strict", "text"}:
        message = f"unknown error form {errors[:40]!r}; use strict or text"
        raise InvalidRequest(message, param=ERRORS_HEADER)
    return StreamOptions(
        event_format=cast("EventFormat", requested) if requested else default_format or _supported_format(request),
        include_usage=include_usage,
        strict_errors=errors == "strict",
    )


def _supported_format(request: web.Request) -> EventFormat:
    since = _NAMED_EVENTS_SINCE.get(request.headers.get("X-Stainless-Lang", ""))
    version = _VERSION.match(request.headers.get("X-Stainless-Package-Version", ""))
    if since and version and tuple(map(int, version.groups())) < since:
        return "chunk"
    return "named"
