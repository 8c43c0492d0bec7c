"""A table of the event types that agentstream knows. The generated reference of events is made from it."""

from typing import Final, NamedTuple

from agentstream.protocol import events


class EventType(NamedTuple):
    """One event type: who emits it, the fields of its data, and what it means."""

    name: str
    emitted_by: str
    fields: str
    meaning: str


EVENT_TYPES: Final = (
    EventType("agent_turn_start", "agent", "an object", "The agent begins its work."),
    EventType("inference_start", "agent", "an object", "The agent sends a request to a model."),
    EventType("inference_end", "agent", "an object", "The model has answered."),
    EventType(
        events.TOOL_CALL_START, "agent", "`tool`, `arguments`", "The agent is about to run one of its own tools."
    ),
    EventType(
        events.TOOL_CALL_END,
        "agent",
        "`tool`, `success`, `latency` (seconds), `result`",
        "The tool has ended. The event also makes an entry of `tool_results`.",
    ),
    EventType(
        events.RUN_STARTED,
        "agentstream",
        "`worker`, and `resumes` (true) if the attempt continues an earlier one",
        "A worker began an attempt at the run.",
    ),
    EventType(
        events.RUN_CHECKPOINT,
        "`run.checkpoint`",
        "empty",
        "The agent's state was stored, together with all events before this one.",
    ),
    EventType(
        events.RUN_HANDED_OVER,
        "agentstream",
        "empty",
        "The worker stops. It gave the run to the other workers; the next attempt continues or repeats it.",
    ),
    EventType(events.TEXT, "`run.write`", "the text itself", "The next piece of the answer."),
    EventType(events.REASONING, "`run.write_reasoning`", "the text itself", "The next piece of the model's reasoning."),
    EventType(
        events.TOOL_CALL_DELTA,
        "`run.write_tool_call`",
        "`index`, `arguments`; first also `id`, `name`",
        "The next piece of a call of one of the client's tools.",
    ),
    EventType(
        events.TOOL_RESULTS, "agentstream", "a list of results", "The results of the agent's tools, before the answer."
    ),
    EventType(
        events.RUN_COMPLETED,
        "agentstream",
        "`content` (null if it was streamed), `tool_results`, `finish_reason`, `usage`",
        "The run has completed. This is a terminal event.",
    ),
    EventType(
        events.RUN_FAILED,
        "agentstream",
        "`code`, `message`, and `status` if it is not that of the code",
        "The run has failed. This is a terminal event.",
    ),
    EventType(events.RUN_CANCELLED, "agentstream", "`usage`", "The run was cancelled. This is a terminal event."),
)
