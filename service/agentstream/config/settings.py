"""The settings: one class. The text below a field describes it in ``--help``, in errors and in the reference."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from agentstream.config import values
from agentstream.config.listen_address import ENV_PREFIX, ListenAddress, is_loopback
from agentstream.config.secret_values import environment_secrets, url_secrets
from agentstream.config.values import CommaList, Host, Milliseconds, Port, Seconds, Size, Tokens, WholeSeconds
from agentstream.protocol.requested_events import requested_events

BUILTIN: Final = "builtin"  # stands for the built-in orchestrator in ``agents``

_QUEUE: Final = r"[A-Za-z0-9_.-]{1,64}"
_QUEUE_FORM: Final = "1 to 64 letters, digits, '_', '.' or '-'"
_AGENT: Final = r"[\w.]+:[\w.]+"
# No braces: a hash tag would put all keys into one slot of a cluster. No * or ?: they are patterns in an ACL.
_KEY_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*")

_ROUTE: Final = re.compile(rf"(?P<model>[^=,\s]{{1,256}})=(?P<agent>{BUILTIN}|{_AGENT})(?:@(?P<queue>{_QUEUE}))?")


@dataclass(frozen=True, slots=True)
class AgentRoute:
    """An entry of ``agents``: the agent of a model, BUILTIN or package.module:attribute, and the queue of its jobs."""

    model: str
    agent: str
    queue: str


class Settings(ListenAddress):
    """All settings. The unit of a value is part of its name."""

    metrics_port: Port = Field(0, ge=0, le=65535)
    """Port on which a worker serves /metrics and /health; all processes of one `worker` command share it. The default 0
    opens no port, because a worker needs none for its work. A front end serves both paths on AGENTSTREAM_PORT."""

    metrics_host: Host = Field("127.0.0.1")
    """Address that a worker listens on for AGENTSTREAM_METRICS_PORT. The default is loopback, because metrics are not
    meant for the public."""

    redis_url: str | None = Field(None, validation_alias="REDIS_URL", repr=False)
    """URL of Redis: redis://host:port/database for one server, redis+sentinel://host,host/master/database for
    Sentinel, or redis+cluster://host,host for a cluster, each with rediss instead of redis for TLS; or unix:///path. If
    it is not set, `up` starts a private broker."""

    queue: str = Field("default")
    """Name of the job queue. Agents that name no other queue get their jobs from it."""

    queues: CommaList = Field(())
    """Queues that a worker takes jobs from, separated by commas. The default is every queue of AGENTSTREAM_AGENTS, or
    AGENTSTREAM_QUEUE if there are no such agents."""

    key_prefix: str = Field("agentstream", max_length=64)
    """Beginning of every key and channel in Redis. Deployments that share one Redis need different prefixes; without
    them they share runs, queues, limits and idempotency keys. All processes of a deployment need the same prefix."""

    # The agent
    agent: str | None = Field(None)
    """Your agent, as package.module:attribute. By default the built-in orchestrator answers."""

    agents: CommaList = Field(())
    """Several agents, one for each model, separated by commas. An entry is model=package.module:attribute, or
    model=builtin for the built-in orchestrator. Add @queue to an entry to use another queue than AGENTSTREAM_QUEUE."""

    models: CommaList = Field(("agentstream",), min_length=1)
    """Model names that /v1/models lists, separated by commas. Requests may also name other models. If
    AGENTSTREAM_AGENTS is set, leave this unset: the names come from there, and requests for other models get 404."""

    openai_base_url: str | None = Field(None, validation_alias="OPENAI_BASE_URL")
    """URL of the OpenAI-compatible model server that the built-in agent asks. If it is not set, a demo engine answers
    some kinds of questions by fixed rules."""

    openai_api_key: str | None = Field(None, validation_alias="OPENAI_API_KEY", repr=False)
    """API key for the model server. Many local servers need none."""

    engine_model: str | None = Field(None)
    """Model that the built-in agent asks the model server for. The default is the model that the request names."""

    engine_timeout_s: Seconds = Field(120, gt=0)
    """Longest silence of the model server in seconds, before the first token and between two tokens. Reasoning models
    are silent for a minute or more."""

    engine_context_tokens: Tokens | None = Field(None, ge=1024)
    """Context window of the model in tokens. The built-in agent trims longer conversations before it sends them. By
    default it trims a conversation only after the server has refused it. Set this for servers that truncate long
    prompts silently, such as Ollama."""

    engine_prefill: Annotated[Literal["plain", "prefix", "vllm"] | None, values.Lower] = Field(None)
    """How the model server is asked to continue an answer that was cut off, for example because its worker was lost:
    vllm for vLLM and SGLang, prefix for Mistral and DeepSeek, plain for servers that continue the last message by
    themselves if it is the assistant's. By default the model is asked in words."""

    demo_token_delay_ms: Milliseconds = Field(15, ge=0, le=10_000)
    """Pause between two tokens of the demo engine in milliseconds. With the default you can watch the answer stream."""

    max_turns: int = Field(10, ge=1, le=1000)
    """Number of turns after which the built-in agent must answer without more tool calls. The limit ends a run whose
    model would call tools for ever."""

    tool_timeout_s: Seconds = Field(30, gt=0)
    """Time limit in seconds of one tool call of the built-in agent. A tool that hangs must not hang its run."""

    mcp_servers: str | None = Field(None)
    """Path of a JSON file that lists MCP servers ({"mcpServers": {...}}). The built-in agent can call their tools."""

    tools: CommaList = Field(())
    """Tools of your own for the built-in agent, separated by commas. An entry is package.module:attribute: a function
    with type hints and a docstring, an object with the methods of a tool, or a list of these."""

    approve_tools: CommaList = Field(())
    """Tools of the built-in agent whose calls a person must approve, separated by commas: names, or patterns such as
    files__*. The word destructive stands for the tools of MCP servers, except those with the annotation readOnlyHint
    true or destructiveHint false. The word all stands for every tool. Tools that declare needs_approval are always
    asked for."""

    engine: str | None = Field(None)
    """Your engine for the built-in agent, as package.module:attribute: an object with a method `stream`, or a function
    without parameters that returns one. It replaces the model server of OPENAI_BASE_URL."""

    agent_start_timeout_s: Seconds = Field(60, gt=0)
    """Time limit in seconds for the start of a worker's agents that are context managers. They may load models and open
    connections there."""

    read_url: bool = Field(default=False)
    """Give the built-in agent a tool that reads public web pages. It is off by default, because the model would choose
    the addresses that the worker connects to."""

    # Processes
    workers: int = Field(2, ge=1, le=256)
    """Number of worker processes that `up` starts. The default is two: if one dies, the other takes over its runs."""

    processes: int = Field(1, ge=1, le=256)
    """Number of processes that `frontend` (on one shared port) or `worker` starts; under `up` the number of front ends.
    One process uses at most one core."""

    concurrency: int = Field(32, ge=1, le=10_000)
    """Number of runs that one worker process executes at the same time. Most agents wait for a model most of the time,
    so one process can execute many."""

    lease_s: Seconds = Field(10, ge=0.5, le=3600)
    """Time in seconds after which another worker takes over the runs of a worker that has not renewed its leases. A
    worker renews a lease three times in this time, so that two renewals may fail. It also loses its runs if an agent
    blocks its event loop for so long."""

    max_attempts: int = Field(2, ge=1, le=100)
    """Number of attempts at a run whose workers died. The limit stops a run that kills every worker. Attempts that a
    stopping worker handed back do not count."""

    retry_after_tools: bool = Field(
        default=False, validation_alias=AliasChoices(f"{ENV_PREFIX}RETRY_AFTER_TOOLS", "RETRY_AFTER_TOOLS")
    )
    """Try a run again after its worker died, even if its tools have run. Off by default, because the tools then run
    twice. It concerns agents that are not resumable: their runs are never tried again after they have written text."""

    drain_timeout_s: Seconds = Field(20, ge=0)
    """Time in seconds that a stopping process gives its runs and streams to end. The default is below the 30 s after
    which Kubernetes by default kills a pod that does not stop."""

    stop_delay_s: Seconds = Field(0, ge=0)
    """Time in seconds for which a front end still accepts requests after a stop signal, while its /health/ready answers
    503. Set it if something in front sends requests until it notices that, and does not retry them: Kubernetes, or a
    cloud load balancer. The default is 0: the proxies in deploy/ retry a refused connection at another front end."""

    broker_wait_s: Seconds = Field(30, ge=0)
    """Time in seconds that a starting process waits for Redis. Redis may start later. It may also refuse commands at
    first, while it loads its data or while its servers join a cluster."""

    failed_start_delay_s: Seconds = Field(0, ge=0, le=3600)
    """Time in seconds that `frontend`, `worker` or `up` waits before it exits with code 2, because a setting is wrong.
    Set it where a supervisor starts a process again at once, as Docker does: the same settings would fail again."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], values.Level] = Field("info")
    """Lowest level of log lines that a process writes."""

    log_format: Annotated[Literal["text", "json"], values.Lower] = Field("text")
    """Form of log lines: `text` for people, `json` (one object per line) for log collectors."""

    log_content: bool = Field(default=False)
    """Also log what users, models and tools write: the texts of exceptions, and at level debug the beginning of each
    question and answer. Off by default, because these texts may be private. Known keys and passwords are masked in any
    case."""

    log_errors: bool = Field(default=True)
    """Log the text and the traceback of an agent's error. `false` logs only the class of an exception and where it was
    raised, because its text may be private. Under `up` a worker always logs the text."""

    # Admission
    api_keys: CommaList = Field((), repr=False)
    """API keys that clients may use as Bearer tokens, separated by commas. Without keys every client that reaches the
    front end may call it."""

    allow_open: bool = Field(default=False)
    """Serve without API keys on a public address, and accept any Host header on loopback. Use it only if something in
    front checks the callers, such as a proxy."""

    cors_origins: CommaList = Field(())
    """Origins from which browsers may call the API, separated by commas, or * for any. By default there are none."""

    caller_headers: CommaList = Field(())
    """Names of request headers that agents may read in run.caller.headers, separated by commas, for example those that
    a proxy sets after a login. Headers with credentials are refused."""

    max_queued: int = Field(1000, ge=1)
    """Number of jobs, waiting and running, that one queue may hold. Beyond it a new request gets 429, because its
    answer would come too late."""

    admission_replicas: int = Field(0, ge=0, le=10)
    """Number of replicas of Redis that must have a new run before its request is answered, so that a failover cannot
    lose it. While fewer replicas follow, new requests get 503. The default 0 does not wait: a front end enqueues a lost
    run again, unless the front end is lost too. Front ends read it."""

    max_body_bytes: Size = Field(10 << 20, ge=1024)
    """Largest request body in bytes. The default has room for images as data URLs."""

    body_timeout_s: Seconds = Field(60, gt=0)
    """Time in seconds that a client may take to send a request body. A slow client must not hold its connection."""

    max_messages: int = Field(2000, ge=1)
    """Largest number of messages in one request. All streams wait while the event loop validates a request."""

    max_runs_per_key: int = Field(0, ge=0)
    """Number of runs that one API key may have at the same time, counted over all front ends. 0 means no limit."""

    max_requests_per_minute: int = Field(0, ge=0)
    """Number of new runs that one API key may request per minute, counted over all front ends. 0 means no limit."""

    queue_timeout_s: Seconds = Field(60, gt=0)
    """Time in seconds within which a worker must begin a job. After that the run fails, because its answer would come
    too late."""

    # Runs and streams
    error_details: Annotated[Literal["full", "hidden"], values.Lower] = Field("full")
    """The part of an agent's error that clients see: `full` shows its text. `hidden` shows a neutral sentence with the
    id of the request, which is also in the worker's log. Workers read it."""

    error_form: Annotated[Literal["text", "strict"], values.Lower] = Field("text")
    """How a stream shows that its run failed, if the request has no header X-Agent-Errors: `text` is a sentence in the
    answer, `strict` an error object on which SDKs raise. Front ends read it."""

    interrupt_text: bool = Field(default=True)
    """End the answer of a run that waits for people with a sentence that says what it waits for. Clients that know
    nothing of interrupts show it to their user. Front ends read it."""

    interrupt_timeout_s: Seconds = Field(86_400, gt=0, le=30 * 86_400)
    """Time in seconds within which people must answer an interrupt whose agent gives no time limit: by default one day.
    Redis keeps the run for so long. Workers read it."""

    event_types: CommaList = Field(())
    """Types of events of your agents' own that every stream with agent events gets, separated by commas, or `all`. By
    default a client gets only those that it asks for with the header X-Agent-Event-Types. Front ends read it."""

    gather_ms: int = Field(5, ge=0, le=50)
    """Longest time in milliseconds for which a worker holds back a piece of streamed text, while many runs write. It
    then sends the pieces of several runs with one command, which saves CPU time in all processes. 0 sends each at
    once."""

    run_timeout_s: Seconds = Field(600, gt=0)
    """Time limit in seconds of one attempt at a run. An agent that never returns must not hold its slot for ever."""

    run_ttl_s: WholeSeconds = Field(3600, ge=60)
    """Time in seconds for which a run is kept after its end. Until then clients can read and resume it."""

    log_max_bytes: Size = Field(4 << 20, ge=64 << 10)
    """Largest replay log of one run in bytes; it limits the memory that the run needs in Redis. A run that exceeds it
    loses its oldest events, and clients can no longer resume it."""

    write_timeout_s: Seconds = Field(30, gt=0)
    """Time in seconds after which the front end cuts the stream of a client that takes no bytes. A client that hangs
    must not hold a buffer for ever."""

    replay_word_delay_ms: Milliseconds = Field(
        0, ge=0, le=3000, validation_alias=AliasChoices(f"{ENV_PREFIX}REPLAY_WORD_DELAY_MS", "REPLAY_WORD_DELAY_MS")
    )
    """Pause in milliseconds between two words of an answer that the agent returned without streaming it. By default
    there is no pause."""

    @property
    def routes(self) -> tuple[AgentRoute, ...]:
        """The entries of ``agents``. Empty if one agent answers for every model."""
        entries = (_ROUTE.fullmatch(entry) for entry in self.agents)
        return tuple(
            AgentRoute(entry["model"], entry["agent"], entry["queue"] or self.queue) for entry in entries if entry
        )

    def secrets(self) -> tuple[str, ...]:
        """Return the keys and passwords of the settings and of the environment, which no text may show."""
        urls = (self.redis_url or "", self.openai_base_url or "")
        found = [secret for url in urls for secret in url_secrets(url)]
        return tuple(filter(None, [*self.api_keys, self.openai_api_key, *found, *environment_secrets()]))

    @property
    def served_queues(self) -> tuple[str, ...]:
        """The queues that a worker takes jobs from, without duplicates."""
        return tuple(dict.fromkeys(self.queues or [route.queue for route in self.routes] or [self.queue]))

    @field_validator("key_prefix")
    @classmethod
    def _key_prefix_is_a_name(cls, prefix: str) -> str:
        bare = prefix.removesuffix(":")  # many write the separator too; each name adds its own
        if _KEY_PREFIX.fullmatch(bare) is None:
            message = "write letters, digits, '_', '.', '-' and single ':' between them, such as team-a or prod:agents"
            raise ValueError(message)
        return bare

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, url: str | None) -> str | None:
        return values.redis_url(url) if url else url

    @field_validator("openai_base_url")
    @classmethod
    def _openai_base_url(cls, url: str | None) -> str | None:
        return values.http_url(url) if url else url

    @field_validator("openai_api_key")
    @classmethod
    def _openai_api_key(cls, key: str | None) -> str | None:
        return values.header_value(key) if key else key

    @field_validator("api_keys")
    @classmethod
    def _api_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(values.header_value, keys))

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(values.origin, origins)))

    @field_validator("agent")
    @classmethod
    def _agent_spec(cls, spec: str | None) -> str | None:
        return None if spec in {None, "", BUILTIN} else values.agent_spec(str(spec))

    @field_validator("engine")
    @classmethod
    def _engine_spec(cls, spec: str | None) -> str | None:
        return values.agent_spec(spec) if spec else None

    @field_validator("tools")
    @classmethod
    def _tool_specs(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(values.agent_spec, specs))

    @field_validator("approve_tools")
    @classmethod
    def _tool_patterns(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(values.tool_pattern, entries))

    @field_validator("caller_headers")
    @classmethod
    def _caller_headers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(values.caller_header, names))

    @field_validator("event_types")
    @classmethod
    def _event_types(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        requested_events(types)
        return types

    @field_validator("mcp_servers")
    @classmethod
    def _mcp_servers(cls, path: str | None) -> str | None:
        if path and path.startswith(("{", "[")):
            message = "this is JSON: write it to a file and give the path of the file"
            raise ValueError(message)
        return str(Path(path.removeprefix("file://")).expanduser()) if path else path

    @field_validator("agents")
    @classmethod
    def _agents_are_a_map(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        entries = tuple(re.sub(r"\s*([=:@])\s*", r"\1", entry) for entry in entries)
        models: set[str] = set()
        for entry in entries:
            route = _ROUTE.fullmatch(entry)
            if route is None:
                message = (
                    f"entry {entry!r} should be model=package.module:attribute or model={BUILTIN}, "
                    f"optionally followed by @queue (the name of a queue has {_QUEUE_FORM})"
                )
                raise ValueError(message)
            if route["model"] in models:
                message = f"entry {entry!r}: an earlier entry already names an agent for the model {route['model']!r}"
                raise ValueError(message)
            models.add(route["model"])
        return entries

    @field_validator("queue")
    @classmethod
    def _queue_is_a_name(cls, queue: str) -> str:
        return cls._queues_are_names((queue,))[0]

    @field_validator("queues")
    @classmethod
    def _queues_are_names(cls, queues: tuple[str, ...]) -> tuple[str, ...]:
        for queue in queues:
            if re.fullmatch(_QUEUE, queue) is None:
                several = " and commas between the names" if re.search(r"[\s;|]", queue) else ""
                message = f"{queue!r} is not the name of a queue: write {_QUEUE_FORM}{several}"
                raise ValueError(message)
        return queues

    @model_validator(mode="after")
    def _agents_stand_alone(self) -> Self:
        if not self.agents:
            return self
        for field in ("agent", "models"):
            if getattr(self, field) != type(self).model_fields[field].default:
                message = f"{env_name('agents')} already names the models and their agents: unset {env_name(field)}"
                raise ValueError(message)
        queues = {route.queue for route in self.routes}
        if unknown := [queue for queue in self.queues if queue not in queues]:
            message = (
                f"{env_name('queues')}: no agent in {env_name('agents')} uses the queue {unknown[0]!r}; "
                f"their queues are {', '.join(sorted(queues))}"
            )
            raise ValueError(message)
        return self

    def open_to_all(self) -> str | None:
        """Return why a process must not listen on ``host``: others can reach it and need no key. None if it may."""
        if self.api_keys or self.allow_open or is_loopback(self.host):
            return None
        return (
            f"other machines can reach the host {self.host}, and no API keys are set: "
            f"set {ENV_PREFIX}API_KEYS, or {ENV_PREFIX}ALLOW_OPEN=true if something in front checks the callers"
        )


for _field in Settings.model_fields.values():  # each text as one line; ``--help`` wraps it again
    _field.description = " ".join((_field.description or "").split())


def env_name(field: str) -> str:
    """Return the name of the environment variable of a settings field."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return str(alias) if alias else f"{ENV_PREFIX}{field.upper()}"
