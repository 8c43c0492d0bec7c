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
        events.AGENT_TEXT,
        "`run.write` of a sub-agent",
        "`agent_path`, `text`",
        "The next piece of a sub-agent's text.",
    ),
    EventType(
        events.AGENT_REASONING,
        "`run.write_reasoning` of a sub-agent",
        "`agent_path`, `text`",
        "The next piece of a sub-agent's reasoning.",
    ),
    EventType(
        events.AGENT_HANDOFF,
        "adapters",
        "`from`, `to`",
        "An agent of a framework gave the conversation to another one.",
    ),
    EventType(
        events.TOOL_CALL_WAITING,
        "agent",
        "`tool`, `tool_call_id`",
        "A tool that has started waits for the answer of people. Until then it does not count as a tool that runs.",
    ),
    EventType(events.AGENT_TURN_END, "the built-in agent", "`agent`, `turns`", "The agent has ended its work."),
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
        events.INTERRUPT,
        "`run.interrupt`",
        "`id`, `kind`, `payload`, `schema` if the answer has one, `expires_at` (Unix time, s)",
        "The run asks people a question. Clients get this event under its name.",
    ),
    EventType(
        events.RUN_PARKED,
        "agentstream",
        "`usage`",
        "The run waits for answers. It holds no worker. A stream that has reached this place ends.",
    ),
    EventType(
        events.RUN_RESUMED,
        "agentstream",
        "`answered`: the ids of interrupts",
        "Every interrupt of the run is answered. The run is in the queue again.",
    ),
    EventType(
        events.INPUT_APPLIED,
        "`run.inputs`",
        "`inputs`: the ids and messages",
        "The agent took messages that were sent to the running run.",
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
