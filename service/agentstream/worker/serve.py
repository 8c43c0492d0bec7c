"""The worker process: it loads the agents, connects to Redis and works until it is stopped."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final

from agentstream.agents.lifespan import started
from agentstream.config import Settings
from agentstream.errors import BrokerUnavailable, BusError, StartupError
from agentstream.processes.stopping import done_before, stop_signals
from agentstream.protocol.jobs import open_ttl_s
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S, Endpoint
from agentstream.store.connection.fanout import OnMessage
from agentstream.store.connection.link import Link
from agentstream.store.connection.new_link import new_link
from agentstream.store.deadline import within
from agentstream.store.inputs import InputStore
from agentstream.store.interrupts import InterruptStore
from agentstream.store.queue import JobQueue
from agentstream.telemetry.masking import register_secrets
from agentstream.telemetry.otel import exported_spans
from agentstream.worker.agent_set import AgentSet, build_agents
from agentstream.worker.guard import guard_loop, refuse_exits
from agentstream.worker.health_server import HealthServer
from agentstream.worker.leases import Leases, warn_if_unavailable
from agentstream.worker.loop_watch import LoopWatch
from agentstream.worker.metrics import WorkerMetrics
from agentstream.worker.parking import Parking
from agentstream.worker.process_guard import ProcessGuard, exit_soon
from agentstream.worker.runner import RunLimits, Runner
from agentstream.worker.slots import Slots
from agentstream.worker.worker import Worker

log = logging.getLogger(__name__)

REFUSAL_POLL_S: Final = 0.5


def serve_worker(
    settings: Settings, *, keys: Keys | None = None, number: int | None = None, parent: int | None = None
) -> Coroutine[Any, Any, int]:
    """Load the agents, then return the coroutine that works until SIGTERM or SIGINT and returns the exit code.

    Call it before the event loop runs: the modules of agents may use ``asyncio.run``.

    With a ``number`` this is one of several processes that share a metrics port. ``parent`` is the pipe to the process
    that started it (see ``StopPipe``).

    Raises StartupError if an agent cannot be loaded or the metrics port is taken, and BrokerUnavailable if Redis
    does not answer, or refuses commands, for ``broker_wait_s``.
    """
    if settings.redis_url is None:
        message = (
            "REDIS_URL is not set: a worker needs Redis. Set it, or run `agentstream up`, which starts a private broker"
        )
        raise StartupError(message)
    register_secrets(settings.secrets())
    guard = ProcessGuard()
    with refuse_exits():
        agents = build_agents(settings)
    guard.check()
    endpoint = Endpoint(settings.redis_url)
    return _serve(settings, endpoint, keys or Keys(settings.key_prefix), number, parent, agents, guard)


async def _serve(  # noqa: PLR0913, PLR0917 -- the parts made from the settings
    settings: Settings,
    endpoint: Endpoint,
    keys: Keys,
    number: int | None,
    parent: int | None,
    agents: AgentSet,
    guard: ProcessGuard,
) -> int:
    with refuse_exits(), guard_loop(asyncio.get_running_loop()):
        try:
            with exported_spans("worker"):  # after loading the agents: their modules may set up their own provider
                return await _run_worker(settings, endpoint, keys, number, parent, agents, guard)
        finally:
            exit_soon()


async def _run_worker(  # noqa: PLR0913, PLR0917 -- the parts made from the settings
    settings: Settings,
    endpoint: Endpoint,
    keys: Keys,
    number: int | None,
    parent: int | None,
    agents: AgentSet,
    guard: ProcessGuard,
) -> int:
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    link = new_link(endpoint, keys, name="agentstream-worker")
    queues = {name: JobQueue(endpoint, link, keys, name, worker_id=worker_id) for name in agents.resolvers}
    leases = {name: Leases(queue, settings.lease_s) for name, queue in queues.items()}
    slots = Slots(settings.concurrency)
    bus = Bus(link, keys, settings.gather_ms / 1000)
    metrics = WorkerMetrics(number, slots=settings.concurrency)
    limits = run_limits(settings)
    interrupts, inputs = InterruptStore(link, keys), InputStore(link, keys)
    ttls = {"open_ttl_s": limits.log.open_ttl_s, "closed_ttl_s": limits.log.closed_ttl_s}
    parking = {name: Parking(interrupts, name, **ttls) for name in queues}
    workers = {
        name: Worker(
            queue,
            Runner(
                agents.resolvers[name],
                bus,
                queue,
                leases[name],
                limits,
                metrics.queue(name),
                parking[name],
                inputs,
                log_content=settings.log_content,
                hide_errors=settings.error_details == "hidden",
                on_agent_end=guard.check_all,
            ),
            leases[name],
            parking[name],
            slots=slots,
            drain_timeout_s=settings.drain_timeout_s,
            is_connected=lambda: link.connected,
        )
        for name, queue in queues.items()
    }
    link.on_reconnect |= dict.fromkeys(worker.on_reconnect for worker in workers.values())

    def on_control(message: bytes) -> None:
        for held in leases.values():
            held.on_control(message)

    def observe() -> None:
        reconnects = link.reconnects + sum(queue.reconnects for queue in queues.values())
        metrics.observe(workers.items(), bus.publish_counts, reconnects=reconnects, connections=link.connections)

    try:
        async with contextlib.AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signals(parent=parent))
            guard.watch_signals()
            stack.enter_context(LoopWatch(guard, metrics.loop_blocked).watching())
            health = HealthServer(link, stop, observe=observe, render=metrics.render)
            if settings.metrics_port:
                shared = number is not None
                await stack.enter_async_context(
                    health.serve(settings.metrics_host, settings.metrics_port, shared=shared)
                )
            await stack.enter_async_context(started(agents.managed, limit_s=settings.agent_start_timeout_s, stop=stop))
            if stop.is_set():
                return 0
            handlers: dict[str, OnMessage] = {keys.control(worker_id): on_control}
            handlers |= {keys.handed_back(name): worker.on_handed_back for name, worker in workers.items()}
            if not await done_before(stop, _join(link, agents, handlers, queues.values(), settings.broker_wait_s)):
                return 0
            log.info("worker %s takes jobs of queue %s", worker_id, ", ".join(map(repr, agents.resolvers)))
            health.taking_jobs = True
            async with asyncio.TaskGroup() as working:  # an error in one of them ends all
                for name, worker in workers.items():
                    working.create_task(worker.run(stop), name=f"queue {name}")
    finally:
        await link.close()
        await agents.close()
    return 0


async def _join(
    link: Link, agents: AgentSet, handlers: Mapping[str, OnMessage], queues: Iterable[JobQueue], wait_s: float
) -> None:
    """Connect to Redis and to the MCP servers, subscribe to the channels of ``handlers`` and open the queues.

    It waits up to ``wait_s`` until Redis is connected and accepts commands. After the connection, each step gets at
    least COMMAND_TIMEOUT_S. If it fails or is cancelled, no queue stays open. Raises BrokerUnavailable.
    """
    ends_s = time.monotonic() + wait_s
    explaining = asyncio.create_task(_explain_refusal(link, wait_s), name="explain")
    opened: list[JobQueue] = []

    def left_s() -> float:
        return max(ends_s - time.monotonic(), COMMAND_TIMEOUT_S)

    try:
        link.open()
        await link.wait_ready(wait_s)
        await _subscribe(link, handlers, left_s())
        if agents.mcp is not None:
            await agents.mcp.start()
        agents.warn_of_unknown_tools()
        for queue in queues:
            await queue.open(left_s())
            opened.append(queue)
    except BaseException:
        await asyncio.gather(*(warn_if_unavailable(queue.close, "leave the queue") for queue in opened))
        raise
    finally:
        explaining.cancel()


async def _subscribe(link: Link, handlers: Mapping[str, OnMessage], timeout_s: float) -> None:
    subscribed = [link.subscribe(name.encode(), handler, everywhere=True) for name, handler in handlers.items()]
    try:
        await within(asyncio.gather(*subscribed), timeout_s)
    except TimeoutError as exc:
        raise BrokerUnavailable(link.unanswered(timeout_s)) from exc
    except BusError as exc:
        message = f"Redis refuses a subscription: {exc}"
        raise BrokerUnavailable(message) from exc


async def _explain_refusal(link: Link, wait_s: float) -> None:
    """Log why this worker does not take jobs yet, once Redis refuses a command."""
    while not link.refusal:  # noqa: ASYNC110 -- no event tells it
        await asyncio.sleep(REFUSAL_POLL_S)
    log.warning("Redis refuses commands for now; waiting up to %g s: %s", wait_s, link.refusal)


def run_limits(settings: Settings) -> RunLimits:
    """Return the limits of one run."""
    return RunLimits(
        run_timeout_s=settings.run_timeout_s,
        max_attempts=settings.max_attempts,
        retry_after_tools=settings.retry_after_tools,
        log=LogLimits(
            open_ttl_s=open_ttl_s(settings.queue_timeout_s, settings.run_timeout_s),
            closed_ttl_s=settings.run_ttl_s,
            max_bytes=settings.log_max_bytes,
        ),
        interrupt_timeout_s=settings.interrupt_timeout_s,
    )
