"""Runs all checks of Redis: of the sentinels or the cluster, of each primary, and of the queues."""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Final

from agentstream.cli.doctor import checks
from agentstream.cli.doctor.cluster import check_cluster
from agentstream.cli.doctor.results import CheckResult, check, worst_of
from agentstream.cli.doctor.sentinels import check_sentinels
from agentstream.errors import BrokerUnavailable, BusError
from agentstream.processes.private_folder import PREFIX
from agentstream.protocol.broker_url import Kind
from agentstream.protocol.keys import Keys
from agentstream.store.admin.queue_state import QueueReader
from agentstream.store.admin.server_state import ServerState
from agentstream.store.connection.endpoint import Endpoint

_NO_LINK: Final = (
    "look at the other results: front ends and workers cannot connect with this REDIS_URL either, and wait",
)


async def check_redis(endpoint: Endpoint, keys: Keys, queues: Sequence[str], *, max_queued: int) -> list[CheckResult]:
    """Run all checks of Redis.

    Raises BrokerUnavailable if no server answers, BusError if Redis refuses the login, and StartupError if REDIS_URL
    names another kind of broker.
    """
    async with contextlib.AsyncExitStack() as stack:
        reader, reason = None, ""
        try:
            reader = await stack.enter_async_context(QueueReader(endpoint, keys))
        except (BrokerUnavailable, BusError) as exc:
            reason = str(exc)
        results = await _check_servers(endpoint, keys, queues)
        for queue in queues:
            results += await _check_queue(reader, reason, queue, max_queued)
    return results


async def _check_servers(endpoint: Endpoint, keys: Keys, queues: Sequence[str]) -> list[CheckResult]:
    """Check the sentinels or the cluster, and each primary."""
    results: list[CheckResult] = []
    primaries = [endpoint]
    if endpoint.kind == "sentinel":
        primaries, results = await check_sentinels(endpoint)
    elif endpoint.kind == "cluster":
        primaries, results = await check_cluster(endpoint, keys, queues)
    found = await asyncio.gather(*(_check_primary(one, endpoint.kind) for one in primaries))
    answered = [(str(one), each) for one, each in zip(primaries, found, strict=True) if each]
    by_check = zip(*(each for _, each in answered), strict=True)
    return results + [
        worst_of([(address, result) for (address, _), result in zip(answered, same, strict=True)]) for same in by_check
    ]


async def _check_primary(endpoint: Endpoint, kind: Kind) -> list[CheckResult]:
    """Check one server; return nothing if it is down and another result says so."""
    async with ServerState(endpoint) as server:
        try:
            latency = checks.latency(await server.ping_times_s())  # first: it raises if Redis is unreachable
        except BrokerUnavailable:
            if kind == "standalone":
                raise
            return []
        private = await _is_private(server)
        return [
            await check("version", server.info(), checks.version),
            await check("role", server.info(), partial(checks.role, kind=kind)),
            await check("append-only file", server.info(), partial(checks.persistence, private=private)),
            await check("eviction", server.info(), checks.eviction),
            await check("memory", server.info(), partial(checks.memory, private=private)),
            await check("output buffer", server.config("client-output-buffer-limit"), checks.output_buffer),
            latency,
            await check("clock", server.clock(), checks.clock),
        ]


async def _check_queue(reader: QueueReader | None, reason: str, queue: str, max_queued: int) -> list[CheckResult]:
    """Check the workers and the jobs of a queue. Without a reader nothing can be counted, for a ``reason``."""
    names = f"workers of {queue}", f"jobs of {queue}"
    if reader is None:
        return [CheckResult(name, "unknown", reason, "this check was skipped", _NO_LINK) for name in names]
    depth = partial(checks.depth, queue, max_queued=max_queued)
    summary = asyncio.ensure_future(reader.queue(queue))  # for both checks
    return [
        await check(names[0], summary, partial(checks.workers, queue)),
        await check(names[1], summary, depth),
    ]


async def _is_private(server: ServerState) -> bool:
    """Return whether the server is the private broker of an `agentstream up`, which stores nothing on purpose."""
    try:
        return PurePath(await server.config("dir")).name.startswith(PREFIX)
    except BusError:  # this Redis user may not read it: it is not the private broker's user
        return False
