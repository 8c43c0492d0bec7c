"""The stream machine of the older completions API: like the chat machine, with ``text`` instead of ``delta``."""

from typing import Any

from agentstream.protocol.completions import completion_id
from agentstream.protocol.events import Cursor
from agentstream.stream.chat import ChatStream
from agentstream.stream.transcript import ToolCallDelta


class CompletionStream(ChatStream):
    """Renders a run as ``text_completion`` chunks for one client: no role chunk, no reasoning, no tool calls."""

    __slots__ = ()

    def open(self) -> bytes:
        """Return nothing, because this API has no role chunk."""
        return b""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        own = {"id": completion_id(self._head.run_id), "object": "text_completion"}
        return {**super()._chunk(choices), **own}

    def _choice(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"text": delta.get("content", ""), "index": 0, "logprobs": None, "finish_reason": finish_reason}

    def _reasoning_chunk(self, text: str, event_id: str) -> bytes:  # noqa: ARG002 -- reasoning is left out
        return b""

    def _tool_call_delta(self, part: ToolCallDelta, cursor: Cursor) -> bytes:  # noqa: ARG002 -- calls are left out
        return b""
