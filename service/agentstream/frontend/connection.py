"""The HTTP connections of the front end: aiohttp's, with larger headers and with every error in OpenAI's shape."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final

from aiohttp import http_exceptions, web

from agentstream.errors import InvalidRequest, RequestError, ServiceError, UnsupportedMediaType
from agentstream.frontend.api.parsing import CODINGS_WORDS
from agentstream.frontend.connection_limit import ConnectionLimit
from agentstream.frontend.middleware import error_response, from_aiohttp

# Limit for the request line and for each header. aiohttp's own limit is 8 KB, but proxies with OAuth send cookies of
# 12 KB.
MAX_LINE_BYTES: Final = 32 << 10
# The reasons that aiohttp's parser gives. Data of the request follows some of them, after a colon.
_REASON: Final = re.compile(r"([A-Za-z' -]+)(:\n\n|\.?\Z)")


# How long a connection beyond the limit may stay open without a request.
REFUSED_IDLE_S: Final = 5.0

ConnectionFactory = Callable[[bool], asyncio.Protocol]


def connection_factory(manager: web.Server, limit: ConnectionLimit) -> ConnectionFactory:
    """Return the protocol factory for the connections of a server. It takes whether a connection is one too many."""
    loop = asyncio.get_running_loop()

    def connection(over_limit: bool) -> asyncio.Protocol:  # noqa: FBT001 -- called in one place
        return Connection(
            manager,
            limit,
            over_limit=over_limit,
            loop=loop,
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            **({"keepalive_timeout": REFUSED_IDLE_S} if over_limit else {}),
        )

    return connection


class Connection(web.RequestHandler):
    """A connection that answers in OpenAI's shape where aiohttp answers in plain text.

    These are requests that no handler gets: malformed HTTP, an unknown ``Expect``, and targets that are no path. The
    answers contain no data of the request except its method and path, because a header may hold a secret.
    """

    __slots__ = ("_limit", "over_limit")

    def __init__(
        self,
        manager: web.Server,
        limit: ConnectionLimit,
        *,
        over_limit: bool,
        **options: Any,  # noqa: ANN401 -- aiohttp's
    ) -> None:
        """Take aiohttp's server and options, and the limit, which counts this connection already."""
        super().__init__(manager, **options)
        self._limit = limit
        self.over_limit = over_limit

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the end of the connection."""
        if self._manager is not None:  # as aiohttp does: it may be called twice
            self._limit.closed()
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or a part of an answer still waits for the client."""
        transport = self.transport
        return self._request_in_progress or (transport is not None and transport.get_write_buffer_size() > 0)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that aiohttp cannot parse, or whose handler failed."""
        super().handle_error(request, status, exc, message)  # it logs, and raises if a part of an answer was sent
        response = error_response(_explained(exc))
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. An error that aiohttp raised before it called a handler is put into OpenAI's shape."""
        if isinstance(resp, web.HTTPException):
            error = error_response(from_aiohttp(resp, request))
            error.set_status(resp.status)
            resp = error
        return await super().finish_response(request, resp, start_time)


def is_over_limit(request: web.BaseRequest) -> bool:
    """Return whether there were too many connections when the connection of this request was opened."""
    return isinstance(request.protocol, Connection) and request.protocol.over_limit


def _explained(exc: BaseException | None) -> RequestError:
    if isinstance(exc, http_exceptions.ContentEncodingError):
        return UnsupportedMediaType(f"the body has a Content-Encoding that is not supported; {CODINGS_WORDS}")
    if isinstance(exc, http_exceptions.LineTooLong):
        return InvalidRequest(
            f"the request line or a header is longer than {MAX_LINE_BYTES} bytes; send fewer or shorter cookies and "
            "shorter headers",
            code="headers_too_large",
        )
    if isinstance(exc, http_exceptions.HttpProcessingError):
        reason = None if isinstance(exc, http_exceptions.InvalidURLError) else _REASON.match(exc.message)
        details = f" ({reason[1]})" if reason else ""
        return InvalidRequest(f"the request is not valid HTTP{details}; check its request line, headers and framing")
    return ServiceError("internal error")
