"""The agents of a worker process, made from its settings: the user's agents, and the built-in one."""

import inspect
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from agentstream.agents import Agent
from agentstream.agents.import_errors import explain_import_error
from agentstream.agents.lifespan import ManagedAgent
from agentstream.agents.loading import load_agent, load_object
from agentstream.agents.orchestrator import Orchestrator
from agentstream.config import BUILTIN, Settings, env_name
from agentstream.engines.base import Engine
from agentstream.engines.demo import BuiltinEngine
from agentstream.errors import StartupError, missing_extra
from agentstream.tools.approval import ApprovalRule
from agentstream.tools.base import Tool
from agentstream.tools.own_tools import as_tools
from agentstream.tools.postcard import Postcard
from agentstream.tools.toolbox import Toolbox, default_tools
from agentstream.worker.execution import AgentResolver

if TYPE_CHECKING:
    from agentstream.tools.mcp import McpServers

log = logging.getLogger(__name__)


@dataclass(slots=True)
class AgentSet:
    """The agents of a worker process.

    ``resolvers`` has a function for each served queue; it returns the agent of a model. ``managed`` are the agents that
    must be started. ``engine``, ``toolbox`` and ``mcp`` belong to the built-in agent; they are None if it is not
    used.
    """

    resolvers: dict[str, AgentResolver] = field(default_factory=dict)
    managed: list[ManagedAgent] = field(default_factory=list)
    engine: Engine | None = None
    toolbox: Toolbox | None = None
    mcp: "McpServers | None" = None

    def warn_of_unknown_tools(self) -> None:
        """Log the entries of APPROVE_TOOLS that name no tool: if a name is misspelt, its tool runs without approval."""
        if self.toolbox is not None and (unknown := self.toolbox.unknown_in_approval()):
            setting, tools = env_name("approve_tools"), self.toolbox.tools()
            log.warning("%s: there is no tool %s; the tools are %s", setting, ", ".join(unknown), ", ".join(tools))

    async def close(self) -> None:
        """Close the connections to MCP servers and to the model server."""
        if self.mcp is not None:
            await self.mcp.close()
        close = getattr(self.engine, "close", None)  # an engine of the user's may have none
        if close is not None and inspect.isawaitable(closing := close()):
            await closing


def build_agents(settings: Settings) -> AgentSet:
    """Import the agents of the served queues, and build the built-in agent if it is used. Raises StartupError."""
    agents = AgentSet()
    routes = [(route.queue, route.model, route.agent) for route in settings.routes]
    specs = [spec for _, _, spec in routes] or [settings.agent or BUILTIN]
    _warn_if_unused(settings, specs)
    loaded = {spec: _load(spec, settings, agents) for spec in _served(specs, routes, settings)}
    if not routes:
        resolver = partial(_resolve_any, loaded[specs[0]])
        agents.resolvers = dict.fromkeys(settings.served_queues, resolver)
        return agents
    for queue in settings.served_queues:
        of_queue = {model: loaded[spec] for its_queue, model, spec in routes if its_queue == queue}
        agents.resolvers[queue] = partial(_resolve, of_queue)
    return agents


def _served(specs: list[str], routes: list[tuple[str, str, str]], settings: Settings) -> list[str]:
    """Return the names of the agents that the served queues need, each once."""
    if routes:
        specs = [spec for queue, _, spec in routes if queue in settings.served_queues]
    return list(dict.fromkeys(specs))


def _load(spec: str, settings: Settings, agents: AgentSet) -> Agent:
    if spec == BUILTIN:
        return _build_orchestrator(settings, agents)
    agent = load_agent(spec)
    if not isinstance(agent, ManagedAgent):
        return agent
    for known in agents.managed:  # two names of one object: it is started once
        if known.source is agent.source:
            return known
    agents.managed.append(agent)
    return agent


def _resolve(agents: dict[str, Agent], model: str) -> Agent:
    if model not in agents:
        message = f"no agent for the model {model!r} (front ends and workers need the same AGENTSTREAM_AGENTS)"
        raise ValueError(message)
    return _resolve_any(agents[model], model)


def _resolve_any(agent: Agent, _model: str) -> Agent:
    return agent.agent if isinstance(agent, ManagedAgent) else agent


def _warn_if_unused(settings: Settings, specs: list[str]) -> None:
    """Warn of settings that have no effect because the built-in agent is not used."""
    for name in ("mcp_servers", "tools", "approve_tools", "engine"):
        if getattr(settings, name) and BUILTIN not in specs:
            log.warning("%s is for the built-in agent and has no effect on %s", env_name(name), ", ".join(specs))


def _build_orchestrator(settings: Settings, agents: AgentSet) -> Agent:
    agents.mcp = _build_mcp(settings)
    agents.engine = _build_engine(settings)
    own = {tool.name: tool for tool in _load_tools(settings.tools)}
    tools = {tool.name: tool for tool in default_tools(read_url=settings.read_url)} | own
    if isinstance(agents.engine, BuiltinEngine):
        tools.setdefault(Postcard.name, Postcard())
    agents.toolbox = Toolbox(
        list(tools.values()),
        timeout_s=settings.tool_timeout_s,
        more_tools=agents.mcp.tools if agents.mcp else tuple,
        approval=ApprovalRule(settings.approve_tools),
        hide_errors=settings.error_details == "hidden",
    )
    return Orchestrator(
        agents.engine,
        agents.toolbox,
        max_turns=settings.max_turns,
        context_tokens=settings.engine_context_tokens,
    )


def _build_mcp(settings: Settings) -> "McpServers | None":
    """Return the MCP servers, not yet connected. Raises StartupError."""
    if not settings.mcp_servers:
        return None
    try:
        from agentstream.tools.mcp import McpServers, read_servers  # noqa: PLC0415 -- an optional dependency
    except ImportError as exc:
        raise StartupError(missing_extra(env_name("mcp_servers"), "mcp")) from exc
    return McpServers(read_servers(settings.mcp_servers))


def _load_tools(specs: tuple[str, ...]) -> list[Tool]:
    """Import the user's tools. Raises StartupError."""
    tools: dict[str, Tool] = {}
    for spec in specs:
        found = load_object("tool", spec)
        try:
            loaded = as_tools(found)
        except TypeError as exc:
            message = f"tool {spec!r} {exc}"
            raise StartupError(message) from exc
        for tool in loaded:
            if tool.name in tools:
                message = f"tool {spec!r}: another tool of {env_name('tools')} has the name {tool.name!r} already"
                raise StartupError(message)
            tools[tool.name] = tool
    return list(tools.values())


def _build_engine(settings: Settings) -> Engine:
    if settings.engine:
        return _load_engine(settings.engine)
    if settings.openai_base_url:
        try:
            from agentstream.engines.openai import OpenAIEngine  # noqa: PLC0415 -- optional, and slow to import
        except ImportError as exc:
            raise StartupError(missing_extra("OPENAI_BASE_URL", "openai")) from exc

        return OpenAIEngine(
            settings.openai_base_url,
            settings.openai_api_key,
            model=settings.engine_model,
            timeout_s=settings.engine_timeout_s,
            prefill=settings.engine_prefill,
        )
    return BuiltinEngine(token_delay_s=settings.demo_token_delay_ms / 1000)


def _load_engine(spec: str) -> Engine:
    """Import the user's engine, or call the class or function that makes it. Raises StartupError."""
    found: Any = load_object("engine", spec)
    if not hasattr(found, "stream") or inspect.isclass(found):
        if not callable(found):
            message = f"engine {spec!r} is a {type(found).__name__} without a method `stream`"
            raise StartupError(message)
        try:
            found = found()
        except (Exception, SystemExit) as exc:  # the user's code may raise anything
            message = f"engine {spec!r} cannot be made: {explain_import_error(exc, '')}"
            raise StartupError(message) from exc
    return check_engine(found, f"engine {spec!r}")


def check_engine(found: object, label: str) -> Engine:
    """Return an object as an engine. Raises StartupError, which begins with ``label``, if it cannot be one."""
    stream: Any = getattr(found, "stream", None)
    form = "write `async def stream(self, request, messages, tools, tool_choice=None)` with `yield EngineDelta(...)`"
    if not callable(stream):
        message = f"{label} is a {type(found).__name__} without a method `stream`: {form}"
        raise StartupError(message)
    if inspect.iscoroutinefunction(stream):
        message = f"{label}: its method `stream` yields nothing: {form}"
        raise StartupError(message)
    try:
        inspect.signature(stream).bind(None, None, None, None)
    except TypeError as exc:
        message = f"{label}: its method `stream` takes the parameters {inspect.signature(stream)}: {form}"
        raise StartupError(message) from exc
    except ValueError:  # a built-in method without a signature
        pass
    if not isinstance(getattr(found, "name", None), str):
        message = f"{label} has no `name`: give its class one, for example `name = 'my-engine'`"
        raise StartupError(message)
    return cast("Engine", found)
