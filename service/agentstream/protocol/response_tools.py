"""The tools of the Responses API: which of them agents get, under which names, and which are left out.

    tool        agents get
    ==========  ==================================================================================================
    function    the same function
    custom      a function with one text parameter, ``input``; its calls are items of type custom_tool_call
    namespace   its functions and custom tools, named ``<namespace>__<name>``
    any other   nothing: OpenAI's own servers run these tools, or their calls have forms that only its models write

A tool that is left out does not fail the request. The response lists it in ``ignored_tools``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from agentstream.protocol.openai import Name

FUNCTION: Final = "function"
CUSTOM: Final = "custom"
NAMESPACE: Final = "namespace"
_SEPARATOR: Final = "__"
_OTHER: Final = "other"

# Fields of a function that only this API has. Model servers may refuse them in a chat completion.
_NOT_PASSED_ON: Final = frozenset({"type", "defer_loading", "allowed_callers", "async", "output_schema"})
_INPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


class ExtensibleModel(BaseModel):
    """A model that keeps unknown fields."""

    model_config = ConfigDict(extra="allow")


class ResponseFunctionTool(ExtensibleModel):
    """A function of the client: the model may call it, and the client runs it."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseCustomTool(ExtensibleModel):
    """A tool of the client whose input is free text. If ``format`` has a grammar, the model is asked to follow it."""

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: dict[str, Any] | None = None


class HostedTool(ExtensibleModel):
    """A tool of any other type. It is left out."""

    type: str = Field(min_length=1, json_schema_extra={"not": {"enum": [FUNCTION, CUSTOM, NAMESPACE]}})


def _type_of(value: Any, known: tuple[str, ...] = (FUNCTION, CUSTOM)) -> str | None:  # noqa: ANN401 -- decoded JSON
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in known else _OTHER if isinstance(kind, str) else None


def _discriminator(type_of: Callable[[Any], str | None]) -> Discriminator:
    return Discriminator(
        type_of,
        custom_error_type="tool_type",
        custom_error_message="a tool is an object whose type is a text, for example 'function'",
    )


_Function = Annotated[ResponseFunctionTool, Tag(FUNCTION)]
_Custom = Annotated[ResponseCustomTool, Tag(CUSTOM)]
_Hosted = Annotated[HostedTool, Tag(_OTHER)]


class NamespaceTool(ExtensibleModel):
    """Several tools under a common name."""

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: list[Annotated[_Function | _Custom | _Hosted, _discriminator(_type_of)]]


def _type_of_any(value: Any) -> str | None:  # noqa: ANN401 -- decoded JSON
    return _type_of(value, (FUNCTION, CUSTOM, NAMESPACE))


ResponseTool = Annotated[
    _Function | _Custom | Annotated[NamespaceTool, Tag(NAMESPACE)] | _Hosted, _discriminator(_type_of_any)
]


class ClientTool(NamedTuple):
    """A function or custom tool. ``definition`` is the tool as the client sent it."""

    kind: str
    name: str
    namespace: str | None
    definition: Mapping[str, Any]


def agent_name(name: str, namespace: str | None) -> str:
    """Return the name under which agents know a tool."""
    return f"{namespace.removesuffix(_SEPARATOR)}{_SEPARATOR}{name}" if namespace else name


def client_tools(tools: Iterable[Mapping[str, Any]]) -> Iterator[ClientTool]:
    """Yield the tools that agents get, from tools as JSON."""
    for tool in tools:
        if tool["type"] == NAMESPACE:
            for inner in tool["tools"]:
                if inner["type"] in {FUNCTION, CUSTOM}:
                    yield ClientTool(inner["type"], inner["name"], tool["name"], inner)
        elif tool["type"] in {FUNCTION, CUSTOM}:
            yield ClientTool(tool["type"], tool["name"], None, tool)


def tools_by_agent_name(tools: Iterable[Mapping[str, Any]]) -> dict[str, ClientTool]:
    """Return the tools that agents get by the names under which agents know them. The first of equal names counts."""
    found: dict[str, ClientTool] = {}
    for tool in client_tools(tools):
        found.setdefault(agent_name(tool.name, tool.namespace), tool)
    return found


def split_tools(tools: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tools that agents get, as JSON, and the tools that are left out, each by its type and its name.

    The second list holds nothing else: definitions of hosted tools may contain keys of other services.
    """
    served: list[dict[str, Any]] = []
    ignored: list[dict[str, Any]] = []
    for tool in tools:
        if tool["type"] == NAMESPACE:
            inner_served, inner_ignored = split_tools(tool["tools"])
            served.append({**tool, "tools": inner_served})
            ignored += [{**inner, "namespace": tool["name"]} for inner in inner_ignored]
        elif tool["type"] in {FUNCTION, CUSTOM}:
            served.append(dict(tool))
        else:
            name = tool.get("name") or tool.get("server_label")
            ignored.append({"type": tool["type"][:80], **({"name": name[:80]} if isinstance(name, str) else {})})
    return served, ignored


def chat_tools(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools that agents get, in the form of a chat completion request."""
    namespaces = {tool["name"]: tool.get("description") for tool in tools if tool["type"] == NAMESPACE}
    return [
        {"type": "function", "function": _as_function(name, tool, namespaces.get(tool.namespace))}
        for name, tool in tools_by_agent_name(tools).items()
    ]


def _as_function(name: str, tool: ClientTool, namespace_description: str | None) -> dict[str, Any]:
    sent = tool.definition
    descriptions = [namespace_description, sent.get("description")]
    if tool.kind == FUNCTION:
        function = {key: value for key, value in sent.items() if key not in _NOT_PASSED_ON}
    else:
        descriptions.append(_grammar_words(sent.get("format")))
        function = {"parameters": _INPUT}
    description = "\n\n".join(text for text in descriptions if text)
    return {**function, "name": name, **({"description": description} if description else {})}


def _grammar_words(input_format: Mapping[str, Any] | None) -> str | None:
    if not input_format or not input_format.get("definition"):
        return None
    return f"The input must follow this grammar ({input_format.get('syntax')}):\n{input_format['definition']}"


def wrap_input(text: str) -> str:
    """Return the input of a custom tool as the arguments of the function that agents get."""
    return orjson.dumps({"input": text}).decode()


def unwrap_input(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of a call.

    An agent may also write the input itself instead of a JSON object; then the arguments are the input.
    """
    try:
        decoded = orjson.loads(arguments)
    except ValueError:
        return arguments
    text = decoded.get("input") if isinstance(decoded, dict) else None
    return text if isinstance(text, str) else arguments
