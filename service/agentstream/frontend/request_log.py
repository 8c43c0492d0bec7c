"""The log lines about requests: failures and refusals, and at level debug the end of every request.

The lines never contain the text of a request. They also omit the message of a refusal, because it may quote the
request. A client can cause any number of refusals, so the number of lines for each status is limited; the metrics count
all refusals.
"""

import logging
import time
from typing import Any

from aiohttp import web

from agentstream.errors import RequestError, RunFailed
from agentstream.protocol.jobs import REQUEST_ID, new_request_id
from agentstream.telemetry.log_context import bind

log = logging.getLogger(__name__)


class Throttle:
    """Limits the log lines that clients can cause: ``burst`` lines of a kind at once, then ``per_s`` lines a second.

    Use few kinds: the throttle never forgets a kind.
    """

    def __init__(self, *, per_s: float = 2.0, burst: int = 20) -> None:
        """Allow a full burst of each kind."""
        self._per_s = per_s
        self._burst = burst
        # For each kind: lines left, the time of that number (monotonic, s), lines omitted since the last written one.
        self._left: dict[object, tuple[float, float, int]] = {}

    def try_acquire(self, kind: object) -> int | None:
        """Return None if this line must be omitted, else the number of lines omitted since the last written one."""
        now_s = time.monotonic()
        left, then_s, omitted = self._left.get(kind, (float(self._burst), now_s, 0))
        left = min(left + (now_s - then_s) * self._per_s, self._burst)
        allowed = left >= 1
        self._left[kind] = (left - 1, now_s, 0) if allowed else (left, now_s, omitted + 1)
        return omitted if allowed else None


def assign_request_id(request: web.Request) -> str:
    """Return the request's id and add it to its log context: the client's valid ``X-Request-Id``, else a new id.

    The log lines of the request's run have the same id.
    """
    sent = request.headers.get("X-Request-Id", "")
    request_id = sent if REQUEST_ID.fullmatch(sent) else new_request_id()
    bind(request_id=request_id)
    return request_id


class RequestLog:
    """Writes the log lines about the requests of one route."""

    def __init__(self) -> None:
        """Start with a full burst of lines."""
        self._throttle = Throttle()

    def refused(self, error: RequestError | None, route: str) -> None:
        """Log a request that was answered with an error; do nothing if ``error`` is None."""
        if error is None:
            return
        status = error.run_status if isinstance(error, RunFailed) else error.status
        omitted = self._throttle.try_acquire(status)
        if omitted is None:
            return
        fields: dict[str, Any] = {"route": route, "status": status, "code": error.error_code}
        if error.param is not None:
            fields["param"] = error.param
        if omitted:
            fields["omitted"] = omitted  # lines with this status, since the last written one
        level = logging.INFO if status < 500 or isinstance(error, RunFailed) else logging.WARNING  # noqa: PLR2004
        log.log(level, "a request was refused", extra=fields)

    def failed(self, error: Exception, route: str) -> None:
        """Log an error that is the server's fault, with its traceback."""
        omitted = self._throttle.try_acquire(type(error))
        if omitted is not None:
            log.error("a request failed", exc_info=error, extra={"route": route, "omitted": omitted})

    def ended(self, response: web.StreamResponse, route: str, began_s: float) -> None:
        """Log the end of any request at level debug; ``began_s`` is its start on the monotonic clock."""
        if log.isEnabledFor(logging.DEBUG):
            took_ms = round((time.monotonic() - began_s) * 1000)
            fields = {"route": route, "status": response.status, "duration_ms": took_ms}
            log.debug("a request ended", extra=fields)
