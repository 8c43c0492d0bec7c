"""The worker process: it loads the agents, connects to Redis and works until it is stopped."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from functools import partial
from typing import TYPE_CHECKING

from agentstream.agents import Agent
from agentstream.agents.loading import load_agent
from agentstream.agents.orchestrator import Orchestrator
from agentstream.config import BUILTIN, Settings, env_name
from agentstream.engines.base import Engine
from agentstream.engines.demo import BuiltinEngine
from agentstream.errors import StartupError, missing_extra
from agentstream.processes.stopping import stop_signals
from agentstream.protocol.jobs import open_ttl_s
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobQueue
from agentstream.telemetry.otel import exported_spans
from agentstream.tools.toolbox import Toolbox, default_tools
from agentstream.worker.execution import AgentResolver
from agentstream.worker.health_server import HealthServer
from agentstream.worker.leases import Leases
from agentstream.worker.metrics import WorkerMetrics
from agentstream.worker.runner import RunLimits, Runner
from agentstream.worker.slots import Slots
from agentstream.worker.worker import Worker

if TYPE_CHECKING:
    from agentstream.tools.mcp import McpServers

log = logging.getLogger(__name__)


async def serve_worker(
    settings: Settings, *, keys: Keys | None = None, number: int | None = None, parent: int | None = None
) -> int:
    """Work until SIGTERM or SIGINT. Return the exit code.

    With a ``number`` this is one of several processes that share a metrics port. ``parent`` is the pipe to the process
    that started it (see ``TurnPipe``).

    Raises StartupError if an agent cannot be loaded or the metrics port is taken, and BrokerUnavailable if Redis does
    not answer within ``broker_wait_s``.
    """
    if settings.redis_url is None:
        message = (
            "REDIS_URL is not set: a worker needs Redis. Set it, or run `agentstream up`, which starts a private broker"
        )
        raise StartupError(message)
    mcp = build_mcp(settings)
    agents, engine = build_agents(settings, mcp)
    with exported_spans("worker"):  # after loading the agents: their modules may set up their own provider
        return await _run_worker(
            settings,
            Endpoint(settings.redis_url),
            keys or Keys(settings.key_prefix),
            number,
            parent,
            agents,
            engine,
            mcp,
        )


async def _run_worker(  # noqa: PLR0913, PLR0917 -- the parts made from the settings
    settings: Settings,
    endpoint: Endpoint,
    keys: Keys,
    number: int | None,
    parent: int | None,
    agents: dict[str, AgentResolver],
    engine: Engine | None,
    mcp: "McpServers | None",
) -> int:
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    link = Link(endpoint, name="agentstream-worker", probe_key=keys.probe)
    queues = {name: JobQueue(endpoint, link, keys, name, worker_id=worker_id) for name in agents}
    leases = {name: Leases(queue, settings.lease_s) for name, queue in queues.items()}
    slots = Slots(settings.concurrency)
    bus = Bus(link, keys)
    metrics = WorkerMetrics(number, slots=settings.concurrency)
    limits = run_limits(settings)
    workers = {
        name: Worker(
            queue,
            Runner(
                agents[name],
                bus,
                queue,
                leases[name],
                limits,
                metrics.queue(name),
                log_content=settings.log_content,
            ),
            leases[name],
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
        metrics.observe(workers.items(), bus.publish_counts, reconnects=reconnects)

    try:
        async with contextlib.AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signals(parent=parent))
            health = HealthServer(link, stop, observe=observe, render=metrics.render)
            if settings.metrics_port:
                shared = number is not None
                await stack.enter_async_context(
                    health.serve(settings.metrics_host, settings.metrics_port, shared=shared)
                )
            link.open()
            await link.wait_ready(settings.broker_wait_s)
            if mcp is not None:
                await mcp.start()
            await link.subscribe(keys.control(worker_id).encode(), on_control)
            await asyncio.gather(*(queue.open() for queue in queues.values()))
            log.info("worker %s takes jobs of queue %s", worker_id, ", ".join(map(repr, agents)))
            health.taking_jobs = True
            async with asyncio.TaskGroup() as working:  # an error in one of them ends all
                for name, worker in workers.items():
                    working.create_task(worker.run(stop), name=f"queue {name}")
    finally:
        await link.close()
        if mcp is not None:
            await mcp.close()
        if engine is not None:
            await engine.close()
    return 0


def build_agents(settings: Settings, mcp: "McpServers | None" = None) -> tuple[dict[str, AgentResolver], Engine | None]:
    """Return a resolver of agents for each served queue, and the engine of the built-in agent if it is used.

    Import only the agents of these queues. Raises StartupError.
    """
    if not settings.routes:
        agent, engine = build_agent(settings, mcp)
        return dict.fromkeys(settings.served_queues, lambda _: agent), engine
    builtin: Agent | None = None
    engine = None
    agents: dict[str, dict[str, Agent]] = {queue: {} for queue in settings.served_queues}
    for route in settings.routes:
        if route.queue not in agents:
            continue
        if route.agent != BUILTIN:
            agents[route.queue][route.model] = load_agent(route.agent)
            continue
        if builtin is None:
            builtin, engine = build_agent(settings, mcp)
        agents[route.queue][route.model] = builtin
    return {queue: partial(_resolve_agent, of_queue) for queue, of_queue in agents.items()}, engine


def _resolve_agent(agents: dict[str, Agent], model: str) -> Agent:
    if model not in agents:
        message = f"no agent for the model {model!r} (front ends and workers need the same AGENTSTREAM_AGENTS)"
        raise ValueError(message)
    return agents[model]


def build_mcp(settings: Settings) -> "McpServers | None":
    """Return the MCP servers of the built-in orchestrator, not yet connected. Raises StartupError."""
    if not settings.mcp_servers:
        return None
    agents = [route.agent for route in settings.routes] or [settings.agent or BUILTIN]
    if BUILTIN not in agents:
        log.warning("%s is for the built-in agent and has no effect on %s", env_name("mcp_servers"), ", ".join(agents))
        return None
    try:
        from agentstream.tools.mcp import McpServers, read_servers  # noqa: PLC0415 -- an optional dependency
    except ImportError as exc:
        raise StartupError(missing_extra(env_name("mcp_servers"), "mcp")) from exc
    return McpServers(read_servers(settings.mcp_servers))


def build_agent(settings: Settings, mcp: "McpServers | None" = None) -> tuple[Agent, Engine | None]:
    """Return the user's agent, or the built-in orchestrator and its engine."""
    if settings.agent:
        return load_agent(settings.agent), None
    engine: Engine
    if settings.openai_base_url:
        try:
            from agentstream.engines.openai import OpenAIEngine  # noqa: PLC0415 -- optional, and slow to import
        except ImportError as exc:
            raise StartupError(missing_extra("OPENAI_BASE_URL", "openai")) from exc

        engine = OpenAIEngine(
            settings.openai_base_url,
            settings.openai_api_key,
            model=settings.engine_model,
            timeout_s=settings.engine_timeout_s,
        )
    else:
        engine = BuiltinEngine(token_delay_s=settings.demo_token_delay_ms / 1000)
    toolbox = Toolbox(
        default_tools(read_url=settings.read_url),
        timeout_s=settings.tool_timeout_s,
        more_tools=mcp.tools if mcp else tuple,
    )
    orchestrator = Orchestrator(
        engine, toolbox, max_turns=settings.max_turns, context_tokens=settings.engine_context_tokens
    )
    return orchestrator, engine


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
    )
