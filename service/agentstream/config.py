"""Frozen settings: the only reader of the environment.

Every field has an environment variable ``AGENTSTREAM_<FIELD>`` (the conventional names of Redis and OpenAI
are used as they are) and a command-line flag ``--field``. Each limit has its reason in its description.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentstream.errors import StartupError

ENV_PREFIX = "AGENTSTREAM_"
BUILTIN: Final = "builtin"  # in a map of agents: the built-in orchestrator

_QUEUE: Final = r"[A-Za-z0-9_.-]{1,64}"
_AGENT: Final = r"[\w.]+:[\w.]+"
_ROUTE: Final = re.compile(rf"(?P<model>[^=,\s]{{1,256}})=(?P<agent>{BUILTIN}|{_AGENT})(?:@(?P<queue>{_QUEUE}))?")


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


# Read by the commands that ask a front end: flags of theirs, not settings.
_CLIENT_VARIABLES: Final = {"AGENTSTREAM_URL"}

_URL_PASSWORD: Final = re.compile(r"(://[^/?#@:]*:)[^/?#]*@")
_QUERY_PASSWORD: Final = re.compile(r"([?&][^=&#]*password=)[^&#]*")

CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


@dataclass(frozen=True, slots=True)
class AgentRoute:
    """An entry of ``agents``: who answers for a model (BUILTIN, or package.module:attribute), and where its jobs go."""

    model: str
    agent: str
    queue: str


class Settings(BaseSettings):
    """Everything that can be set, with units in the names."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    # Where things are
    host: str = Field("127.0.0.1", description="address the front end listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the front end listens on; 0 picks a free one")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port on which a worker serves /metrics and /health, one for all its processes; 0: none. "
        "Front ends serve theirs on `port`",
    )
    metrics_host: str = Field("127.0.0.1", description="address of that port")
    redis_url: str | None = Field(
        None,
        validation_alias="REDIS_URL",
        repr=False,
        description="redis://, rediss:// or unix:// URL; without it `up` starts a private broker",
    )
    queue: str = Field("default", pattern=rf"^{_QUEUE}$", description="name of the job queue")
    queues: CommaList = Field(
        (), description="queues a worker serves, comma separated; default: every queue of `agents`, else `queue`"
    )

    # The agent
    agent: str | None = Field(
        None,
        pattern=rf"^{_AGENT}$",
        description="your agent as package.module:attribute; default: the built-in orchestrator",
    )
    agents: CommaList = Field(
        (),
        description=(
            "several agents instead of one, each for a model: model=package.module:attribute or model=builtin, "
            "each with @queue if its jobs go to another queue than `queue`; comma separated"
        ),
    )
    models: CommaList = Field(("agentstream",), min_length=1, description="model names listed at /v1/models")
    openai_base_url: str | None = Field(
        None,
        validation_alias="OPENAI_BASE_URL",
        description="OpenAI-compatible server of the built-in agent; without it a demo engine answers by rule",
    )
    openai_api_key: str | None = Field(
        None, validation_alias="OPENAI_API_KEY", repr=False, description="key for that server"
    )
    engine_model: str | None = Field(None, description="model asked of that server; default: the request's model")
    engine_timeout_s: float = Field(120, gt=0, description="longest silence of the model server")
    engine_context_tokens: int | None = Field(
        None,
        ge=1024,
        description="context window of that server's model; longer conversations are trimmed to it before they are "
        "sent. Default: unknown, trimmed when the server refuses one; some, such as Ollama, cut it without a word",
    )
    demo_token_delay_ms: int = Field(15, ge=0, le=10_000, description="pause between the demo engine's tokens")
    max_turns: int = Field(10, ge=1, le=1000, description="turns of the built-in agent before it must stop")
    tool_timeout_s: float = Field(30, gt=0, description="time limit of one tool call of the built-in agent")
    mcp_servers: str | None = Field(
        None, description='file of MCP servers ({"mcpServers": {...}}) whose tools the built-in agent gets'
    )
    read_url: bool = Field(default=False, description="offer the built-in agent the tool that reads public web pages")

    # Processes
    workers: int = Field(2, ge=1, le=256, description="worker processes under `up`")
    processes: int = Field(
        1,
        ge=1,
        le=256,
        description="processes of `frontend` (on one port), of `worker`, or front ends under `up`",
    )
    concurrency: int = Field(32, ge=1, le=10_000, description="runs one worker executes at once")
    lease_s: float = Field(
        10,
        ge=0.5,
        le=3600,
        description="a worker silent for so long loses its runs to another; renewed three times as often",
    )
    max_attempts: int = Field(2, ge=1, le=100, description="attempts at a run whose workers were lost")
    retry_after_tools: bool = Field(
        default=False,
        validation_alias=AliasChoices(f"{ENV_PREFIX}RETRY_AFTER_TOOLS", "RETRY_AFTER_TOOLS"),
        description="try a run again even if tools have run (they would run twice); never after text was shown",
    )
    drain_timeout_s: float = Field(20, ge=0, description="time a stopping process gives its runs and streams to end")
    broker_wait_s: float = Field(30, ge=0, description="time a starting process waits for Redis before it gives up")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines for people, or one JSON object a line for what collects them"
    )
    log_content: bool = Field(
        default=False,
        description="log what users, models and tools write as well: exceptions' texts, and at debug, cut short, "
        "questions and answers; keys never",
    )

    # Admission
    api_keys: CommaList = Field((), repr=False, description="accepted Bearer keys, comma separated; empty: no keys")
    allow_open: bool = Field(
        default=False, description="serve without keys on a public address, or to any Host on loopback"
    )
    cors_origins: CommaList = Field((), description="origins browsers may call from, comma separated, or *")
    max_queued: int = Field(1000, ge=1, description="outstanding jobs of the queue; beyond it requests get 429")
    max_body_bytes: int = Field(10 << 20, ge=1024, description="largest request body; room for images as data URLs")
    body_timeout_s: float = Field(60, gt=0, description="time a client may take to send a request's body")
    max_messages: int = Field(2000, ge=1, description="messages of one request")
    max_runs_per_key: int = Field(0, ge=0, description="runs one API key may have at once; 0: no limit")
    max_requests_per_minute: int = Field(0, ge=0, description="requests one API key may send a minute; 0: no limit")
    queue_timeout_s: float = Field(60, gt=0, description="a job not started by then fails instead of running late")

    # Runs and streams
    run_timeout_s: float = Field(600, gt=0, description="time limit of one run")
    run_ttl_s: int = Field(3600, ge=60, description="how long a finished run's log is kept")
    log_max_bytes: int = Field(4 << 20, ge=64 << 10, description="replay log of one run; older events are cut off")
    write_timeout_s: float = Field(30, gt=0, description="a client that takes no bytes for so long is cut")
    replay_word_delay_ms: int = Field(
        0,
        ge=0,
        le=3000,
        validation_alias=AliasChoices(f"{ENV_PREFIX}REPLAY_WORD_DELAY_MS", "REPLAY_WORD_DELAY_MS"),
        description="pause between the words of an answer that was not streamed",
    )

    @property
    def routes(self) -> tuple[AgentRoute, ...]:
        """What ``agents`` says; empty if one agent answers for every model."""
        entries = (_ROUTE.fullmatch(entry) for entry in self.agents)
        return tuple(
            AgentRoute(entry["model"], entry["agent"], entry["queue"] or self.queue) for entry in entries if entry
        )

    def secrets(self) -> tuple[str, ...]:
        """Return what no log line may hold, whatever brings it there."""
        try:
            password = urlsplit(self.redis_url or "").password or ""
        except ValueError:  # not a URL; refused where it is used
            password = self.redis_url or ""
        return tuple(filter(None, [*self.api_keys, self.openai_api_key, password, unquote(password)]))

    @property
    def served_queues(self) -> tuple[str, ...]:
        """The queues a worker takes jobs of, each once."""
        return tuple(dict.fromkeys(self.queues or [route.queue for route in self.routes] or [self.queue]))

    @field_validator("agents")
    @classmethod
    def _agents_are_a_map(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        models: set[str] = set()
        for entry in entries:
            route = _ROUTE.fullmatch(entry)
            if route is None:
                message = (
                    f"entry {entry!r} should be model=package.module:attribute or model={BUILTIN}, "
                    f"followed by @queue if need be (a queue's name is {_QUEUE})"
                )
                raise ValueError(message)
            if route["model"] in models:
                message = f"entry {entry!r}: the model {route['model']!r} has an agent already"
                raise ValueError(message)
            models.add(route["model"])
        return entries

    @field_validator("queues")
    @classmethod
    def _queues_are_names(cls, queues: tuple[str, ...]) -> tuple[str, ...]:
        for queue in queues:
            if re.fullmatch(_QUEUE, queue) is None:
                message = f"{queue!r} is not a queue's name, which is {_QUEUE}"
                raise ValueError(message)
        return queues

    @model_validator(mode="after")
    def _agents_stand_alone(self) -> Self:
        if not self.agents:
            return self
        for field in ("agent", "models"):
            if getattr(self, field) != type(self).model_fields[field].default:
                message = f"{env_name('agents')} names the models and their agents: leave {env_name(field)} unset"
                raise ValueError(message)
        queues = {route.queue for route in self.routes}
        if unknown := [queue for queue in self.queues if queue not in queues]:
            message = (
                f"{env_name('queues')}: no agent of {env_name('agents')} has the queue {unknown[0]!r}; "
                f"they have {', '.join(sorted(queues))}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _public_needs_keys(self) -> Self:
        if not (self.api_keys or self.allow_open or is_loopback(self.host)):
            message = (
                f"host {self.host} is reachable from other machines and no API keys are set: "
                f"set {ENV_PREFIX}API_KEYS, or {ENV_PREFIX}ALLOW_OPEN=true if something in front checks callers"
            )
            raise ValueError(message)
        return self


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is an address only this machine can reach."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def env_name(field: str) -> str:
    """Return the environment variable of a settings field."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return str(alias) if alias else f"{ENV_PREFIX}{field.upper()}"


def load_settings(**flags: Any) -> Settings:  # noqa: ANN401 -- raw flag values
    """Read the environment, overridden by ``flags`` (None means not given).

    Raises StartupError naming each wrong setting, its value and what is allowed.
    """
    given = {_init_name(name): value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as exc:
        lines = [_explain(error) for error in exc.errors()]
        raise StartupError("wrong settings:\n  " + "\n  ".join(lines)) from exc


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process these very settings."""
    values: dict[str, str] = {}
    for field in Settings.model_fields:
        value = getattr(settings, field)
        if value is not None:
            values[env_name(field)] = ",".join(value) if isinstance(value, tuple) else str(value)
    return values


def setting_source(field: str, flags: Mapping[str, Any]) -> str:
    """Return where a setting's value comes from: ``--flag``, the environment variable's name, or "default"."""
    if flags.get(field) is not None:
        return f"--{field.replace('_', '-')}"
    alias = Settings.model_fields[field].validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [env_name(field)]
    given = {name.lower(): name for name, value in os.environ.items() if value}  # as pydantic-settings looks them up
    return next((given[str(name).lower()] for name in names if str(name).lower() in given), "default")


def masked(field: str, value: Any) -> Any:  # noqa: ANN401 -- a setting's
    """Return a setting's value with what must stay secret in it replaced by stars."""
    if isinstance(value, tuple):
        return tuple(masked(field, item) for item in value)
    if not isinstance(value, str):
        return value
    if Settings.model_fields[field].repr or field == "redis_url":  # an address is worth seeing
        return _URL_PASSWORD.sub(r"\1***@", _QUERY_PASSWORD.sub(r"\1***", value))
    return "***"


def terminal_type() -> str:
    """Return what kind of terminal the environment tells of; "dumb" if it tells of none."""
    return os.environ.get("TERM") or "dumb"


def unknown_variables() -> list[str]:
    """Return a line for each AGENTSTREAM_ variable that is no setting; with the likely meant name."""
    known = {env_name(field) for field in Settings.model_fields} | _CLIENT_VARIABLES
    lines = []
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            bare = name.removeprefix(ENV_PREFIX)
            close = [bare] if bare in known else difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return lines


def _init_name(field: str) -> str:
    """Return the keyword Settings() takes for a field: its alias, if it has one."""
    return env_name(field) if Settings.model_fields[field].validation_alias else field


def _explain(error: Any) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    field = next((name for name in Settings.model_fields if error["loc"][0] in (name, env_name(name))), None)
    name = env_name(field) if field else str(error["loc"][0])
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if field in {"api_keys", "openai_api_key", "redis_url"} else f"={error['input']!r}"
    meaning = f" ({Settings.model_fields[field].description})" if field else ""
    return f"{name}{shown}: {message}{meaning}"


# Either of these asks for traces; an endpoint alone does, as the exporter it is for is the default one.
_TRACES_WANTED: Final = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_CONTENT_IN_SPANS: Final = frozenset({"true", "span_only", "span_and_event"})


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What OpenTelemetry's own variables ask for; the rest of them its SDK reads itself.

    ``exporters`` are names of entry points, ``reason`` is the variable that asks for them.
    """

    exporters: tuple[str, ...]
    reason: str
    content: bool


def trace_settings() -> TraceSettings:
    """Return which exporters of traces are asked for, none if the variables are unset, empty or say so.

    By its specification traces go to a collector on this machine if nothing is said; not so here, where most have none.
    """
    env = {name: value.strip() for name, value in os.environ.items() if name.startswith("OTEL_")}
    asked = env.get("OTEL_TRACES_EXPORTER", "")
    reason = next((name for name in _TRACES_WANTED if env.get(name)), "")
    names = (asked or "otlp").split(",") if reason and env.get("OTEL_SDK_DISABLED", "").lower() != "true" else []
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    return TraceSettings(
        exporters=tuple(otlp if name.strip() == "otlp" else name.strip() for name in names if name.strip() != "none"),
        reason=reason,
        content=env.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower() in _CONTENT_IN_SPANS,
    )
