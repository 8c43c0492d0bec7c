"""The tools of an orchestrator. A call of a tool always returns a text for the model, also if the tool fails."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agentstream.engines.base import ToolSchema
from agentstream.protocol.plain_json import json_text
from agentstream.telemetry.log_context import AGENT_ERROR
from agentstream.telemetry.masking import mask, mask_error
from agentstream.tools.approval import ApprovalRule
from agentstream.tools.base import Tool, ToolError, is_repeatable
from agentstream.tools.calculator import Calculator
from agentstream.tools.current_time import CurrentTime
from agentstream.tools.read_url import ReadUrl
from agentstream.tools.text_statistics import TextStatistics

# About 5,000 tokens: several results fit into a context window of 32,000 tokens.
MAX_RESULT_CHARS = 20_000
# An error quotes this much of malformed arguments: enough to recognise them.
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
    """The result of one call.

    ``content`` is the tool's text, or the error if ``success`` is False. ``latency_s`` is the wall-clock time of the
    call, in seconds.
    """

    tool: str
    content: str
    success: bool
    latency_s: float


class Toolbox:
    """A set of tools with different names, and a time limit for each call."""

    def __init__(
        self,
        tools: Sequence[Tool],
        timeout_s: float,
        more_tools: Callable[[], Sequence[Tool]] = tuple,
        *,
        approval: ApprovalRule | None = None,
        hide_errors: bool = False,
    ) -> None:
        """Create a toolbox of ``tools``. ``timeout_s`` is the time limit of each call, in seconds.

        ``more_tools`` returns further tools, which may change over time. If one has the same name as one of
        ``tools``, it is ignored. ``approval`` says which tools need a person's approval; by default those that declare
        it. With ``hide_errors`` the text of an unexpected exception is only logged: neither the
        model nor a client sees it. Raises ValueError if two of ``tools`` have the same name.
        """
        self._own_tools = {tool.name: tool for tool in tools}
        self._more_tools = more_tools
        self._timeout_s = timeout_s
        self._approval = approval or ApprovalRule()
        self._hide_errors = hide_errors
        if len(self._own_tools) != len(tools):
            message = f"two tools have the same name: {sorted(tool.name for tool in tools)}"
            raise ValueError(message)

    def tools(self) -> dict[str, Tool]:
        """Return the current tools by name."""
        return {tool.name: tool for tool in self._more_tools()} | self._own_tools

    def schemas(self) -> list[ToolSchema]:
        """Return the descriptions of the current tools for a model."""
        return [ToolSchema(tool.name, tool.description, tool.parameters) for tool in self.tools().values()]

    def is_repeatable(self, name: str) -> bool:
        """Return whether a call of a tool may be repeated. A tool that is not known now may not."""
        return is_repeatable(self.tools().get(name))

    def needs_approval(self, name: str) -> bool:
        """Return whether a person must approve each call of a tool. A call of an unknown tool fails without it."""
        tool = self.tools().get(name)
        return tool is not None and self._approval.needs_approval(tool)

    def fault(self, name: str, arguments_json: str) -> str:
        """Return why a call cannot run: there is no such tool, or its arguments are wrong. An empty text if it can."""
        try:
            self._checked(name, arguments_json)
        except ToolError as exc:
            return mask_error(str(exc))
        return ""

    def unknown_in_approval(self) -> list[str]:
        """Return the entries of the approval rule that name no current tool."""
        return self._approval.without_effect(self.tools().values())

    async def call(self, name: str, arguments_json: str, *, approved: bool = False) -> ToolOutcome:
        """Run a tool with arguments as JSON text, as the model wrote them, and return the outcome.

        It raises nothing except CancelledError. An unknown tool, wrong arguments, a timeout or an exception of the
        tool give an outcome with ``success`` False, whose content explains the error to the model. So does a tool
        that needs approval, unless a person has ``approved`` the call.
        """
        started = time.perf_counter()
        success = False
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                content = await self._run(name, arguments_json, approved=approved)
            success = True
        except ToolError as exc:
            content = mask_error(str(exc))
        except Exception as exc:
            if isinstance(exc, TimeoutError) and limit.expired():
                content = f"{name} took longer than {self._timeout_s:g} s and was stopped"
            else:
                log.warning("tool %s failed", name, exc_info=exc, extra=AGENT_ERROR)
                details = "" if self._hide_errors else f": {type(exc).__name__}: {exc}"
                content = mask_error(f"{name} failed{details}")
        latency_s = time.perf_counter() - started
        return ToolOutcome(tool=name, content=_capped(mask(content)), success=success, latency_s=latency_s)

    def _checked(self, name: str, arguments_json: str) -> tuple[Tool, dict[str, Any]]:
        tools = self.tools()
        tool = tools.get(name)
        if tool is None:
            message = f"there is no tool called {name!r}; the tools are: {', '.join(tools) or 'none'}"
            raise ToolError(message)
        return tool, _arguments(arguments_json, tool.parameters)

    async def _run(self, name: str, arguments_json: str, *, approved: bool) -> str:
        tool, arguments = self._checked(name, arguments_json)
        if not approved and self._approval.needs_approval(tool):
            # Its server or this deployment has changed the rule after the call was announced.
            message = f"{name} was not run: it now needs the approval of a person. Call it again to ask for it."
            raise ToolError(message)
        result: object = await tool.run(arguments)
        try:
            return json_text(result)
        except (TypeError, ValueError) as exc:
            message = f"{name} returned {type(result).__name__}, which cannot be written as JSON: {exc}"
            raise ToolError(message) from exc


def default_tools(read_url: bool = False) -> list[Tool]:  # noqa: FBT001, FBT002 -- one switch, named where called
    """Return the built-in tools. With ``read_url`` they include ReadUrl, the only one that uses the network."""
    tools: list[Tool] = [Calculator(), CurrentTime(), TextStatistics()]
    if read_url:
        tools.append(ReadUrl())
    return tools


def _arguments(arguments_json: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Parse and check the arguments of a call; raises ToolError that names every error in them."""
    try:
        arguments = orjson.loads(arguments_json.strip() or "{}")  # without arguments some models send an empty text
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
    """Return the errors that models make at the top level (required, unknown, type, enum); tools check the rest."""
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
    if isinstance(value, bool):  # in Python a bool is also an int
        return type_name == "boolean"
    if type_name == "integer" and isinstance(value, float):
        return value.is_integer()  # JSON schema accepts 2.0 as an integer
    return isinstance(value, _JSON_TYPES.get(type_name, (object,)))


def _json_type(value: object) -> str:
    return next(name for name in ("boolean", *_JSON_TYPES) if _is_a(value, name))


def _capped(text: str) -> str:
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]}\n[cut: {MAX_RESULT_CHARS} of {len(text)} characters shown]"
