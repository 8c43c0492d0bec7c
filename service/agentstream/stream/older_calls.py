"""The chat stream for clients that sent ``functions``: a call comes as ``function_call`` instead of ``tool_calls``.

This form has one call in an answer. If an agent writes more calls, the others come as ``tool_calls``.
"""

from typing import Any, Final

from agentstream.protocol.events import Cursor
from agentstream.stream import sse
from agentstream.stream.chat import ChatStream
from agentstream.stream.transcript import ToolCallDelta

_FINISH_REASONS: Final = {"tool_calls": "function_call"}


class OlderChatStream(ChatStream):
    """Renders a run as ``chat.completion.chunk`` frames with calls in the older form."""

    __slots__ = ()

    def _choice(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return super()._choice(delta, _FINISH_REASONS.get(finish_reason or "", finish_reason))

    def _tool_call_delta(self, part: ToolCallDelta, cursor: Cursor) -> bytes:
        if part.index > 0:
            return super()._tool_call_delta(part, cursor)
        name = {} if part.name is None else {"name": part.name}
        delta = {"function_call": {**name, "arguments": part.arguments}}
        return sse.frame(sse.json_line(self._chunk([self._choice(delta)])), event_id=str(cursor))


def in_older_form(completion: dict[str, Any]) -> dict[str, Any]:
    """Return a ``chat.completion`` with its first call as ``function_call``."""
    [choice] = completion["choices"]
    message = dict(choice["message"])
    calls = message.pop("tool_calls", [])
    if calls:
        message["function_call"] = calls[0]["function"]
    if calls[1:]:
        message["tool_calls"] = calls[1:]
    reason = _FINISH_REASONS.get(choice["finish_reason"], choice["finish_reason"])
    return {**completion, "choices": [{**choice, "message": message, "finish_reason": reason}]}
