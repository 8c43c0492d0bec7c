"""Converts a conversation from OpenAI's chat completions to input items of the Responses API, which the SDK takes."""

from typing import Any

from agentstream.protocol.openai import ChatMessage, ImagePart, TextPart


def conversation(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Convert a conversation to input items of the Responses API, which the SDK takes."""
    items: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            items.append({"type": "function_call_output", "call_id": message.tool_call_id, "output": message.text})
            continue
        if message.role != "assistant" or message.text:
            items.append({"role": message.role, "content": _content(message)})
        items += [
            {
                "type": "function_call",
                "call_id": call.id,
                "name": call.function.name,
                "arguments": call.function.arguments or "{}",
            }
            for call in message.tool_calls or ()
        ]
    return items


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    if message.role != "user" or not isinstance(message.content, list):
        return message.text
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, TextPart):
            parts.append({"type": "input_text", "text": part.text})
        elif isinstance(part, ImagePart):
            detail = part.image_url.detail or "auto"
            parts.append({"type": "input_image", "image_url": part.image_url.url, "detail": detail})
    return parts
