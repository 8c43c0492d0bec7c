"""Helpers that several tests share: the recorded cases, functions to read streams, and a recording sink."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from agentstream.protocol.events import INTERRUPT, RUN_CHECKPOINT, TEXT, Batch, Event
from agentstream.protocol.interrupts import Interrupt
from agentstream.stream import sse

# All timeouts of the tests scale with this factor. On a slow machine raise the factor, never a single timeout.
TIME_SCALE = 1.0
TIMEOUT_S = 20 * TIME_SCALE

CASES = Path(__file__).parent / "conformance"
CHUNK_FIELDS = {"id", "object", "created", "model", "choices"}


def conformance_cases() -> list[dict[str, Any]]:
    """Return the recorded behaviour of the original bridge, in order."""
    return [json.loads(path.read_text()) for path in sorted(CASES.glob("*.json"))]


def events(*facts: tuple[str, Any], attempt: int = 1, first_seq: int = 1) -> list[Event]:
    """Return events with contiguous seqs."""
    return [Event(attempt, seq, kind, data) for seq, (kind, data) in enumerate(facts, first_seq)]


def batch(run: Sequence[Event]) -> Batch:
    """Return the batch that carries these events of one attempt. Their seqs must be contiguous."""
    assert [event[:2] for event in run] == [(run[0].attempt, seq) for seq, _ in enumerate(run, run[0].seq)]
    items = [event.data if event.type == TEXT else [event.type, event.data] for event in run]
    return Batch(run[0].attempt, run[0].seq, items)


def completed(
    content: str | None = None, *, tool_results: Sequence[dict[str, Any]] = (), reason: str = "stop"
) -> tuple[str, dict[str, Any]]:
    """Return type and data of a run_completed event. ``content`` is None if the text was streamed."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    data = {"content": content, "tool_results": list(tool_results), "finish_reason": reason, "usage": usage}
    return "run_completed", data


def decode(stream: bytes) -> list[tuple[str | None, Any]]:
    """Return the frames of a stream as (event name or None, parsed data)."""
    decoder = sse.Decoder()
    return [
        (None if frame.event == "message" else frame.event, parse_data(frame.data)) for frame in decoder.feed(stream)
    ]


def parse_data(data: str) -> Any:
    """Return the parsed JSON of a frame's data, or the literal [DONE]."""
    return data if data == "[DONE]" else orjson.loads(data)


def texts(messages: Iterable[tuple[str | None, Any]]) -> list[str]:
    """Return the content deltas of a stream."""
    return [
        delta["content"]
        for name, data in messages
        if name is None and data != "[DONE]" and data["choices"]
        for delta in [data["choices"][0]["delta"]]
        if "content" in delta
    ]


def assert_conforms(case: dict[str, Any], messages: list[tuple[str | None, Any]], *, event_format: str) -> None:
    """Assert that a stream equals the recorded stream of the original bridge, except for documented differences."""
    assert len(messages) == len(case["expected"])
    first = messages[0][1]
    for (name, data), expected in zip(messages, case["expected"], strict=True):
        wanted = expected["data"]
        assert name == expected["event"]
        if wanted == "[DONE]":
            assert data == wanted
        elif name is None:
            wanted = {**wanted, "id": first["id"], "created": first["created"]}
            if "error" in case["agent"] and wanted["choices"][0]["finish_reason"]:
                error = data.pop("agent_error")
                assert set(error) == {"type", "code", "message"}
                assert error["message"] == case["agent"]["error"]
            assert data == wanted
        elif event_format == "raw":
            assert data == wanted
        else:
            renamed = {"event_usage" if key == "usage" else key: value for key, value in wanted.items()}
            assert {key: data[key] for key in renamed} == renamed
            assert set(data) - set(renamed) <= CHUNK_FIELDS
            assert data["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]


@dataclass
class RecordingSink:
    """A sink of a run that stores its events in a list."""

    facts: list[tuple[str, Any]] = field(default_factory=list)
    new: asyncio.Event = field(default_factory=asyncio.Event)
    answers: dict[str, Any] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)

    def put(self, event_type: str, data: Any) -> None:
        """Store an event."""
        self.facts.append((event_type, data))
        self.new.set()

    def put_checkpoint(self, state: bytes) -> bool:
        """Store the state of a checkpoint as an event."""
        self.facts.append((RUN_CHECKPOINT, orjson.loads(state)))
        self.new.set()
        return True

    def ask(self, asked: Interrupt) -> Future[Any]:
        """Store a question as an event, and return the answer that ``answers`` has for it, if any."""
        future: Future[Any] = Future()
        if asked.id in self.answers:
            future.set_result(self.answers[asked.id])
        else:
            self.put(INTERRUPT, asked.as_json())
        return future

    def take_inputs(self) -> list[dict[str, Any]]:
        """Return the messages in ``inputs`` once."""
        taken, self.inputs = self.inputs, []
        return taken

    async def wait_for_room(self) -> None:
        """Return at once, because there is always room."""
