"""The tool of the demo engine that shows how a person approves a call. It sends nothing."""

from typing import Any, ClassVar


class Postcard:
    """The tool: it pretends to send ``{"to": ..., "text": ...}``, after a person has approved the call."""

    name = "send_postcard"
    idempotent = True
    needs_approval = True
    description = "Pretend to send a postcard. A person must approve it. Nothing is sent."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "to": {"type": "string", "description": "the name of the receiver"},
            "text": {"type": "string", "description": "the text on the postcard"},
        },
        "required": ["to", "text"],
        "additionalProperties": False,
    }

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return a sentence that says what would have been sent."""
        return f'the postcard to {arguments["to"]} with the text "{arguments["text"]}" was approved (nothing was sent)'
