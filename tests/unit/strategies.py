"""Arbitrary events of agents, which follow the protocol or break it, and runs made of them."""

from typing import Any

from hypothesis import strategies as st

from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.events import (
    NAMED_EVENTS,
    TERMINAL_EVENTS,
    TEXT,
    TOOL_CALL_END,
    Event,
    check_agent_event,
    decode_batch,
    encode_batch,
    encode_event,
)

ODD_TEXTS = st.sampled_from(["\r\n\r\ndata: x", "\0", "\u2028\u2029", "\ufeff", "\ud800", "]}", "[DONE]", " ", "\x85"])
TEXTS = st.text(max_size=20) | ODD_TEXTS
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from([1e308, -1e308])
NO_JSON = st.sampled_from([10**400, 2**64, object(), {1: 2}, {"\ud800": 10**400}, (1, 2), b"x"])
FIELD_NAMES = st.sampled_from(
    [
        "tool",
        "arguments",
        "success",
        "latency",
        "result",
        "usage",
        "error",
        "id",
        "object",
        "created",
        "choices",
        "model",
        "type",
        "agent_error",
        "event_usage",
        "agent_event",
        "delta",
    ]
)
KEYS = FIELD_NAMES | TEXTS
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
# Data of tool_call_end: each field is present or absent, and has any value.
TOOL_END_DATA = st.fixed_dictionaries(
    {},
    optional={
        "tool": TEXTS | JSON,
        "success": st.booleans() | JSON,
        "latency": NUMBERS | JSON,
        "result": TEXTS | JSON,
        "arguments": TEXTS | JSON,
    },
)
EVENT_DATA = st.dictionaries(KEYS, JSON, max_size=5) | TOOL_END_DATA
EVENT_TYPES = st.sampled_from(sorted(NAMED_EVENTS)) | st.sampled_from(["note", "agent_turn_end"])
AGENT_FACTS = (
    st.tuples(EVENT_TYPES, EVENT_DATA)
    | st.tuples(st.just(TOOL_CALL_END), TOOL_END_DATA)
    | st.tuples(st.just(TEXT), TEXTS.filter(bool))
    | st.tuples(EVENT_TYPES, st.dictionaries(KEYS, JSON | NO_JSON, max_size=3))
)

TOOL_RESULTS = st.lists(
    st.fixed_dictionaries(
        {"tool_name": TEXTS, "success": st.booleans(), "output": TEXTS, "latency_ms": st.floats(0, 1e9)}
    ),
    max_size=2,
)
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
TERMINALS = (
    st.builds(
        lambda content, results, reason: (
            "run_completed",
            {"content": content, "tool_results": results, "finish_reason": reason, "usage": USAGE},
        ),
        st.none() | TEXTS | st.text(alphabet=" ab\n", max_size=10),
        TOOL_RESULTS,
        st.sampled_from(["stop", "length"]),
    )
    | st.builds(
        lambda code, text: ("run_failed", {"code": code, "message": text}), st.sampled_from(["x", "model_error"]), TEXTS
    )
    | st.just(("run_cancelled", {"usage": USAGE}))
)


@st.composite
def run_events(draw: st.DrawFn) -> list[Event]:
    """The events of a run as decoded from its log: up to three attempts, without events that cannot be encoded."""
    log: list[Event] = []
    attempts = draw(st.integers(1, 3))
    for attempt in range(1, attempts + 1):
        facts: list[tuple[str, Any]] = [("run_started", {}), *draw(st.lists(AGENT_FACTS, max_size=6))]
        if attempt == attempts:
            facts.append(draw(TERMINALS))
        encoded = []
        for kind, data in facts:
            try:
                if kind in NAMED_EVENTS:
                    check_agent_event(kind, data)
                encoded.append(encode_event(TEXT if kind == TEXT else kind, data))
            except InvalidAgentOutput:
                if kind in TERMINAL_EVENTS:
                    encoded.append(encode_event("run_failed", {"code": "x", "message": "y"}))
        log += decode_batch(encode_batch(attempt, 1, encoded)).events()
    return log
