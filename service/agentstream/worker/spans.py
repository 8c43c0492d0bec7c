"""The spans of a worker: one for each attempt at a job, and in it one for the call of the agent."""

from typing import Any, Final

from agentstream.protocol.events import RUN_CANCELLED, RUN_COMPLETED, RUN_FAILED
from agentstream.store.queue import Claim, JobQueue
from agentstream.telemetry import tracing

_STATUS: Final = {RUN_COMPLETED: "completed", RUN_CANCELLED: "cancelled", RUN_FAILED: "failed"}


def job_span(claim: Claim, queue: JobQueue) -> tracing.Span:
    """Return the span of an attempt. Its parent is the span that enqueued the job, in every attempt.

    So attempts are siblings in one trace. There are no links between them: a killed worker never sends its span,
    because spans are sent when they end.
    """
    if not tracing.enabled():
        return tracing.span("process")
    job = claim.job
    attributes = {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": queue.name,
        "messaging.message.id": claim.entry_id,
        "messaging.client.id": queue.worker_id,
        tracing.RUN_ID: job.run_id,
    }
    return tracing.span(f"process {queue.name}", "consumer", attributes, parent=job.trace)


def agent_span(name: str, run_id: str, model: str) -> tracing.Span:
    """Return the span of a call of the agent ``name``. Spans of the agent's own instrumentation become its children."""
    if not tracing.enabled():
        return tracing.span("invoke_agent")
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": tracing.SCOPE,
        "gen_ai.agent.name": name,
        "gen_ai.request.model": model,
        tracing.RUN_ID: run_id,
    }
    return tracing.span(f"invoke_agent {name}", attributes=attributes)


def record_end(
    span: tracing.Span, terminal: tuple[str, dict[str, Any]] | None, fallback_status: str | None = None
) -> None:
    """Record the end of a run: its terminal event, or ``fallback_status`` if another worker will end the run."""
    if not tracing.enabled():
        return
    if terminal is None:
        span.set({tracing.RUN_STATUS: fallback_status})
        return
    event_type, data = terminal
    usage = data.get("usage") or {}
    reason = data.get("finish_reason")
    span.set(
        {
            tracing.RUN_STATUS: _STATUS[event_type],
            "gen_ai.response.finish_reasons": [reason] if reason else None,
            "gen_ai.usage.input_tokens": usage.get("prompt_tokens"),
            "gen_ai.usage.output_tokens": usage.get("completion_tokens"),
        }
    )
    if event_type == RUN_FAILED:
        span.fail(data["code"], data["message"])
