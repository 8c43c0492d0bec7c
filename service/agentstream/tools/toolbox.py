"""The tools an orchestrator offers, and the calling of them: whatever happens, the model gets words back."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agentstream.engines.base import ToolSchema
from agentstream.tools.base import Tool, ToolError
from agentstream.tools.calculator import Calculator
from agentstream.tools.current_time import CurrentTime
from agentstream.tools.read_url import ReadUrl
from agentstream.tools.text_statistics import TextStatistics

# About 5,000 tokens: several results fit even a context window of 32,000.
MAX_RESULT_CHARS = 20_000
# What is quoted back of arguments that are not JSON: enough to recognise them.
_SHOWN_CHARS = 120

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What one call came to. ``content`` is the tool's text, or why it failed; ``latency_s`` is wall-clock."""

    tool: str
    content: str
    success: bool
    latency_s: float


class Toolbox:
    """Tools by name, each call with a time limit."""

    def __init__(
        self, tools: Sequence[Tool], timeout_s: float, more_tools: Callable[[], Sequence[Tool]] = tuple
    ) -> None:
        """Take the tools; ``timeout_s`` bounds each call. Raises ValueError if two have one name.

        ``more_tools`` returns tools that come and go; where the names clash, ``tools`` win.
        """
        self._own_tools = {tool.name: tool for tool in tools}
        self._more_tools = more_tools
        self._timeout_s = timeout_s
        if len(self._own_tools) != len(tools):
            message = f"two tools have the same name: {sorted(tool.name for tool in tools)}"
            raise ValueError(message)

    def tools(self) -> dict[str, Tool]:
        """Return the tools there are now, by name."""
        return {tool.name: tool for tool in self._more_tools()} | self._own_tools

    def schemas(self) -> list[ToolSchema]:
        """Return the tools as a model is told of them."""
        return [ToolSchema(tool.name, tool.description, tool.parameters) for tool in self.tools().values()]

    async def call(self, name: str, arguments_json: str) -> ToolOutcome:
        """Run a tool on the model's JSON text and return what came of it.

        Never raises but on cancellation: an unknown tool, bad arguments, a time-out and whatever the tool
        raises are outcomes without success, whose content tells the model what to do about it.
        """
        started = time.perf_counter()
        success = False
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                content = await self._run(name, arguments_json)
            success = True
        except ToolError as exc:
            content = str(exc)
        except Exception as exc:
            if isinstance(exc, TimeoutError) and limit.expired():
                content = f"{name} took longer than {self._timeout_s:g} s and was stopped"
            else:
                log.warning("tool %s failed", name, exc_info=exc)
                content = f"{name} failed: {type(exc).__name__}: {exc}"
        latency_s = time.perf_counter() - started
        return ToolOutcome(tool=name, content=_capped(content), success=success, latency_s=latency_s)

    async def _run(self, name: str, arguments_json: str) -> str:
        tools = self.tools()
        tool = tools.get(name)
        if tool is None:
            message = f"there is no tool called {name!r}; the tools are: {', '.join(tools) or 'none'}"
            raise ToolError(message)
        result: object = await tool.run(_arguments(arguments_json, tool.parameters))
        if not isinstance(result, str):
            message = f"{name} returned {type(result).__name__} where text was due"
            raise ToolError(message)
        return result


def default_tools(read_url: bool = False) -> list[Tool]:  # noqa: FBT001, FBT002 -- one switch, named where called
    """Return the built-in tools; the one that reaches out to the network only if asked for."""
    tools: list[Tool] = [Calculator(), CurrentTime(), TextStatistics()]
    if read_url:
        tools.append(ReadUrl())
    return tools


def _arguments(arguments_json: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Read and check a call's arguments; raises ToolError naming every fault."""
    try:
        arguments = orjson.loads(arguments_json.strip() or "{}")  # models send nothing for no arguments
    except ValueError as exc:
        shown = arguments_json[:_SHOWN_CHARS]
        message = f"the arguments are not valid JSON ({exc}): {shown!r}; send one JSON object"
        raise ToolError(message) from exc
    if not isinstance(arguments, dict):
        message = f"the arguments must be one JSON object, not {type(arguments).__name__}"
        raise ToolError(message)
    if faults := _schema_errors(arguments, schema):
        message = f"wrong arguments: {'; '.join(faults)}"
        raise ToolError(message)
    return arguments


def _schema_errors(arguments: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Check what models get wrong (required, unknown, type, enum) at the top level; tools check the rest."""
    properties: dict[str, Any] = schema.get("properties", {})
    faults = [f"{name} is required" for name in schema.get("required", ()) if name not in arguments]
    for name, value in arguments.items():
        if name not in properties:
            if schema.get("additionalProperties", True) is False:
                faults.append(f"{name} is unknown (known: {', '.join(properties) or 'none'})")
            continue
        wanted = properties[name].get("type")
        names = [wanted] if isinstance(wanted, str) else wanted or []
        if names and not any(_is_a(value, name_of_type) for name_of_type in names):
            faults.append(f"{name} must be {' or '.join(names)}, not {_json_type(value)}")
        allowed = properties[name].get("enum")
        if allowed is not None and value not in allowed:
            faults.append(f"{name} must be one of {orjson.dumps(allowed).decode()}")
    return faults


def _is_a(value: object, type_name: str) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return type_name == "boolean"
    if type_name == "integer" and isinstance(value, float):
        return value.is_integer()  # 2.0 is an integer to JSON schema
    return isinstance(value, _JSON_TYPES.get(type_name, (object,)))


def _json_type(value: object) -> str:
    return next(name for name in ("boolean", *_JSON_TYPES) if _is_a(value, name))


def _capped(text: str) -> str:
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]}\n[cut: {MAX_RESULT_CHARS} of {len(text)} characters shown]"
