"""The format of the answer and the effort of the reasoning in the Responses API.

A request has these fields, and an item of its input may replace them.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from agentstream.protocol.openai import Name
from agentstream.protocol.response_tools import ExtensibleModel


class PlainFormat(ExtensibleModel):
    """The answer is text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(ExtensibleModel):
    """The answer is JSON that follows a schema. The schema is passed on unchecked."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Literal["json_schema"]
    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(ExtensibleModel):
    """The format and verbosity of the answer's text."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: str | None = None


class ReasoningConfig(ExtensibleModel):
    """The reasoning effort of the model. Its reasoning is sent unchanged; the field ``summary`` has no effect."""

    effort: str | None = None


def text_fields(text: TextConfig | None) -> dict[str, Any]:
    """Return the fields of a chat completion request for the format and the verbosity."""
    fields: dict[str, Any] = {}
    if text is None:
        return fields
    if text.verbosity is not None:
        fields["verbosity"] = text.verbosity
    if isinstance(text.format, SchemaFormat):
        schema = text.format.model_dump(by_alias=True, exclude_unset=True, exclude={"type"})
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif text.format is not None and text.format.type != "text":
        fields["response_format"] = {"type": text.format.type}
    return fields
