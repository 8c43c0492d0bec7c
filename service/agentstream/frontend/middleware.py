"""Wraps every handler: errors in OpenAI's shape, a request id, and CORS headers."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
from agentstream.telemetry.masking import mask_error

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BROKER_RETRY_AFTER_S: Final = 2
REJECTED_AS: Final = "rejected_as"  # a response's key for its error code
MAX_PREFIX_PARTS: Final = 6  # in front of a known path, for the hint about a wrong path


def openai_errors(handler: Handler, *, local_hosts_only: bool) -> Handler:
    """Return a handler that turns every error into ``{"error": {...}}`` with its status, and logs and counts requests.

    ``local_hosts_only`` refuses requests whose Host header is not a name of this machine. It is set if nothing else
    protects the front end. This is a wrapper and not an aiohttp middleware, because a middleware would cost 0.5 KB more
    for each open stream.
    """
    request_log = RequestLog()

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
        except web.HTTPException as exc:
            response = error_response(error := from_aiohttp(exc, request))
            if isinstance(exc, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(exc.allowed_methods))
        except BusError as exc:
            request_log.failed(exc, route)
            refused = BrokerUnavailable(f"Redis refused a command: {exc}", retry_after_s=BROKER_RETRY_AFTER_S)
            response = error_response(refused)
        except Exception as exc:  # noqa: BLE001 -- it is logged
            request_log.failed(exc, route)
            message = f"internal error; the server's log has the details under the request id {request_id}"
            response = error_response(ServiceError(message))
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        request_log.refused(error, route)
        request_log.ended(response, route, began_s)
        request.app[CONTEXT].metrics.request_answered(route, response.status, response.get(REJECTED_AS))
        return response

    return guarded


def _route_of(request: web.Request, handler: Handler) -> str:
    """Return the pattern of the request's route, for metrics and logs; "unknown" if no route matches."""
    resource = request.match_info.route.resource
    return resource.canonical if resource and handler is not no_such_route else "unknown"


async def no_such_route(request: web.Request) -> web.StreamResponse:
    """Handle a request that no route matches; raises 404, or 405 if another method of the path has a route."""
    if allowed := await _methods_of(request, request.rel_url.raw_path):
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    hint = "GET /openapi.json lists the routes"
    for path in _intended_paths(request.rel_url.raw_path):
        if allowed := await _methods_of(request, path):
            method = request.method if request.method in allowed else min(allowed)
            base = "; the base URL of an OpenAI client ends with /v1" if path.startswith("/v1/") else ""
            hint = f"use {method} {path[:200]}{base}"
            break
    message = f"{_no_such_route(request)}; {hint}"
    raise NotFound(message)


async def _methods_of(request: web.Request, path: str) -> set[str]:
    """Return the methods that have a route for an encoded path; none if there is no such route."""
    here = request.match_info.route.resource
    probe_request = request.clone(rel_url=request.rel_url.with_path(path, encoded=True))
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource is not here:
            allowed |= (await resource.resolve(probe_request))[1]
    return allowed


def _intended_paths(path: str) -> Iterator[str]:
    """Yield the paths that a client may mean: the ends of ``path``, with /v1 in front of them and without it.

    Clients leave /v1 out, send it twice, put the path of another server in front, or add a slash.
    """
    parts = [part for part in path.split("/") if part]
    for start in range(min(len(parts), MAX_PREFIX_PARTS)):
        rest = "/".join(parts[start:])
        yield f"/v1/{rest}"
        yield f"/{rest}"


def _no_such_route(request: web.BaseRequest) -> str:
    return f"no such route: {request.method} {request.path[:200]}"


def error_response(error: RequestError) -> web.Response:
    """Return the HTTP response for an error, without secrets."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    status = error.status
    if isinstance(error, RunFailed):
        status = error.run_status
        if error.error_code != QUEUE_TIMEOUT:
            headers["X-Should-Retry"] = "false"  # the agent has run: a retry by an SDK would run it again
    body = error.body()
    body["error"]["message"] = mask_error(body["error"]["message"])
    response = web.json_response(body, status=status, headers=headers)
    if not isinstance(error, RunFailed):
        response[REJECTED_AS] = error.error_code
    return response


def from_aiohttp(exc: web.HTTPException, request: web.BaseRequest) -> RequestError:
    """Convert an aiohttp error to a RequestError. ``request`` may be one that aiohttp could not parse."""
    if isinstance(exc, web.HTTPNotFound):
        return NotFound(_no_such_route(request))
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        return MethodNotAllowed(f"{request.method} is not allowed on {request.path[:200]}; use {allowed}")
    if isinstance(exc, web.HTTPRequestEntityTooLarge) and isinstance(request, web.Request):
        return BodyTooLarge(f"the body is too large; the limit is {request.app[CONTEXT].settings.max_body_bytes} bytes")
    if isinstance(exc, web.HTTPExpectationFailed):
        return InvalidRequest("the header Expect has a value that is not supported; send '100-continue' or omit it")
    if exc.status < 500:  # noqa: PLR2004
        return InvalidRequest(exc.reason or f"HTTP {exc.status}")
    return ServiceError(exc.reason or f"HTTP {exc.status}")


def _refuse_foreign_host(request: web.Request) -> None:
    """Raise ForbiddenHost if the Host header is not a name of this machine.

    This stops DNS rebinding: an attacker makes the name of a web page point at 127.0.0.1. The browser then treats the
    front end as the page's own origin and applies no CORS check. But it sends the page's name as Host. Clients that
    are not browsers may omit Host.
    """
    host = request.headers.get("Host")
    if host and not _is_local(host):
        message = (
            f"the host {host[:80]!r} is not a name of this machine, and a front end without API keys answers no other "
            "host; set AGENTSTREAM_API_KEYS, or AGENTSTREAM_ALLOW_OPEN if a proxy checks the callers"
        )
        raise ForbiddenHost(message)


@lru_cache(maxsize=64)  # the clients of a front end send few different hosts, and parsing one takes 20 us
def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return not name.endswith(".") and (is_loopback(name) or name.endswith(".localhost"))


def cors(origins: Sequence[str]) -> Middleware:
    """Return a middleware that allows requests from web pages of these origins; ``*`` allows every origin."""
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
            # Allow all headers the page asks for: the openai SDK sends a dozen X-Stainless headers, and the operator
            # trusts this origin.
            headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Max-Age"] = "600"
            return web.Response(status=204, headers=headers)
        response = await handler(request)
        if not response.prepared:  # a stream has already sent its headers, including these
            response.headers.update(headers)
        return response

    return middleware
