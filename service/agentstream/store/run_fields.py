"""The hash of a run as it is when the run is created."""

from typing import Final

import orjson

from agentstream.protocol.jobs import Job
from agentstream.store.runs import ANSWER_KEYS, CONVERSATION, RESPONSE, TRACEPARENT

MAX_CONVERSATION_BYTES: Final = 256 << 10  # of the conversation in a run's hash; about 64,000 tokens


def fields_of(job: Job) -> tuple[str | bytes | int, ...]:
    """Return the fields and values of the hash of a new run."""
    return (
        *("status", "queued", "owner", job.owner, "model", job.request["model"], "created", job.created),
        *("include_usage", int(job.include_usage)),
        *((TRACEPARENT, job.traceparent) if job.traceparent else ()),
        *((ANSWER_KEYS, " ".join(job.answer_keys)) if job.answer_keys else ()),
        *_kept_for_responses(job),
    )


def _kept_for_responses(job: Job) -> tuple[str | bytes, ...]:
    """Return the fields and values of the run's hash that only the Responses API reads."""
    if job.response is None:
        return ()
    fields: tuple[str | bytes, ...] = (RESPONSE, orjson.dumps(job.response))
    if job.response.get("store", True):
        # Instructions are the first message, and apply to this run only.
        has_instructions = job.response.get("instructions") is not None
        conversation = orjson.dumps(job.request["messages"][1 if has_instructions else 0 :])
        if len(conversation) <= MAX_CONVERSATION_BYTES:
            fields += (CONVERSATION, conversation)
    return fields
