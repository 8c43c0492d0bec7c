"""The OpenAI engine against a local server that speaks the protocol, in good and bad dialects."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from agentstream.engines.base import EngineDelta, EngineError, EngineToolCallDelta, ToolSchema
from agentstream.engines.openai import MAX_ERROR_CHARS, OpenAIEngine
from agentstream.errors import AGENT_ERROR, CONTEXT_LENGTH, MODEL_ERROR, failure_code
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from tests.helpers import TIMEOUT_S
from tests.model_server import CUT, DONE, USAGE, WAIT, FakeModelServer, Script, call, chunk, error, model_server, text

CALCULATOR = ToolSchema("calculator", "Works things out.", {"type": "object", "properties": {}})
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with model_server() as fake:
        yield fake


MakeEngine = Callable[..., OpenAIEngine]


@pytest.fixture
async def engine_for(server: FakeModelServer) -> AsyncIterator[MakeEngine]:
    engines: list[OpenAIEngine] = []

    def make(**options: Any) -> OpenAIEngine:
        engines.append(
            OpenAIEngine(server.url, "sk-secret-key", **{"max_retries": 0, "timeout_s": TIMEOUT_S, **options})
        )
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()


def asked(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "asked-for", "messages": HELLO, **fields})


async def pieces_of(
    engine: OpenAIEngine,
    request: ChatCompletionRequest | None = None,
    tools: Sequence[ToolSchema] = (),
) -> list[EngineDelta]:
    return [piece async for piece in engine.stream(request or asked(), HELLO, tools)]


async def calls_of(server: FakeModelServer, engine: OpenAIEngine, *parts: dict[str, Any]) -> list[tuple[str, str, str]]:
    server.scripts.append([*parts, chunk(finish_reason="tool_calls"), DONE])
    last = (await pieces_of(engine, tools=[CALCULATOR]))[-1]
    return [(each.id, each.name, each.arguments) for each in last.tool_calls]


# Answers


async def test_text_is_streamed_in_the_pieces_it_arrives_in(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Each piece of text is yielded as it came; the last piece carries finish_reason and the usage trailer."""
    trailer = {**chunk(), "choices": [], "usage": USAGE}
    server.scripts.append([chunk({"role": "assistant"}), text("Hel"), text("lo"), chunk({}, "stop"), trailer, DONE])
    assert await pieces_of(engine_for()) == [
        EngineDelta(text="Hel"),
        EngineDelta(text="lo"),
        EngineDelta(finish_reason="stop", usage=Usage(**USAGE)),
    ]


async def test_text_is_yielded_before_the_answer_is_over(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A piece comes out while the server is still holding back the rest."""
    server.scripts.append([text("first"), WAIT])
    async with asyncio.timeout(TIMEOUT_S), aclosing(engine_for().stream(asked(), HELLO, ())) as pieces:
        assert await anext(pieces) == EngineDelta(text="first")


async def test_usage_in_the_last_chunk_is_taken(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Usage counts wherever a server puts it, the latest being the whole; a missing total is added up."""
    early = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    late = {"prompt_tokens": 7, "completion_tokens": 3}
    server.scripts.append([{**text("a"), "usage": early}, chunk({}, "stop", usage=late), DONE])
    assert (await pieces_of(engine_for()))[-1].usage == Usage(**USAGE)


async def test_usage_that_was_never_told_is_not_invented(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Without usable counts from the server the usage is None."""
    server.scripts.append([text("a"), chunk({}, "stop", usage={"prompt_tokens": None}), DONE])
    assert (await pieces_of(engine_for()))[-1].usage is None


async def test_reasoning_is_kept_apart_and_a_refusal_is_text(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Reasoning, under either name servers give it, is no part of the text; a refusal is."""
    reasoning = [chunk({"reasoning_content": "hm"}), chunk({"reasoning": "mm", "content": None})]
    server.scripts.append([*reasoning, chunk({"refusal": "I would rather not."}), chunk({}, "stop"), DONE])
    *pieces, last = await pieces_of(engine_for())
    assert pieces == [EngineDelta(reasoning="hm"), EngineDelta(reasoning="mm"), EngineDelta(text="I would rather not.")]
    assert last.text == last.reasoning == ""


@pytest.mark.parametrize(("name", "echo"), [("reasoning_content", {"reasoning_content": "so then"}), ("reasoning", {})])
async def test_reasoning_goes_back_only_under_the_name_that_is_wanted_back(
    server: FakeModelServer, engine_for: MakeEngine, name: str, echo: dict[str, str]
) -> None:
    """Servers that say reasoning_content refuse tool turns without it; those that say reasoning refuse those with."""
    server.scripts.append([chunk({name: "so "}), chunk({name: "then"}), text("hi"), chunk({}, "stop"), DONE])
    assert (await pieces_of(engine_for()))[-1].echo == echo


async def test_a_sparse_dialect_is_understood(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Chunks without ids, models, indexes or deltas, null choices, and a stream without [DONE] still answer."""
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


async def test_tool_calls_in_pieces_are_put_together(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Parts are joined by index, interleaved or not, and the arguments stay the model's own text."""
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


async def test_calls_are_handed_on_as_they_come(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Each part of a call is yielded at once, its id and name with the first that has a name, by position."""
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
    assert [(each.name, each.arguments) for each in last.tool_calls] == [("x", '{"n":1}'), ("y", "")]


async def test_malformed_arguments_are_kept_as_they_are(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Arguments that are not JSON reach the caller unchanged."""
    cut = call(index=0, id="a", function={"name": "calculator", "arguments": '{"expression": '})
    assert await calls_of(server, engine_for(), cut) == [("a", "calculator", '{"expression": ')]


def part(name: str | None, arguments: object, **position: object) -> dict[str, Any]:
    """Return a chunk with one part of a call; ``position`` is its index and id, as far as a server gives them."""
    return call(**position, function={"arguments": arguments, **({"name": name} if name else {})})


DIALECTS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "whole calls without an index": (
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
    "id and name repeated with every part": (
        [part("x", "{", index=0, id="a"), part("x", "}", index=0, id="a")],
        [("a", "x", "{}")],
    ),
    "parts without an index": (
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
async def test_odd_dialects_of_calls_are_understood(
    server: FakeModelServer, engine_for: MakeEngine, dialect: str
) -> None:
    """Calls stay apart and whole where servers omit or repeat index, id and name, or send calls in one part."""
    parts, expected = DIALECTS[dialect]
    assert await calls_of(server, engine_for(), *parts) == expected


# What is sent


async def test_the_request_is_passed_on(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Parameters reach the server as the client sent them, unknown fields too; ours and nulls do not."""
    parameters: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "seed": 7,
        "max_tokens": 50,
        "max_completion_tokens": 60,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "response_format": {"type": "json_object"},
        "user": "u1",
        "metadata": {"k": "v"},
        "reasoning_effort": "low",
        "top_k": 40,
        "logit_bias": {"5": 1},
    }
    ours: dict[str, Any] = {"background": True, "tools": [], "tool_choice": "none", "functions": None, "n": 1}
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(), asked(**parameters, **ours, stream=True, parallel_tool_calls=False))
    fixed = {"model": "asked-for", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    assert server.bodies == [{**fixed, **parameters}]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-key"


async def test_tools_are_offered_in_openai_form(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The agent's tools are sent, with parallel_tool_calls, which servers refuse without them."""
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(), asked(parallel_tool_calls=False), [CALCULATOR])
    function = {"name": "calculator", "description": "Works things out.", "parameters": CALCULATOR.parameters}
    assert server.bodies[0]["tools"] == [{"type": "function", "function": function}]
    assert server.bodies[0]["parallel_tool_calls"] is False


async def test_a_clients_tools_and_choice_are_passed_on(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A client's definition reaches the server as it was sent, strict and unknown fields included; the choice too."""
    definition = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
        "cache_control": {"type": "ephemeral"},
    }
    tool = ToolSchema("f", "", {}, definition)
    choices: list[Any] = ["auto", "required", {"type": "function", "function": {"name": "f"}}]
    for choice in choices:
        server.scripts.append([chunk({}, "stop"), DONE])
        assert [piece async for piece in engine_for().stream(asked(), HELLO, [CALCULATOR, tool], choice)]
    assert [body["tools"][1] for body in server.bodies] == [definition] * 3
    assert [body["tool_choice"] for body in server.bodies] == choices


async def test_the_engines_model_overrides_the_requests(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """With a model of its own the engine asks for that one."""
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(model="its-own"))
    assert server.bodies[0]["model"] == "its-own"


async def test_earlier_turns_are_sent_as_given(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The conversation reaches the server as given, tool calls, results and images included."""
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "x", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "391"},
    ]
    server.scripts.append([chunk({}, "stop"), DONE])
    assert [piece async for piece in engine_for().stream(asked(), conversation, ())]
    assert server.bodies[0]["messages"] == conversation


# Failures


async def refusal(engine: OpenAIEngine) -> str:
    with pytest.raises(EngineError) as caught:
        await pieces_of(engine)
    return str(caught.value)


CONTEXT = {"code": "context_length_exceeded"}
REFUSALS = [
    (400, "The maximum context length is 8192.", CONTEXT, CONTEXT_LENGTH, "400 - The maximum context length is 8192."),
    (400, "Too much.", CONTEXT, CONTEXT_LENGTH, "400 - Too much. (context length exceeded)"),
    (400, "The prompt is too long.", {}, CONTEXT_LENGTH, "400 - The prompt is too long."),
    (400, "Unknown parameter.", {}, MODEL_ERROR, "400 - Unknown parameter."),
    (401, "Incorrect API key: sk-secret-key", {}, AGENT_ERROR, "401 - Incorrect API key: ***"),
    (429, "Slow down.", {}, AGENT_ERROR, "429 - Slow down."),
    (500, "Oops.", {}, AGENT_ERROR, "500 - Oops."),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[4])
async def test_upstream_errors_keep_status_and_words(
    server: FakeModelServer, engine_for: MakeEngine, case: Any
) -> None:
    """An error's text keeps what failure_code sorts by, and never holds our key."""
    status, message, fields, code, words = case
    server.scripts.append(error(status, message, **fields))
    explained = await refusal(engine_for())
    assert explained == f"Error code: {words}"
    assert failure_code(explained) == code


@pytest.mark.parametrize("body", ['{"detail": "context length"}', '{"message": "context length"}', "context length"])
async def test_errors_in_other_shapes_keep_their_words(
    server: FakeModelServer, engine_for: MakeEngine, body: str
) -> None:
    """The words of an error body that is not OpenAI's are kept too."""
    server.scripts.append(web.Response(text=body, status=400))
    explained = await refusal(engine_for())
    assert explained.startswith("Error code: 400 - ")
    assert failure_code(explained) == CONTEXT_LENGTH


async def test_an_error_page_is_cut(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A proxy's whole web page does not become the error text."""
    server.scripts.append(web.Response(text="<html>" + "x" * 5000, status=502))
    explained = await refusal(engine_for())
    assert explained.startswith("Error code: 502 - <html>")
    assert len(explained) == MAX_ERROR_CHARS


def busy(status: int = 429, **headers: str) -> web.Response:
    response = error(status, "Slow down.")
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_a_busy_server_is_asked_again(server: FakeModelServer, engine_for: MakeEngine, status: int) -> None:
    """A refusal that may pass is retried as the server asks; the answer then comes as if nothing had been."""
    server.scripts += [busy(status, retry_after_ms="1"), [text("hi"), chunk({}, "stop"), DONE]]
    assert [piece.text for piece in await pieces_of(engine_for(max_retries=2))] == ["hi", ""]


async def test_a_busy_server_is_not_asked_for_ever(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """After the retries the refusal stands."""
    server.scripts += [busy(retry_after_ms="1") for _ in range(3)]
    assert await refusal(engine_for(max_retries=2)) == "Error code: 429 - Slow down."
    assert server.scripts == []


async def test_a_wait_of_hours_is_not_waited(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A Retry-After beyond the bound is a refusal at once: a run would be over before."""
    server.scripts.append(busy(Retry_After="3600"))
    assert await refusal(engine_for(max_retries=2)) == "Error code: 429 - Slow down."


async def test_a_cancel_ends_the_wait_for_a_busy_server(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A run cancelled while a Retry-After is waited for ends at once and asks no more."""
    server.scripts.append(busy(Retry_After="60"))
    task = asyncio.create_task(pieces_of(engine_for(max_retries=2)))
    async with asyncio.timeout(TIMEOUT_S):
        await server.asked.wait()
        done, _ = await asyncio.wait({task}, timeout=0.2)  # the answer is read, and waited upon
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(server.bodies) == 1


OTHER_KINDS = {
    "text/html": web.Response(text="<html>Sign in</html>", content_type="text/html"),
    "application/json": web.json_response({"choices": [{"message": {"content": "not streamed"}}]}),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
async def test_an_answer_that_is_no_stream_is_told(server: FakeModelServer, engine_for: MakeEngine, kind: str) -> None:
    """A proxy's sign-in page, or a whole completion where a stream was asked for, is named as what it is."""
    server.scripts.append(OTHER_KINDS[kind])
    explained = await refusal(engine_for())
    assert explained.startswith(f"the model server answered with '{kind}")


async def test_choices_that_never_come_are_a_failure(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A stream of chunks without a choice in them ends as an answer that was cut off."""
    server.scripts.append([{**chunk(), "choices": []}, {**chunk(), "choices": []}, DONE])
    assert "without a finish_reason" in await refusal(engine_for())


@pytest.mark.parametrize("ending", [[CUT], [DONE], []], ids=["connection cut", "done too early", "clean end"])
async def test_an_answer_that_stops_is_a_failure(
    server: FakeModelServer, engine_for: MakeEngine, ending: list[str]
) -> None:
    """A stream without a finish_reason raises EngineError, and what has begun is not asked for again."""
    server.scripts.append([text("half an ans"), *ending])
    pieces = engine_for(max_retries=2).stream(asked(), HELLO, ())
    assert await anext(pieces) == EngineDelta(text="half an ans")
    with pytest.raises(EngineError, match=r"connection to the model server failed|without a finish_reason"):
        await anext(pieces)
    assert len(server.bodies) == 1


async def test_a_cut_after_the_end_of_the_answer_is_harmless(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Once finish_reason is there the answer is whole, whatever becomes of the connection."""
    server.scripts.append([text("whole"), chunk({}, "stop"), CUT])
    assert await pieces_of(engine_for()) == [EngineDelta(text="whole"), EngineDelta(finish_reason="stop")]


FAULTS: dict[str, dict[str, Any] | str] = {
    "out of memory": {"error": {"message": "out of memory", "code": 500}},
    "not JSON": "{not json",
    "finish_reason 'error'": chunk({}, "error"),
}


@pytest.mark.parametrize("words", FAULTS)
async def test_a_failure_within_the_stream_is_one(server: FakeModelServer, engine_for: MakeEngine, words: str) -> None:
    """An error object, broken JSON, or the word error as finish_reason raise EngineError."""
    server.scripts.append([text("half"), FAULTS[words], DONE])
    assert words in await refusal(engine_for())


async def test_a_stand_in_for_a_key_is_not_blotted_out(server: FakeModelServer) -> None:
    """A short word given as the key is no secret, and error texts that hold it stay readable."""
    engine = OpenAIEngine(server.url, "none", max_retries=0)
    server.scripts.append(error(404, "none such"))
    assert await refusal(engine) == "Error code: 404 - none such"
    await engine.close()


async def test_a_server_that_is_not_there_is_told_without_its_address(unused_tcp_port: int) -> None:
    """A refused connection raises EngineError that does not hand the server's address to the client."""
    engine = OpenAIEngine(f"http://127.0.0.1:{unused_tcp_port}/v1", None, max_retries=0)
    explained = await refusal(engine)
    await engine.close()
    assert explained.startswith("the connection to the model server failed: ")
    assert str(unused_tcp_port) not in explained


async def test_silence_over_the_limit_is_a_failure(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A server that says nothing for timeout_s raises EngineError and sees the connection closed."""
    server.scripts.append([text("one"), WAIT])
    assert await refusal(engine_for(timeout_s=0.05)) == "the connection to the model server failed: no answer in time"
    await asyncio.wait_for(server.client_gone.wait(), TIMEOUT_S)


# Leaving early


async def test_closing_the_iterator_closes_the_request(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The server sees the client leave as soon as the iterator is closed."""
    server.scripts.append([text("one"), WAIT])
    pieces = engine_for().stream(asked(), HELLO, ())
    assert await anext(pieces) == EngineDelta(text="one")
    await pieces.aclose()
    await asyncio.wait_for(server.client_gone.wait(), TIMEOUT_S)


@pytest.mark.parametrize("before", [[text("one")], []], ids=["between tokens", "before the first"])
async def test_cancelling_closes_the_request(server: FakeModelServer, engine_for: MakeEngine, before: Script) -> None:
    """A task cancelled while it waits for a token leaves no request behind."""
    server.scripts.append([*before, WAIT])
    received = asyncio.Event()

    async def reader() -> None:
        async for _ in engine_for().stream(asked(), HELLO, ()):
            received.set()

    task = asyncio.create_task(reader())
    async with asyncio.timeout(TIMEOUT_S):
        await (received if before else server.asked).wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.client_gone.wait()
