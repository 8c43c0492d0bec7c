"""Around every handler: errors in OpenAI's shape, a request id, and cross-origin headers."""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from agentstream.config import is_loopback
from agentstream.errors import (
    QUEUE_TIMEOUT,
    BodyTooLarge,
    BrokerUnavailable,
    BusError,
    Draining,
    ForbiddenHost,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestError,
    RunFailed,
    ServiceError,
)
from agentstream.frontend.context import CONTEXT
from agentstream.frontend.request_log import RequestLog, assign_request_id

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BROKER_RETRY_AFTER_S: Final = 2
REJECTED_AS: Final = "rejected_as"  # of a response: the code of the error it tells


def openai_errors(handler: Handler, *, local_hosts_only: bool) -> Handler:
    """Return a handler that turns every error into ``{"error": {...}}`` with a fitting status, and counts requests.

    ``local_hosts_only`` refuses requests whose Host header is not a name of this machine; used where nothing else
    keeps others out. Around the handler, not an aiohttp middleware: that would cost every open stream 0.5 KB more.
    """
    lines = RequestLog()

    async def guarded(request: web.Request) -> web.StreamResponse:
        began_s, request_id = time.monotonic(), assign_request_id(request)
        route = _route_of(request, handler)
        error: RequestError | None = None
        try:
            if local_hosts_only:
                _refuse_foreign_host(request)
            response = await handler(request)
        except RequestError as exc:
            response = error_response(error := exc)
            if isinstance(exc, Draining):
                response.force_close()  # so that a proxy or a client with kept connections goes elsewhere next
        except web.HTTPException as exc:
            response = error_response(error := _from_aiohttp(exc, request))
            if isinstance(exc, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(exc.allowed_methods))
        except BusError as exc:
            lines.failed(exc, route)
            refused = BrokerUnavailable(f"Redis refused: {exc}", retry_after_s=BROKER_RETRY_AFTER_S)
            response = error_response(refused)
        except Exception as exc:  # noqa: BLE001 -- it is logged
            lines.failed(exc, route)
            response = error_response(ServiceError(f"internal error; it was logged as {request_id}"))
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        lines.refused(error, route)
        lines.ended(response, route, began_s)
        request.app[CONTEXT].metrics.request_answered(route, response.status, response.get(REJECTED_AS))
        return response

    return guarded


def _route_of(request: web.Request, handler: Handler) -> str:
    """Return a route's name in metrics and logs; what a client makes up has none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource and handler is not no_such_route else "unknown"


async def no_such_route(request: web.Request) -> web.StreamResponse:
    """Handle what no route takes; raises 404, or 405 if only the method is wrong."""
    here = request.match_info.route.resource
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource is not here:
            allowed |= (await resource.resolve(request))[1]
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound


def error_response(error: RequestError) -> web.Response:
    """Return an error as HTTP."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    status = error.status
    if isinstance(error, RunFailed):
        status = error.run_status
        if error.error_code != QUEUE_TIMEOUT:
            headers["X-Should-Retry"] = "false"  # the agent ran: an SDK's retry would run it again
    response = web.json_response(error.body(), status=status, headers=headers)
    if not isinstance(error, RunFailed):
        response[REJECTED_AS] = error.error_code
    return response


def _from_aiohttp(exc: web.HTTPException, request: web.Request) -> RequestError:
    if isinstance(exc, web.HTTPNotFound):
        return NotFound(f"no such route: {request.method} {request.path[:200]}")
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        return MethodNotAllowed(f"{request.method} is not allowed on {request.path[:200]}; use {allowed}")
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge(f"the body is too large; the limit is {request.app[CONTEXT].settings.max_body_bytes} bytes")
    if exc.status < 500:  # noqa: PLR2004
        return InvalidRequest(exc.reason or f"HTTP {exc.status}")
    return ServiceError(exc.reason or f"HTTP {exc.status}")


def _refuse_foreign_host(request: web.Request) -> None:
    """Raise ForbiddenHost for a request to another machine.

    A web page whose name was made to point at 127.0.0.1 (DNS rebinding) is of the same origin as what it calls, so
    its browser asks nobody; but it sends the page's own name. Clients other than browsers may leave Host out.
    """
    host = request.headers.get("Host")
    if host and not _is_local(host):
        message = (
            f"the front end listens on this machine only, without API keys, and does not answer for the host "
            f"{host[:80]!r}; set API keys, or AGENTSTREAM_ALLOW_OPEN if something in front checks callers"
        )
        raise ForbiddenHost(message)


@lru_cache(maxsize=64)  # clients of one front end send few different ones; parsing an address takes 20 us
def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or name.endswith(".localhost")


def cors(origins: Sequence[str]) -> Middleware:
    """Return a middleware that lets pages of these origins call; ``*`` is any, none by default."""
    allowed = frozenset(origins)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is None or not ("*" in allowed or origin in allowed):
            return await handler(request)
        request["cors_headers"] = headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After, X-Should-Retry",
            "Vary": "Origin",
        }
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            headers["Access-Control-Allow-Methods"] = "GET, POST"
            # What it asks for: the openai SDK sends a dozen X-Stainless headers. The origin is trusted already.
            headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Max-Age"] = "600"
            return web.Response(status=204, headers=headers)
        response = await handler(request)
        if not response.prepared:  # a stream has sent its headers already, these included
            response.headers.update(headers)
        return response

    return middleware
