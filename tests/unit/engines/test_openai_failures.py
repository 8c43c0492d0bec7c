"""The failures of an OpenAI engine, and its cancellation."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from agentstream.engines.base import EngineDelta, EngineError
from agentstream.engines.openai import MAX_ERROR_CHARS, OpenAIEngine
from agentstream.errors import CONTEXT_LENGTH, MODEL_ERROR, failure_status
from tests.helpers import TIMEOUT_S
from tests.model_server import CUT, DONE, WAIT, FakeModelServer, Script, chunk, error, text
from tests.unit.engines.openai_engine import HELLO, MakeEngine, pieces_of, request_of

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
