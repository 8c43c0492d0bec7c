"""Converts a conversation from OpenAI's form to pydantic-ai's."""

from urllib.parse import urlsplit

from pydantic_ai import (
    BinaryContent,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai import TextPart as ModelText

from agentstream.protocol.openai import ChatMessage, ImagePart, TextPart


def conversation(messages: list[ChatMessage]) -> list[ModelMessage]:
    """Convert a conversation to pydantic-ai's form. The last message is the one to answer."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    turns: list[ModelMessage] = []
    for message in messages:
        if message.role == "assistant":
            calls = [
                ToolCallPart(call.function.name, call.function.arguments or "{}", call.id)
                for call in message.tool_calls or ()
            ]
            turns.append(ModelResponse([*([ModelText(message.text)] if message.text else []), *calls]))
            continue
        part: SystemPromptPart | UserPromptPart | ToolReturnPart
        if message.role in {"system", "developer"}:
            part = SystemPromptPart(message.text)
        elif message.role == "tool":
            call_id = message.tool_call_id or ""
            part = ToolReturnPart(names.get(call_id, ""), message.text, call_id)
        else:
            part = UserPromptPart(_content(message))
        if turns and isinstance(turns[-1], ModelRequest):
            turns[-1] = ModelRequest([*turns[-1].parts, part])
        else:
            turns.append(ModelRequest([part]))
    return turns


def _content(message: ChatMessage) -> str | list[UserContent]:
    """Return the text and the images of a user message; raises ValueError for a malformed data URL."""
    if not isinstance(message.content, list):
        return message.text
    content: list[UserContent] = []
    for part in message.content:
        if isinstance(part, TextPart):
            content.append(part.text)
        elif isinstance(part, ImagePart):
            url = part.image_url.url
            inline = urlsplit(url).scheme == "data"
            content.append(BinaryContent.from_data_uri(url) if inline else ImageUrl(url))
    return content
