"""The trace span of one inference, with attribute names of OpenTelemetry's conventions for generative AI."""

import json
from collections.abc import Sequence
from typing import Any

from agentstream.engines.base import EngineToolCall
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.telemetry import tracing


def inference_span(
    provider: str,
    model: str,
    request: ChatCompletionRequest,
    messages: Sequence[dict[str, Any]],
    where: tracing.Attributes | None = None,
) -> tracing.Span:
    """Return the span of one inference by ``model``.

    ``where`` has the attributes of the model server, or is None if the engine runs in this process. The span is not
    made the current span, because engines are generators. An engine sends the span's ``carrier`` with its request.
    """
    if not tracing.enabled():
        return tracing.span("chat")
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.max_tokens": request.output_token_limit,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.frequency_penalty": request.frequency_penalty,
        "gen_ai.request.presence_penalty": request.presence_penalty,
        **(where or {}),
    }
    if tracing.content_enabled():
        attributes["gen_ai.input.messages"] = _latest(messages)
    return tracing.span(f"chat {model}", "client" if where else "internal", attributes, current=False)


def record_response(  # noqa: PLR0913 -- one argument per attribute
    span: tracing.Span,
    *,
    usage: Usage | None,
    finish_reason: str | None,
    first_chunk_s: float | None = None,
    response_id: object = None,
    response_model: object = None,
) -> None:
    """Set the attributes of the response. ``first_chunk_s`` is the time from request to first chunk, in seconds."""
    span.set(
        {
            "gen_ai.response.time_to_first_chunk": first_chunk_s,
            "gen_ai.response.id": response_id if isinstance(response_id, str) else None,
            "gen_ai.response.model": response_model if isinstance(response_model, str) else None,
            "gen_ai.response.finish_reasons": [finish_reason] if finish_reason else None,
            "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
            "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
        }
    )


def record_output_messages(span: tracing.Span, text: str, calls: Sequence[EngineToolCall], finish_reason: str) -> None:
    """Set the span's attribute with the model's answer, unless the answer is too long.

    Call it only if ``tracing.content_enabled()``.
    """
    tool_calls = [{"id": call.id, "function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    answer = _in_parts({"role": "assistant", "content": text, "tool_calls": tool_calls})
    encoded = _as_json([{**answer, "finish_reason": finish_reason}])
    span.set({"gen_ai.output.messages": encoded if len(encoded) <= tracing.MAX_CONTENT_CHARS else None})


def _latest(messages: Sequence[dict[str, Any]]) -> str:
    """Return the last messages of a conversation as JSON, as many as fit into ``MAX_CONTENT_CHARS``."""
    kept: list[str] = []
    room = tracing.MAX_CONTENT_CHARS
    for message in reversed(messages):
        encoded = _as_json(_in_parts(message))
        room -= len(encoded)
        if room < 0:
            break
        kept.insert(0, encoded)
    return f"[{','.join(kept)}]"


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Convert a chat message from OpenAI's form to the form of the conventions."""
    content = message.get("content") or ()
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = [
        {"type": "text", "content": str(part["text"])} if "text" in part else {"type": part.get("type")}
        for part in content
    ]
    if message["role"] == "tool":
        text = "".join(part.get("content", "") for part in parts)
        parts = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": text}]
    for call in message.get("tool_calls") or ():
        parts.append({"type": "tool_call", "id": call.get("id"), **(call.get("function") or {})})
    return {"role": message["role"], "parts": parts}


def _as_json(value: object) -> str:
    return json.dumps(value, default=str)  # not orjson, which refuses lone surrogates; models write them
