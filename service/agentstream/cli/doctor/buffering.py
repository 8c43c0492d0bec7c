"""Whether a stream comes through a URL as it is written, or is held back on the way."""

import asyncio
import contextlib
import hashlib
import json
from typing import Final

from agentstream.cli.api_client import ApiClient, run_path
from agentstream.cli.doctor.checks import CheckResult
from agentstream.cli.exits import Failed, Refused, Unreachable
from agentstream.cli.terminal.display import DONE
from agentstream.errors import BusError
from agentstream.protocol.keys import Keys
from agentstream.store.admin.probe_run import ProbeRun
from agentstream.store.connection.endpoint import Endpoint

PIECE_COUNT: Final = 20
PIECE_INTERVAL_S: Final = 0.1
# Pieces that are handed on as they come take equally long, give or take; held back, the last one overtakes the first.
BUFFERING_THRESHOLD_S: Final = 0.3
FIRST_BYTE_TIMEOUT_S: Final = 2.0  # the role chunk comes at once, unless it is held back, too
LAST_BYTE_TIMEOUT_S: Final = 10.0  # after the end

_NAME: Final = "stream"
_NGINX: Final = (
    "in nginx's location for the front ends: proxy_buffering off; gzip off; proxy_http_version 1.1;",
    "and no proxy_ignore_headers X-Accel-Buffering there; then: nginx -s reload (deploy/nginx.conf does all this)",
)
_OTHERS: Final = (
    "Caddy: reverse_proxy { flush_interval -1 }, and no encode (deploy/Caddyfile)",
    "HAProxy: no `compression` in front of it (deploy/haproxy.cfg)",
    "a cloud's proxy: switch response buffering and compression off for text/event-stream",
)


async def check_buffering(redis_url: str, url: str, api_key: str | None) -> CheckResult:
    """Write a run of PIECE_COUNT pieces to Redis, read it back through ``url``, and judge how it came.

    Raises BrokerUnavailable.
    """
    owner = hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest() if api_key else ""
    try:
        async with ProbeRun(Endpoint(redis_url), Keys(), owner=owner) as run, ApiClient(url, api_key) as api:
            delays_s = await _measure_delays_s(run, api)
            server = api.server_header
    except BusError as exc:
        why = "it was not found out whether the stream is held back"
        fix = ("run doctor with a user that may write runs, such as the operator of deploy/redis-users.acl",)
        return CheckResult(_NAME, "unknown", str(exc), why, fix)
    except TimeoutError:
        why = "clients see nothing, or never see the end"
        fix = ("look for what stands between: a proxy or gateway that waits for more, or cut the connection",)
        return CheckResult(_NAME, "fault", f"it did not end within {LAST_BYTE_TIMEOUT_S:g} s of its end", why, fix)
    except Failed as exc:
        return _result_from_error(exc, url)
    return _result_from_delays(delays_s, server)


async def _measure_delays_s(run: ProbeRun, api: ApiClient) -> list[float]:
    """Return how long each piece was on its way, in s."""
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
        message = f"{len(arrived_s)} of {PIECE_COUNT} pieces came"
        raise Failed(message)
    return [arrived - written for arrived, written in zip(arrived_s, written_s, strict=True)]


async def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # raised already, or of no interest any more


def _result_from_delays(delays_s: list[float], server: str) -> CheckResult:
    ordered = sorted(delays_s)
    median_s, least_s = ordered[len(ordered) // 2], ordered[0]
    what = f"a piece takes {median_s * 1000:.0f} ms to come through, the fastest {least_s * 1000:.0f} ms"
    if median_s - least_s <= BUFFERING_THRESHOLD_S:
        return CheckResult(_NAME, "ok", what)
    return CheckResult(
        _NAME,
        "fault",
        f"it is held back: {what}" + (f" (the answer is from {server})" if server else ""),
        "clients see nothing for seconds and then much at once; a silent tool call looks like a dead connection",
        _NGINX if server.lower().startswith("nginx") else (*_NGINX, *_OTHERS),
    )


def _result_from_error(exc: Failed, url: str) -> CheckResult:
    """Say what it means that the run could not be read."""
    why = "the stream could not be looked at"
    if isinstance(exc, Refused) and exc.message.startswith("404"):
        what = f"{url} does not know a run that was just written to this Redis"
        fix: tuple[str, ...] = (
            "give front ends and doctor the same REDIS_URL, its database number included",
            "give doctor one of the front ends' AGENTSTREAM_API_KEYS as --api-key, or none if they have none",
        )
        return CheckResult(_NAME, "fault", what, why, fix)
    if isinstance(exc, Refused):
        fix = ("give doctor one of the front ends' AGENTSTREAM_API_KEYS as --api-key",)
        return CheckResult(_NAME, "fault", f"{url} refuses: {exc.message}", why, fix)
    if isinstance(exc, Unreachable):
        fix = ("see that a front end runs behind this URL, and that /health/ready there says ok",)
        return CheckResult(_NAME, "fault", exc.message, "clients cannot reach the service either", fix)
    return CheckResult(_NAME, "fault", exc.message, why, ("see the front end's log",))
