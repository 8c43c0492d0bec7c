"""The queued envelope of a run."""

import re
import secrets
from typing import Annotated, Any, Final, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

VERSION: Final = 1
RUN_PREFIX: Final = "chatcmpl-"
RUN_ID: Final = re.compile(RUN_PREFIX + r"[0-9a-f]{32}")
# What may stand for a request in logs and jobs; others' ids are taken only if they look like one.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def new_run_id() -> str:
    """Return a completion id, ``chatcmpl-`` and 128 random bits in hex: unguessable."""
    return f"{RUN_PREFIX}{secrets.token_hex(16)}"


def new_request_id() -> str:
    """Return what stands for a request in logs."""
    return f"req_{secrets.token_hex(8)}"


def _request_id(value: object) -> str:
    return value if isinstance(value, str) and REQUEST_ID.fullmatch(value) else ""


def open_ttl_s(queue_timeout_s: float, run_timeout_s: float) -> int:
    """Return how long a run's keys live if nobody ends the run: its whole life, and an hour to look at it."""
    return int(queue_timeout_s + run_timeout_s) + 3600


class Job(BaseModel):
    """What a worker needs to run an agent. Unknown fields are ignored: a newer front end may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    v: int = VERSION
    run_id: str = Field(pattern=f"^{RUN_ID.pattern}$")
    request: dict[str, Any] = Field(description="the validated chat completion request, as JSON")
    created: int = Field(description="Unix time, seconds; the completion's `created`")
    start_by: float = Field(description="Unix time, seconds; a job not started by then fails as queue_timeout")
    request_id: Annotated[str, BeforeValidator(_request_id)] = Field(
        default="", description="of the request that created it, for logs; what does not look like one is left out"
    )
    include_usage: bool = Field(default=False, description="whether the stream tells its usage in a chunk of its own")
    limited: bool = Field(default=False, description="whether the run counts against its owner's active runs")
    owner: str = Field(default="", description="hash of the API key that created the run, empty without keys")
    response: dict[str, Any] | None = Field(
        default=None, description="what a response repeats of its request; None for the other APIs"
    )
    traceparent: str | None = Field(default=None, description="W3C trace context of the span that enqueued it, if any")
    tracestate: str | None = Field(default=None, description="what tracing systems add to that; at most 512 characters")

    @property
    def trace(self) -> dict[str, str]:
        """The trace context as headers have it; empty without one."""
        fields = {"traceparent": self.traceparent, "tracestate": self.tracestate}
        return {name: value for name, value in fields.items() if value is not None}

    def encode(self) -> bytes:
        """Return the JSON envelope; a copy, as orjson's own bytes hold room for 4 KB for as long as they live."""
        return b"%b" % orjson.dumps(vars(self))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read an envelope; raises pydantic.ValidationError (a ValueError) if it is not one."""
        return cls.model_validate_json(payload)
