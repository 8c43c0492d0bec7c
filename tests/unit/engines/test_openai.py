"""The OpenAI engine against a local fake server, which follows the protocol or deviates from it as real servers do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from agentstream.engines.base import EngineDelta, EngineError, EngineToolCallDelta, ToolSchema
from agentstream.engines.openai import MAX_ERROR_CHARS, OpenAIEngine
from agentstream.errors import CONTEXT_LENGTH, MODEL_ERROR, failure_status
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


def request_of(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "requested-model", "messages": HELLO, **fields})


async def pieces_of(
    engine: OpenAIEngine,
    request: ChatCompletionRequest | None = None,
    tools: Sequence[ToolSchema] = (),
) -> list[EngineDelta]:
    return [piece async for piece in engine.stream(request or request_of(), HELLO, tools)]


async def calls_of(server: FakeModelServer, engine: OpenAIEngine, *parts: dict[str, Any]) -> list[tuple[str, str, str]]:
    server.scripts.append([*parts, chunk(finish_reason="tool_calls"), DONE])
    last = (await pieces_of(engine, tools=[CALCULATOR]))[-1]
    return [(tool_call.id, tool_call.name, tool_call.arguments) for tool_call in last.tool_calls]


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


# Requests to the model server


async def test_the_request_is_passed_on(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The model server receives the client's parameters and unknown fields, but not this service's fields and nulls."""
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
    await pieces_of(engine_for(), request_of(**parameters, **ours, stream=True, parallel_tool_calls=False))
    fixed = {"model": "requested-model", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    assert server.bodies == [{**fixed, **parameters}]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-key"


async def test_tools_are_offered_in_openai_form(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The agent's tools are sent in OpenAI's form, and only then parallel_tool_calls, which needs tools."""
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(), request_of(parallel_tool_calls=False), [CALCULATOR])
    function = {"name": "calculator", "description": "Works things out.", "parameters": CALCULATOR.parameters}
    assert server.bodies[0]["tools"] == [{"type": "function", "function": function}]
    assert server.bodies[0]["parallel_tool_calls"] is False


async def test_a_clients_tools_and_choice_are_passed_on(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The model server receives the client's tool definition, with all its fields, and its tool_choice unchanged."""
    definition = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
        "cache_control": {"type": "ephemeral"},
    }
    tool = ToolSchema("f", "", {}, definition)
    choices: list[Any] = ["auto", "required", {"type": "function", "function": {"name": "f"}}]
    for choice in choices:
        server.scripts.append([chunk({}, "stop"), DONE])
        assert [piece async for piece in engine_for().stream(request_of(), HELLO, [CALCULATOR, tool], choice)]
    assert [body["tools"][1] for body in server.bodies] == [definition] * 3
    assert [body["tool_choice"] for body in server.bodies] == choices


async def test_the_engines_model_overrides_the_requests(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """If the engine has a model name, it sends this one instead of the request's."""
    server.scripts.append([chunk({}, "stop"), DONE])
    await pieces_of(engine_for(model="engine-model"))
    assert server.bodies[0]["model"] == "engine-model"


async def test_earlier_turns_are_sent_as_given(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """The model server receives the conversation unchanged, with tool calls, results and images."""
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
    assert [piece async for piece in engine_for().stream(request_of(), conversation, ())]
    assert server.bodies[0]["messages"] == conversation


# Failures


async def refusal(engine: OpenAIEngine) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await pieces_of(engine)
    return caught.value


CONTEXT = {"code": "context_length_exceeded"}
REFUSALS = [
    (
        400,
        "The maximum context length is 8192.",
        CONTEXT,
        CONTEXT_LENGTH,
        400,
        "400 - The maximum context length is 8192.",
    ),
    (400, "Too much.", CONTEXT, CONTEXT_LENGTH, 400, "400 - Too much. (context length exceeded)"),
    (400, "The prompt is too long.", {}, CONTEXT_LENGTH, 400, "400 - The prompt is too long."),
    (500, "The context size is exceeded.", {}, CONTEXT_LENGTH, 400, "500 - The context size is exceeded."),
    (400, "Unknown parameter.", {}, MODEL_ERROR, 400, "400 - Unknown parameter."),
    (404, "No such model.", {}, MODEL_ERROR, 404, "404 - No such model."),
    (401, "Incorrect API key: sk-secret-key", {}, MODEL_ERROR, 502, "401 - Incorrect API key: ***"),
    (429, "Slow down.", {}, MODEL_ERROR, 429, "429 - Slow down."),
    (500, "Order 4001 is too long.", {}, MODEL_ERROR, 502, "500 - Order 4001 is too long."),
    (503, "Loading.", {}, MODEL_ERROR, 503, "503 - Loading."),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[-1])
async def test_upstream_errors_keep_status_and_message(
    server: FakeModelServer, engine_for: MakeEngine, case: Any
) -> None:
    """An error has the code and the status of the server's answer, its text, and never the API key."""
    status, message, fields, code, shown_status, expected = case
    server.scripts.append(error(status, message, **fields))
    refused = await refusal(engine_for())
    assert str(refused) == f"Error code: {expected}"
    assert (refused.code, failure_status(refused.code, refused.status)) == (code, shown_status)


@pytest.mark.parametrize("body", ['{"detail": "context length"}', '{"message": "context length"}', "context length"])
async def test_error_bodies_in_other_forms_are_kept(server: FakeModelServer, engine_for: MakeEngine, body: str) -> None:
    """The error contains the body of a refusal even if the body does not have OpenAI's form."""
    server.scripts.append(web.Response(text=body, status=400))
    refused = await refusal(engine_for())
    assert str(refused).startswith("Error code: 400 - ")
    assert refused.code == CONTEXT_LENGTH


async def test_an_error_page_is_truncated(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """If a proxy answers with a web page, the error contains only its first MAX_ERROR_CHARS characters."""
    server.scripts.append(web.Response(text="<html>" + "x" * 5000, status=502))
    explained = str(await refusal(engine_for()))
    assert explained.startswith("Error code: 502 - <html>")
    assert len(explained) == MAX_ERROR_CHARS


def busy(status: int = 429, **headers: str) -> web.Response:
    response = error(status, "Slow down.")
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_a_busy_server_is_asked_again(server: FakeModelServer, engine_for: MakeEngine, status: int) -> None:
    """After a temporary refusal the request is retried after the server's delay, and the answer is complete."""
    server.scripts += [busy(status, retry_after_ms="1"), [text("hi"), chunk({}, "stop"), DONE]]
    assert [piece.text for piece in await pieces_of(engine_for(max_retries=2))] == ["hi", ""]


async def test_retries_are_limited(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """After max_retries retries the refusal is raised."""
    server.scripts += [busy(retry_after_ms="1") for _ in range(3)]
    assert str(await refusal(engine_for(max_retries=2))) == "Error code: 429 - Slow down."
    assert server.scripts == []


async def test_a_long_retry_after_is_not_waited_for(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A Retry-After above the limit raises the refusal at once, because the run would time out first."""
    server.scripts.append(busy(Retry_After="3600"))
    assert str(await refusal(engine_for(max_retries=2))) == "Error code: 429 - Slow down."


async def test_a_cancel_ends_the_wait_for_a_busy_server(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A run that is cancelled while it waits for a Retry-After ends at once and sends no more requests."""
    server.scripts.append(busy(Retry_After="60"))
    task = asyncio.create_task(pieces_of(engine_for(max_retries=2)))
    async with asyncio.timeout(TIMEOUT_S):
        await server.asked.wait()
        done, _ = await asyncio.wait({task}, timeout=0.2)  # the engine has read the refusal and waits
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
async def test_an_answer_that_is_no_stream_is_named(server: FakeModelServer, engine_for: MakeEngine, kind: str) -> None:
    """If a web page or an unstreamed completion arrives instead of a stream, the error names its content type."""
    server.scripts.append(OTHER_KINDS[kind])
    explained = str(await refusal(engine_for()))
    assert explained.startswith(f"the model server answered with content type '{kind}")


async def test_chunks_without_choices_are_a_failure(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """A stream whose chunks have no choices raises the error of an incomplete answer."""
    server.scripts.append([{**chunk(), "choices": []}, {**chunk(), "choices": []}, DONE])
    assert "without a finish_reason" in str(await refusal(engine_for()))


@pytest.mark.parametrize("ending", [[CUT], [DONE], []], ids=["connection cut", "done too early", "clean end"])
async def test_an_answer_that_stops_is_a_failure(
    server: FakeModelServer, engine_for: MakeEngine, ending: list[str]
) -> None:
    """A stream that ends without a finish_reason raises EngineError, and the request is not retried."""
    server.scripts.append([text("half an ans"), *ending])
    pieces = engine_for(max_retries=2).stream(request_of(), HELLO, ())
    assert await anext(pieces) == EngineDelta(text="half an ans")
    with pytest.raises(EngineError, match=r"connection to the model server failed|without a finish_reason"):
        await anext(pieces)
    assert len(server.bodies) == 1


async def test_a_cut_after_the_end_of_the_answer_is_harmless(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """After the finish_reason the answer is complete, even if the connection then breaks."""
    server.scripts.append([text("whole"), chunk({}, "stop"), CUT])
    assert await pieces_of(engine_for()) == [EngineDelta(text="whole"), EngineDelta(finish_reason="stop")]


FAULTS: dict[str, dict[str, Any] | str] = {
    "out of memory": {"error": {"message": "out of memory", "code": 500}},
    "invalid JSON": "{not json",
    "finish_reason 'error'": chunk({}, "error"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failure_within_the_stream_raises(server: FakeModelServer, engine_for: MakeEngine, fault: str) -> None:
    """An error object, invalid JSON or the finish_reason error in the stream raises EngineError."""
    server.scripts.append([text("half"), FAULTS[fault], DONE])
    assert fault in str(await refusal(engine_for()))


async def test_a_placeholder_key_is_not_masked(server: FakeModelServer) -> None:
    """A short key is a placeholder, so error texts that contain it are not changed."""
    engine = OpenAIEngine(server.url, "none", max_retries=0)
    server.scripts.append(error(404, "none such"))
    assert str(await refusal(engine)) == "Error code: 404 - none such"
    await engine.close()


async def test_a_connection_error_hides_the_servers_address(unused_tcp_port: int) -> None:
    """A refused connection raises an EngineError that does not contain the server's address."""
    engine = OpenAIEngine(f"http://127.0.0.1:{unused_tcp_port}/v1", None, max_retries=0)
    refused = await refusal(engine)
    explained = str(refused)
    await engine.close()
    assert explained.startswith("the connection to the model server failed: ")
    assert str(unused_tcp_port) not in explained
    assert (refused.code, refused.status) == (MODEL_ERROR, 502)


async def test_silence_over_the_limit_is_a_failure(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """If the server sends nothing for timeout_s, EngineError is raised and the connection is closed."""
    server.scripts.append([text("one"), WAIT])
    refused = await refusal(engine_for(timeout_s=0.05))
    assert str(refused) == "the connection to the model server failed: no answer in time"
    assert (refused.code, refused.status) == (MODEL_ERROR, 504)
    await asyncio.wait_for(server.client_gone.wait(), TIMEOUT_S)


# Cancellation


async def test_closing_the_iterator_closes_the_request(server: FakeModelServer, engine_for: MakeEngine) -> None:
    """Closing the iterator closes the connection to the server."""
    server.scripts.append([text("one"), WAIT])
    pieces = engine_for().stream(request_of(), HELLO, ())
    assert await anext(pieces) == EngineDelta(text="one")
    await pieces.aclose()
    await asyncio.wait_for(server.client_gone.wait(), TIMEOUT_S)


@pytest.mark.parametrize("before", [[text("one")], []], ids=["between tokens", "before the first"])
async def test_cancelling_closes_the_request(server: FakeModelServer, engine_for: MakeEngine, before: Script) -> None:
    """Cancelling a task that waits for a token closes the connection to the server."""
    server.scripts.append([*before, WAIT])
    received = asyncio.Event()

    async def reader() -> None:
        async for _ in engine_for().stream(request_of(), HELLO, ()):
            received.set()

    task = asyncio.create_task(reader())
    async with asyncio.timeout(TIMEOUT_S):
        await (received if before else server.asked).wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.client_gone.wait()
