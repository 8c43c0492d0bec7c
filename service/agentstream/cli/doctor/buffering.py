"""The check whether a proxy between client and front end buffers streams."""

import asyncio
import contextlib
import hashlib
import json
from typing import Final

from agentstream.cli.api_client import ApiClient, run_path
from agentstream.cli.doctor.results import CheckResult
from agentstream.cli.exits import Failed, Refused, Unreachable
from agentstream.cli.terminal.display import DONE
from agentstream.errors import BusError
from agentstream.protocol.keys import Keys
from agentstream.store.admin.probe_run import ProbeRun
from agentstream.store.connection.endpoint import Endpoint

PIECE_COUNT: Final = 20
PIECE_INTERVAL_S: Final = 0.1
# Without buffering, all delays are about equal. With buffering, early pieces wait for later ones, so delays differ.
BUFFERING_THRESHOLD_S: Final = 0.3
FIRST_BYTE_TIMEOUT_S: Final = 2.0  # the role chunk arrives at once unless it is buffered too
LAST_BYTE_TIMEOUT_S: Final = 10.0  # counted from the end of the run

_NAME: Final = "stream"
_NGINX: Final = (
    "nginx, in the location of the front ends: proxy_buffering off; gzip off; proxy_http_version 1.1;",
    "remove proxy_ignore_headers X-Accel-Buffering there; then run: nginx -s reload (see deploy/nginx.conf)",
)
_OTHERS: Final = (
    "Caddy: remove `encode`, `response_buffers` and `flush_interval`: it then flushes streams (see deploy/Caddyfile)",
    "HAProxy: remove `compression` (see deploy/haproxy.cfg)",
    "cloud proxies: turn off response buffering and compression for text/event-stream",
)


async def check_buffering(endpoint: Endpoint, keys: Keys, url: str, api_key: str | None) -> CheckResult:
    """Write a run of PIECE_COUNT pieces to Redis, read its stream through ``url`` and judge the delays.

    Raises BrokerUnavailable.
    """
    owner = hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest() if api_key else ""
    try:
        async with ProbeRun(endpoint, keys, owner=owner) as run, ApiClient(url, api_key) as api:
            delays_s = await _measure_delays_s(run, api)
            server = api.server_header
    except BusError as exc:
        why = "the stream could not be tested"
        fix = ("run doctor with a Redis user that may write runs, such as `operator` of deploy/redis-users.acl",)
        return CheckResult(_NAME, "unknown", str(exc), why, fix)
    except TimeoutError:
        why = "clients receive nothing, or do not receive the end of a stream"
        fix = ("check each proxy or gateway in front of the front ends: one buffers the stream or drops its end",)
        return CheckResult(
            _NAME, "fault", f"the end of the run did not arrive within {LAST_BYTE_TIMEOUT_S:g} s", why, fix
        )
    except Failed as exc:
        return _result_from_error(exc, url)
    return _result_from_delays(delays_s, server)


async def _measure_delays_s(run: ProbeRun, api: ApiClient) -> list[float]:
    """Return the delay of each piece, from its write to its arrival, in s."""
    now = asyncio.get_running_loop().time
    begun = asyncio.Event()
    written_s: list[float] = []
    arrived_s: list[float] = []

    async def read() -> None:
        path = f"{run_path(run.run_id)}?stream=true"
        async with contextlib.aclosing(api.stream("GET", path)) as pieces:
            async for messages in pieces:
                begun.set()
                for message in messages:
                    if message.data == DONE:
                        return
                    data = json.loads(message.data)
                    if any(choice["delta"].get("content") for choice in data.get("choices", ())):
                        arrived_s.append(now())

    async with contextlib.AsyncExitStack() as stack:
        reading = asyncio.create_task(read(), name="read")
        stack.push_async_callback(_cancel, reading)
        beginning = asyncio.create_task(begun.wait(), name="begun")
        stack.push_async_callback(_cancel, beginning)
        await asyncio.wait({reading, beginning}, timeout=FIRST_BYTE_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        for number in range(PIECE_COUNT):
            if reading.done():
                break
            written_s.append(now())
            await run.write(f"{number} ")
            await asyncio.wait({reading}, timeout=PIECE_INTERVAL_S)
        await run.complete()
        async with asyncio.timeout(LAST_BYTE_TIMEOUT_S):
            await reading
    if len(arrived_s) != PIECE_COUNT:
        message = f"{len(arrived_s)} of {PIECE_COUNT} pieces arrived"
        raise Failed(message)
    return [arrived - written for arrived, written in zip(arrived_s, written_s, strict=True)]


async def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # marks the exception as retrieved; it was raised already, or no longer matters


def _result_from_delays(delays_s: list[float], server: str) -> CheckResult:
    ordered = sorted(delays_s)
    median_s, least_s = ordered[len(ordered) // 2], ordered[0]
    what = f"a piece arrives after {median_s * 1000:.0f} ms (median), the fastest after {least_s * 1000:.0f} ms"
    if median_s - least_s <= BUFFERING_THRESHOLD_S:
        return CheckResult(_NAME, "ok", what)
    return CheckResult(
        _NAME,
        "fault",
        f"the stream is buffered: {what}" + (f"; server: {server}" if server else ""),
        "clients receive nothing for seconds and then a lot at once; during a long tool call they may time out",
        _NGINX if server.lower().startswith("nginx") else (*_NGINX, *_OTHERS),
    )


def _result_from_error(exc: Failed, url: str) -> CheckResult:
    """Explain why the run could not be read through ``url``."""
    why = "the stream could not be tested"
    if isinstance(exc, Refused) and exc.message.startswith("404"):
        what = f"{url} does not know a run that doctor has just written to Redis"
        fix: tuple[str, ...] = (
            "run the front ends and doctor with the same REDIS_URL, including the database number",
            "run the front ends and doctor with the same AGENTSTREAM_KEY_PREFIX",
            "run doctor with --api-key and one of the front ends' AGENTSTREAM_API_KEYS, or without if they have none",
        )
        return CheckResult(_NAME, "fault", what, why, fix)
    if isinstance(exc, Refused):
        fix = ("run doctor with --api-key and one of the front ends' AGENTSTREAM_API_KEYS",)
        return CheckResult(_NAME, "fault", f"{url} refuses the request: {exc.message}", why, fix)
    if isinstance(exc, Unreachable):
        fix = ("check that a front end runs behind this URL and that its /health/ready answers 200",)
        return CheckResult(_NAME, "fault", exc.message, "clients cannot reach the service either", fix)
    return CheckResult(_NAME, "fault", exc.message, why, ("look at the log lines of the front end",))
