"""The client's own tools in a run of the orchestrator: offered to the model, their calls handed back to the client."""

from collections.abc import Collection, Sequence

from agentstream.agents.contract import Run, ToolCallWriter
from agentstream.engines.base import EngineToolCall, EngineToolCallDelta, ToolChoice, ToolSchema
from agentstream.protocol.openai import ChatCompletionRequest, FunctionTool, NamedToolChoice


class ToolOffer:
    """Which tools the model may call, turn by turn.

    The client's request decides: its tool hides one of ours that has the same name, because the client knows what
    it asked for and nothing of ours. ``tool_choice`` speaks of the client's tools alone; ours are always offered.
    """

    def __init__(self, request: ChatCompletionRequest, own: Sequence[ToolSchema]) -> None:
        """Offer the request's tools beside ``own``."""
        choice = request.tool_choice
        client = [] if choice == "none" else [_as_schema(tool) for tool in request.tools or ()]
        self.client_names = frozenset(tool.name for tool in client)
        self._client = client
        self._own = [tool for tool in own if tool.name not in self.client_names]
        self._choice: ToolChoice | None = None
        if client:
            self._choice = choice.model_dump() if isinstance(choice, NamedToolChoice) else choice

    def for_turn(self, number: int, *, last: bool) -> tuple[list[ToolSchema], ToolChoice | None]:
        """Return the tools and the choice of the turn with this number, from 1.

        A required call is required until it comes; in the ``last`` turn the model is left nothing else. A named one
        is asked for once.
        """
        if self._choice == "required":
            return (self._client if last else [*self._client, *self._own]), self._choice
        choice = self._choice if number == 1 or isinstance(self._choice, str) else None
        return [*self._client, *self._own], choice


class ClientToolCalls:
    """One turn's calls of the client's tools, streamed to the run as the model writes them."""

    def __init__(self, run: Run, names: Collection[str], used_ids: set[str]) -> None:
        """Take the ``names`` of the client's tools, and the ids no call may have any more."""
        self._run = run
        self._names = names
        self._used_ids = used_ids
        self._writers: dict[int, ToolCallWriter] = {}

    def receive(self, part: EngineToolCallDelta) -> None:
        """Stream a part if it belongs to a call of the client's tools."""
        writer = self._writers.get(part.position)
        if writer is not None:
            writer.write(part.arguments)
        elif part.name in self._names:
            call_id = unique_call_id(part.id, self._used_ids)
            self._writers[part.position] = self._run.write_tool_call(part.name, part.arguments, id=call_id)

    def finish(self, calls: Sequence[EngineToolCall]) -> list[EngineToolCall]:
        """Stream what came without parts; return the turn's calls under ids that no other call has."""
        named: list[EngineToolCall] = []
        for position, call in enumerate(calls):
            if position not in self._writers:
                self.receive(EngineToolCallDelta(position, call.id, call.name, call.arguments))
            writer = self._writers.get(position)
            call_id = writer.id if writer else unique_call_id(call.id, self._used_ids)
            named.append(EngineToolCall(call_id, call.name, call.arguments))
        return named


def unique_call_id(call_id: str, used_ids: set[str]) -> str:
    """Return an id no other call of the conversation has, and note it as used: results are matched by it."""
    unique, number = call_id or "call", 1
    while unique in used_ids:
        number += 1
        unique = f"{call_id or 'call'}_{number}"
    used_ids.add(unique)
    return unique


def used_call_ids(request: ChatCompletionRequest) -> set[str]:
    """Return the ids of the calls in the conversation so far."""
    return {call.id for message in request.messages for call in message.tool_calls or ()}


def _as_schema(tool: FunctionTool) -> ToolSchema:
    function = tool.function
    definition = tool.model_dump(exclude_unset=True)
    return ToolSchema(function.name, function.description or "", function.parameters or {}, definition)
