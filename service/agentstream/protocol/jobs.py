"""The queued envelope of a run."""

import re
import secrets
from typing import Annotated, Any, Final, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

VERSION: Final = 1
RUN_PREFIX: Final = "chatcmpl-"
RUN_ID: Final = re.compile(RUN_PREFIX + r"[0-9a-f]{32}")
# The form of request ids in log lines and jobs. A client's X-Request-Id is used only if it has this form.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def new_run_id() -> str:
    """Return a new run id: ``chatcmpl-`` and 128 random bits as hex digits. Nobody can guess it."""
    return f"{RUN_PREFIX}{secrets.token_hex(16)}"


def new_request_id() -> str:
    """Return a new request id for log lines and jobs."""
    return f"req_{secrets.token_hex(8)}"


def _request_id(value: object) -> str:
    return value if isinstance(value, str) and REQUEST_ID.fullmatch(value) else ""


def open_ttl_s(queue_timeout_s: float, run_timeout_s: float) -> int:
    """Return the TTL (s) of the keys of an open run: its longest possible duration, and 1 hour to inspect the run."""
    return int(queue_timeout_s + run_timeout_s) + 3600


def _headers(value: object) -> dict[str, str]:
    """Return the headers that are well-formed. Others are dropped, so that the job can still run."""
    given = value if isinstance(value, dict) else {}
    return {name: text for name, text in given.items() if isinstance(name, str) and isinstance(text, str)}


class Job(BaseModel):
    """The data that a worker needs to run an agent. Unknown fields are ignored: newer front ends may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    v: int = VERSION
    run_id: str = Field(pattern=f"^{RUN_ID.pattern}$")
    request: dict[str, Any] = Field(description="the validated chat completion request, as JSON")
    created: int = Field(description="Unix time, seconds; the completion's `created`")
    start_by: float = Field(description="Unix time, seconds; a job not started by then fails as queue_timeout")
    request_id: Annotated[str, BeforeValidator(_request_id)] = Field(
        default="", description="id of the HTTP request that created the job, for log lines; empty if malformed"
    )
    include_usage: bool = Field(default=False, description="whether the stream sends its usage in a separate chunk")
    limited: bool = Field(default=False, description="whether the run counts against MAX_RUNS_PER_KEY of its owner")
    owner: str = Field(default="", description="hash of the API key that created the run; empty without keys")
    answer_keys: tuple[str, ...] = Field(
        default=(), description="hashes of other API keys that may answer the interrupts of the run"
    )
    headers: Annotated[dict[str, str], BeforeValidator(_headers)] = Field(
        default_factory=dict, repr=False, description="request headers for the agent, which only the agent may see"
    )
    response: dict[str, Any] | None = Field(
        default=None,
        description="request fields that the response object repeats; for a chat completion None, or the older form",
    )
    traceparent: str | None = Field(default=None, description="W3C traceparent of the span that enqueued the job")
    tracestate: str | None = Field(default=None, description="W3C tracestate of that span; at most 512 characters")

    @property
    def trace(self) -> dict[str, str]:
        """The trace context as HTTP headers; empty without a trace."""
        fields = {"traceparent": self.traceparent, "tracestate": self.tracestate}
        return {name: value for name, value in fields.items() if value is not None}

    def encode(self) -> bytes:
        """Return the JSON envelope, copied because orjson's result occupies at least 4 KB."""
        return b"%b" % orjson.dumps(vars(self))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse an envelope; raises pydantic.ValidationError (a ValueError) if it is not a job."""
        return cls.model_validate_json(payload)
