"""Writes the reference pages of the guides from the code: ``python -m tests.reference`` (``make reference``)."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

import annotated_types
from pydantic import AliasChoices

import agentstream
from agentstream import agents, errors, testing
from agentstream.cli.flags import format_value
from agentstream.config import Settings, env_name
from agentstream.protocol.event_types import EVENT_TYPES
from agentstream.protocol.events import NAMED_EVENTS, OPTIONAL_EVENTS, RESERVED_EVENTS

FOLDER: Final = Path(__file__).parents[1] / "deploy/guides/reference"
NOTE: Final = "<!-- This page is generated from the code by `make reference`. Do not edit it. -->"
BOUNDS: Final = {
    annotated_types.Ge: ("at least", "ge"),
    annotated_types.Gt: ("above", "gt"),
    annotated_types.Le: ("at most", "le"),
}


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table; a bar inside a cell is escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def groups() -> dict[str, str]:
    """Return the group of each setting: the comment above it in the source of Settings."""
    group, found = "", {}
    source = "".join(map(inspect.getsource, (*Settings.__bases__, Settings)))
    for line in source.splitlines():
        if match := re.fullmatch(r"    # ([A-Z][\w ,]+)", line):
            group = match[1]
        elif (match := re.match(r"    (\w+): ", line)) and match[1] in Settings.model_fields:
            found[match[1]] = group
    return found


def allowed(field: str) -> str:
    """Return the allowed values of a setting, as far as its type says them."""
    info = Settings.model_fields[field]
    if info.annotation is bool:
        return "`true`, `false`"
    if literals := getattr(info.annotation, "__args__", ()) if "Literal" in str(info.annotation) else ():
        return ", ".join(f"`{value}`" for value in literals)
    bounds = [
        f"{word} {getattr(bound, name)}"
        for bound in info.metadata
        for kind, (word, name) in BOUNDS.items()
        if isinstance(bound, kind)
    ]
    return ", ".join(bounds) or ("a list, separated by commas" if "tuple" in str(info.annotation) else "")


def setting_rows(group: str) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the settings of one group."""
    for field, its_group in groups().items():
        if its_group == group:
            info = Settings.model_fields[field]
            default = "" if info.default in (None, ()) else f"`{format_value(info.default)}`"
            flag = f"`--{field.replace('_', '-')}`"
            alias = info.validation_alias
            names = alias.choices if isinstance(alias, AliasChoices) else [env_name(field)]
            yield " or ".join(f"`{name}`" for name in names), flag, default, allowed(field), info.description or ""


def settings_page() -> str:
    """Return the page of all settings."""
    parts = [
        "# Settings",
        NOTE,
        "Every setting is an environment variable and a flag. An empty default means that the setting is not set.",
        "[configuration.md](../configuration.md) says how settings are read.",
    ]
    for group in dict.fromkeys(groups().values()):
        header = ("variable", "flag", "default", "allowed", "meaning")
        parts += [f"## {group}", table(header, setting_rows(group))]
    return "\n\n".join(parts)


def request_errors(kind: type[errors.RequestError] = errors.RequestError) -> Iterator[type[errors.RequestError]]:
    """Yield the classes of errors that are answered before a stream begins."""
    for subclass in kind.__subclasses__():
        yield subclass
        yield from request_errors(subclass)


def request_error_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row for each error that is answered before a stream begins."""
    kinds = [kind for kind in request_errors() if kind is not errors.RunFailed]
    found = [
        (status, code, errors.failure_type(code, status), meaning) for status, code, meaning in errors.REQUEST_CODES
    ]
    for kind in kinds:
        meaning = re.sub(r"^\d\w\w: ", "", inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0])
        found.append((kind.status, kind.code, kind.error_type, meaning[:1].upper() + meaning[1:]))
    for status, code, error_type, meaning in sorted(found):
        yield str(status), f"`{code}`", f"`{error_type}`", plain(meaning)


# The codes whose status is chosen when the run fails.
CHOSEN_STATUS: Final = {
    errors.MODEL_ERROR: "that of the model server, or 502, 503 or 504",
    errors.AGENT_ERROR: "500, or that of the agent",
}


def failure_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row for each code of a failed run."""
    for code, meaning in errors.FAILURE_MEANINGS.items():
        error_type, status = f"`{errors.failure_type(code)}`", str(errors.failure_status(code))
        if code in CHOSEN_STATUS:
            error_type, status = "by the status", CHOSEN_STATUS[code]
        yield f"`{code}`", error_type, status, meaning
    yield "a code of the agent", "by the status", "that of the agent, or 500", "The agent raised `AgentError` with it."


TYPE_OF_STATUS: Final = (
    "The type follows from the status: 401 `authentication_error`, 403 `permission_error`, 429 `rate_limit_error`,\n"
    "others below 500 `invalid_request_error`, and from 500 on `server_error`."
)


def errors_page() -> str:
    """Return the page of error codes."""
    return "\n\n".join(
        [
            "# Errors",
            NOTE,
            'Every error body is `{"error": {"message", "type", "param", "code"}}`.',
            "[PROTOCOL.md](../../PROTOCOL.md), sections 2.6 and 3.8, has the details.",
            "## Refused requests",
            "The run did not begin.",
            table(("status", "code", "type", "meaning"), request_error_rows()),
            "## Failed runs",
            "The run began and ended with an error. The status is that of an answer that is not streamed.",
            TYPE_OF_STATUS,
            table(("code", "type", "status", "meaning"), failure_rows()),
        ]
    )


def event_rows(types: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each of these event types."""
    for event in EVENT_TYPES:
        if event.name in types:
            yield f"`{event.name}`", event.emitted_by, event.fields, event.meaning


def events_page() -> str:
    """Return the page of event types."""
    header = ("type", "emitted by", "data", "meaning")
    return "\n\n".join(
        [
            "# Events",
            NOTE,
            "[PROTOCOL.md](../../PROTOCOL.md), section 3, says how each event looks on the wire.",
            "## Events that clients receive by name",
            "An agent emits them with `run.emit(type, data)`. Those of a sub-agent also have the field `agent_path`.",
            table(header, event_rows(NAMED_EVENTS)),
            "## Events that clients ask for",
            "A client receives these types, and your agents' own types, if it names them in `X-Agent-Event-Types`.",
            table(header, event_rows(OPTIONAL_EVENTS)),
            "## Events of agentstream",
            "`run.emit` refuses these types. They become chunks, the final chunk or an error frame.",
            table(header, event_rows(RESERVED_EVENTS)),
        ]
    )


def plain(docstring: str) -> str:
    """Return a docstring as Markdown."""
    return re.sub(r"::\n", ":\n", docstring.replace("``", "`")).strip()


def signature_of(function: Callable[..., object]) -> str:
    """Return the signature of a function, with types that are not named by their modules."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z_]\w*\.)+(?=\w)", "", str(inspect.signature(function)))


def members(kind: type) -> Iterator[str]:
    """Yield a section for each public method and property of a class."""
    for name, value in vars(kind).items():
        if name.startswith("_") or not (callable(value) or isinstance(value, property)) or not value.__doc__:
            continue
        if "Only the worker calls this." in value.__doc__:
            continue
        heading = f"{kind.__name__}.{name}"
        if not isinstance(value, property):
            signature = signature_of(value).replace("self, ", "").replace("(self)", "()")
            heading = f"{'await ' if inspect.iscoroutinefunction(value) else ''}{heading}{signature}"
        yield f"### `{heading}`\n\n{plain(inspect.cleandoc(value.__doc__))}"


# The order of the sections; a test compares it with the names that can be imported.
AGENT_API: Final = (
    "Run",
    "ChildRun",
    "Caller",
    "AgentResult",
    "ToolResult",
    "ToolCallWriter",
    "resumable",
    "takes_inputs",
    "Restored",
    "RestoredToolCall",
    "AgentError",
    "RunCancelled",
    "InterruptTimeout",
)
TESTING: Final = (
    "run_agent",
    "run_agent_async",
    "run_agent_with_kills",
    "run_agent_with_kills_async",
    "AgentOutcome",
    "KilledRun",
    "EmittedEvent",
    "ToolCall",
)


def section(public: Any, *, level: str) -> Iterator[str]:
    """Yield the heading and the text of a function or a class, and of its public members."""
    heading = public.__name__
    if inspect.isfunction(public):
        heading = f"`{'await ' if inspect.iscoroutinefunction(public) else ''}{heading}{signature_of(public)}`"
    yield f"{level} {heading}"
    yield plain(inspect.cleandoc(public.__doc__ or ""))
    if isinstance(public, type):
        if issubclass(public, Exception) and "__init__" in vars(public):
            yield plain(inspect.cleandoc(public.__init__.__doc__ or ""))
        yield from members(public)


def agent_page() -> str:
    """Return the page of the agent API."""
    parts = ["# The agent API", NOTE, f"`from agentstream import {', '.join(sorted(agents.__all__))}`"]
    _, _, about_agents = inspect.cleandoc(agents.__doc__ or "").partition("\n\n")
    parts += [plain(about_agents), "## Agent", "The type of an agent, for type hints: a callable that gets a `Run`."]
    for name in AGENT_API:
        parts += section(getattr(agentstream, name), level="##")
    parts += ["## Testing", plain(inspect.cleandoc(testing.__doc__ or ""))]
    for name in TESTING:
        parts += section(getattr(testing, name), level="###")
    return "\n\n".join(parts)


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    made = {
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "events.md": events_page(),
        "agent-api.md": agent_page(),
    }
    return {name: text + "\n" for name, text in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
