"""The answers of an OpenAI engine: text, reasoning, usage and tool calls, in the dialects of real servers."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from agentstream.engines.base import EngineDelta, EngineToolCallDelta
from agentstream.protocol.openai import Usage
from tests.helpers import TIMEOUT_S
from tests.model_server import DONE, USAGE, WAIT, FakeModelServer, call, chunk, text
from tests.unit.engines.openai_engine import CALCULATOR, HELLO, MakeEngine, calls_of, pieces_of, request_of

# Answers


async def test_text_is_streamed_in_the_pieces_it_arrives_in(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Each piece of text is yielded unchanged, and the last piece has the finish_reason and the usage of the stream."""
    trailer = {**chunk(), "choices": [], "usage": USAGE}
    server.scripts.append([chunk({"role": "assistant"}), text("Hel"), text("lo"), chunk({}, "stop"), trailer, DONE])
    assert await pieces_of(engine_for()) == [
        EngineDelta(text="Hel"),
        EngineDelta(text="lo"),
        EngineDelta(finish_reason="stop", usage=Usage(**USAGE)),
    ]


async def test_text_is_yielded_before_the_answer_is_over(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A piece is yielded before the server has sent the next one."""
    server.scripts.append([text("first"), WAIT])
    async with asyncio.timeout(TIMEOUT_S), aclosing(engine_for().stream(request_of(), HELLO, ())) as pieces:
        assert await anext(pieces) == EngineDelta(text="first")


async def test_the_latest_usage_is_used(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The usage may come in any chunk, the latest one counts, and a missing total is computed."""
    early = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    late = {"prompt_tokens": 7, "completion_tokens": 3}
    server.scripts.append([{**text("a"), "usage": early}, chunk({}, "stop", usage=late), DONE])
    assert (await pieces_of(engine_for()))[-1].usage == Usage(**USAGE)


async def test_without_reported_usage_there_is_none(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """If the server reports no valid counts, the usage is None."""
    server.scripts.append([text("a"), chunk({}, "stop", usage={"prompt_tokens": None}), DONE])
    assert (await pieces_of(engine_for()))[-1].usage is None


async def test_reasoning_is_kept_apart_and_a_refusal_is_text(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Reasoning, under either of its two field names, is not part of the text, but a refusal is."""
    reasoning = [chunk({"reasoning_content": "hm"}), chunk({"reasoning": "mm", "content": None})]
    server.scripts.append([*reasoning, chunk({"refusal": "I would rather not."}), chunk({}, "stop"), DONE])
    *pieces, last = await pieces_of(engine_for())
    assert pieces == [EngineDelta(reasoning="hm"), EngineDelta(reasoning="mm"), EngineDelta(text="I would rather not.")]
    assert last.text == last.reasoning == ""


@pytest.mark.parametrize(("name", "echo"), [("reasoning_content", {"reasoning_content": "so then"}), ("reasoning", {})])
async def test_only_reasoning_content_is_sent_back(
    server: FakeModelServer, engine_for: MakeEngine, name: str, echo: dict[str, str]
) -> None:
    """Servers that send reasoning_content require it back after tool calls; servers that send reasoning refuse it."""
    server.scripts.append([chunk({name: "so "}), chunk({name: "then"}), text("hi"), chunk({}, "stop"), DONE])
    assert (await pieces_of(engine_for()))[-1].echo == echo


async def test_incomplete_chunks_are_accepted(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Chunks may lack id, model, index, delta and choices, and the stream may lack [DONE]."""
    sparse: list[dict[str, Any]] = [
        {"choices": None},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": "hi"}}]},
        {"choices": [{"index": 1, "delta": {"content": "another answer"}}]},
        {"choices": [{"finish_reason": "stop"}]},
    ]
    server.scripts.append(sparse)
    assert await pieces_of(engine_for()) == [EngineDelta(text="hi"), EngineDelta(finish_reason="stop")]


# Tool calls


async def test_pieces_of_tool_calls_are_joined(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Pieces with the same index are joined, also if calls are interleaved, and the arguments stay unchanged."""
    calls = await calls_of(
        server,
        engine_for(),
        call(index=0, id="a", type="function", function={"name": "calculator", "arguments": ""}),
        call(index=0, function={"arguments": '{"expr'}),
        call(index=1, id="b", type="function", function={"name": "clock", "arguments": "{"}),
        call(index=0, function={"arguments": 'ession": "1'}),
        call(index=1, function={"arguments": "}"}),
        call(index=0, function={"arguments": '+"}'}),
    )
    assert calls == [("a", "calculator", '{"expression": "1+"}'), ("b", "clock", "{}")]


async def test_pieces_of_calls_are_yielded_at_once(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Each piece of a call is yielded with its position, and the first piece with a name has the call's id and name."""
    server.scripts.append(
        [
            call(index=4, id="a", type="function", function={}),
            call(index=4, function={"name": "x", "arguments": '{"n"'}),
            call(index=7, function={"name": "y", "arguments": ""}),
            call(index=4, id="a", function={"name": "x", "arguments": ":1}"}),
            chunk({}, "tool_calls"),
            DONE,
        ]
    )
    *pieces, last = await pieces_of(engine_for(), tools=[CALCULATOR])
    assert [part for piece in pieces for part in piece.tool_call_deltas] == [
        EngineToolCallDelta(0, "a", "", ""),
        EngineToolCallDelta(0, "a", "x", '{"n"'),
        EngineToolCallDelta(1, "", "y", ""),
        EngineToolCallDelta(0, "", "", ":1}"),
    ]
    calls = [(tool_call.name, tool_call.arguments) for tool_call in last.tool_calls]
    assert calls == [("x", '{"n":1}'), ("y", "")]


async def test_malformed_arguments_are_kept_as_they_are(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Arguments that are not valid JSON reach the caller unchanged."""
    truncated = call(index=0, id="a", function={"name": "calculator", "arguments": '{"expression": '})
    assert await calls_of(server, engine_for(), truncated) == [("a", "calculator", '{"expression": ')]


def part(name: str | None, arguments: object, **position: object) -> dict[str, Any]:
    """Return a chunk with one piece of a call; ``position`` holds its index and its id, if the server sends them."""
    return call(**position, function={"arguments": arguments, **({"name": name} if name else {})})


DIALECTS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "complete calls without an index": (
        [part("x", "{}", id="a"), part("y", "{}", id="b")],
        [("a", "x", "{}"), ("b", "y", "{}")],
    ),
    "every call at index 0": (
        [part("x", "{}", index=0, id="a"), part("y", "{}", index=0, id="b")],
        [("a", "x", "{}"), ("b", "y", "{}")],
    ),
    "every call at index 0, without arguments": (
        [part("x", "", index=0, id="a"), part("x", "", index=0, id="b")],
        [("a", "x", ""), ("b", "x", "")],
    ),
    "every call at index 0, without ids": (
        [part("x", '{"n":1}', index=0), part("x", '{"n":2}', index=0)],
        [("call_1", "x", '{"n":1}'), ("call_2", "x", '{"n":2}')],
    ),
    "no index, id or arguments": ([part("x", ""), part("y", "")], [("call_1", "x", ""), ("call_2", "y", "")]),
    "id and name repeated in every piece": (
        [part("x", "{", index=0, id="a"), part("x", "}", index=0, id="a")],
        [("a", "x", "{}")],
    ),
    "pieces without an index": (
        [part("x", "{", id="a"), part(None, '"n": 1'), part(None, "}", id="a")],
        [("a", "x", '{"n": 1}')],
    ),
    "one id for two calls": (
        [part("x", '{"n":1}', id="same"), part("x", '{"n":2}', id="same")],
        [("same", "x", '{"n":1}'), ("same", "x", '{"n":2}')],
    ),
    "arguments as an object": ([part("x", {"n": 1}, index=0, id="a")], [("a", "x", '{"n": 1}')]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_calls_in_other_dialects_are_accepted(
    server: FakeModelServer, engine_for: MakeEngine, dialect: str
) -> None:
    """Calls are separated and complete if servers omit or repeat index, id or name, or send a call in one piece."""
    parts, expected = DIALECTS[dialect]
    assert await calls_of(server, engine_for(), *parts) == expected
