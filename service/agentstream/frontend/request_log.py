"""What the front end logs of requests: failures and refusals, and at debug every one. Never what they held.

A client can cause as many refusals as it likes, so of each status only so many lines are written a second; metrics
count all of them. A refusal's own words are not told either: they may repeat what was sent.
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
    """Bounds the lines that others can cause: ``burst`` of a kind at once, then ``per_s`` a second.

    Kinds are to be few: each is remembered for ever.
    """

    def __init__(self, *, per_s: float = 2.0, burst: int = 20) -> None:
        """Start with the whole burst for every kind."""
        self._per_s = per_s
        self._burst = burst
        self._left: dict[object, tuple[float, float, int]] = {}  # lines left, when that was (s), lines left out since

    def try_acquire(self, kind: object) -> int | None:
        """Return None if a line must be left out, else how many were since the last one that was not."""
        now_s = time.monotonic()
        left, then_s, omitted = self._left.get(kind, (float(self._burst), now_s, 0))
        left = min(left + (now_s - then_s) * self._per_s, self._burst)
        passes = left >= 1
        self._left[kind] = (left - 1, now_s, 0) if passes else (left, now_s, omitted + 1)
        return omitted if passes else None


def assign_request_id(request: web.Request) -> str:
    """Give a request its id, by which its run's lines can be found too: the caller's, if it has sent one."""
    sent = request.headers.get("X-Request-Id", "")
    request_id = sent if REQUEST_ID.fullmatch(sent) else new_request_id()
    bind(request_id=request_id)
    return request_id


class RequestLog:
    """The lines of one route's requests."""

    def __init__(self) -> None:
        """Start with nothing logged."""
        self._throttle = Throttle()

    def refused(self, error: RequestError | None, route: str) -> None:
        """Tell of a request that got an error instead of an answer, if it did."""
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
            fields["omitted"] = omitted  # of this status, since the last such line
        level = logging.INFO if status < 500 or isinstance(error, RunFailed) else logging.WARNING  # noqa: PLR2004
        log.log(level, "a request was refused", extra=fields)

    def failed(self, error: Exception, route: str) -> None:
        """Tell of an error of ours."""
        omitted = self._throttle.try_acquire(type(error))
        if omitted is not None:
            log.error("a request failed", exc_info=error, extra={"route": route, "omitted": omitted})

    def ended(self, response: web.StreamResponse, route: str, began_s: float) -> None:
        """Tell of any request's end; ``began_s`` is monotonic."""
        if log.isEnabledFor(logging.DEBUG):
            took_ms = round((time.monotonic() - began_s) * 1000)
            fields = {"route": route, "status": response.status, "duration_ms": took_ms}
            log.debug("a request ended", extra=fields)
