"""The client's own tools in a run of the orchestrator: which tools a turn offers, and how calls reach the client."""

from collections.abc import Collection, Sequence

from agentstream.agents.contract import Run
from agentstream.agents.tool_calls import ToolCallWriter
from agentstream.engines.base import EngineToolCall, EngineToolCallDelta, ToolChoice, ToolSchema
from agentstream.protocol.openai import ChatCompletionRequest, FunctionTool


class ToolOffer:
    """The tools that the model may call in each turn: the client's tools and the orchestrator's own.

    A client's tool replaces an own tool of the same name: the client knows its request, but not the own tools.
    ``tool_choice`` applies to the client's tools only. The own tools are offered with every ``tool_choice``, except in
    the last turn with ``required``.
    """

    def __init__(self, request: ChatCompletionRequest, own: Sequence[ToolSchema]) -> None:
        """Combine the request's tools with the orchestrator's ``own``."""
        choice = request.tool_choice
        client = [] if choice == "none" else [_as_schema(tool) for tool in request.tools or ()]
        self.client_names = frozenset(tool.name for tool in client)
        self._client = client
        self._own = [tool for tool in own if tool.name not in self.client_names]
        self._choice: ToolChoice | None = None
        if client:
            self._choice = choice if isinstance(choice, str | None) else choice.model_dump()

    def for_turn(self, number: int, *, last: bool) -> tuple[list[ToolSchema], ToolChoice | None]:
        """Return the tools and the ``tool_choice`` of a turn; turns are numbered from 1.

        ``required`` applies to every turn, because the run ends at the first call of a client's tool. Its ``last``
        turn offers the client's tools only, so that the model must call one of them. A choice that names a tool
        applies to the first turn only.
        """
        if self._choice == "required":
            return (self._client if last else [*self._client, *self._own]), self._choice
        choice = self._choice if number == 1 or isinstance(self._choice, str) else None
        return [*self._client, *self._own], choice


class ClientToolCalls:
    """Streams one turn's calls of the client's tools to the run, while the model writes them."""

    def __init__(self, run: Run, names: Collection[str], used_ids: set[str]) -> None:
        """``names`` are the client's tools. ``used_ids`` are the call ids of the conversation; new ids are added."""
        self._run = run
        self._names = names
        self._used_ids = used_ids
        self._writers: dict[int, ToolCallWriter] = {}

    def receive(self, part: EngineToolCallDelta) -> None:
        """Stream a piece of a call if the call is of a client's tool; otherwise ignore it."""
        writer = self._writers.get(part.position)
        if writer is not None:
            writer.write(part.arguments)
        elif part.name in self._names:
            call_id = unique_call_id(part.id, self._used_ids)
            self._writers[part.position] = self._run.write_tool_call(part.name, part.arguments, id=call_id)

    def finish(self, calls: Sequence[EngineToolCall]) -> list[EngineToolCall]:
        """Stream the client's calls that arrived without pieces; return all calls, each with an unused id."""
        renamed: list[EngineToolCall] = []
        for position, call in enumerate(calls):
            if position not in self._writers:
                self.receive(EngineToolCallDelta(position, call.id, call.name, call.arguments))
            writer = self._writers.get(position)
            call_id = writer.id if writer else unique_call_id(call.id, self._used_ids)
            renamed.append(EngineToolCall(call_id, call.name, call.arguments))
        return renamed


def unique_call_id(call_id: str, used_ids: set[str]) -> str:
    """Return ``call_id``, with a number if it is already used, and add the returned id to ``used_ids``.

    A tool result names its call by this id, so two calls must not share one.
    """
    unique, number = call_id or "call", 1
    while unique in used_ids:
        number += 1
        unique = f"{call_id or 'call'}_{number}"
    used_ids.add(unique)
    return unique


def used_call_ids(request: ChatCompletionRequest) -> set[str]:
    """Return the ids of all tool calls in the request's messages."""
    return {call.id for message in request.messages for call in message.tool_calls or ()}


def _as_schema(tool: FunctionTool) -> ToolSchema:
    function = tool.function
    definition = tool.model_dump(exclude_unset=True)
    return ToolSchema(function.name, function.description or "", function.parameters or {}, definition)
