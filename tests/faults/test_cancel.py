"""Runs that are cancelled by the endpoint, or because their client disconnects."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.faults.deployment import (
    SAID_BY_A,
    Deployment,
    Message,
    begun,
    ended,
    error_of,
    kill_worker,
    said,
)
from tests.helpers import TIMEOUT_S
from tests.processes import Processes


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


def content_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def assert_cancelled(answer: dict[str, Any], messages: list[Message]) -> None:
    """Assert that the answer of the endpoint and the attached stream end in the same way."""
    assert (answer["http_status"], answer["status"]) == (200, "cancelled")
    assert error_of(messages) == "cancelled"
    assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"
    assert content_of(answer) == "".join(said(messages))
    assert answer["usage"] == messages[-2][1]["usage"]


# -- the endpoint ---------------------------------------------------------------------------------------


async def test_queued_run_is_cancelled_without_a_worker(deployment: Deployment) -> None:
    """A cancel ends a queued run at once without a live worker, and a worker that starts later skips the run."""
    async with deployment.stream("text") as stream:
        answer = await deployment.cancel(stream.run_id)
        messages = await stream.whole()
    assert_cancelled(answer, messages)
    assert content_of(answer) == ""
    worker = await deployment.worker("a")
    await deployment.complete("answer")  # it is after that run in the queue
    assert f"begins text {stream.run_id}" not in worker.output


async def test_running_async_agent_is_cancelled(deployment: Deployment) -> None:
    """The task of an async agent is cancelled and cleans up, and the answer holds the text and usage so far."""
    worker = await deployment.worker("a")
    async with deployment.stream("ticks") as stream:
        await stream.until("a:3 ")
        answer = await deployment.cancel(stream.run_id)
        assert await ended(worker, stream.run_id) == "CancelledError"
        messages = await stream.whole()
    assert_cancelled(answer, messages)
    assert content_of(answer).startswith("a:0 a:1 a:2 a:3 ")
    assert answer["usage"]["completion_tokens"] >= 4


@pytest.mark.parametrize("script", ["ticks", "silent"])
async def test_running_threaded_agent_sees_the_cancel(deployment: Deployment, script: str) -> None:
    """An agent in a thread sees run.cancelled, and its next write raises RunCancelled."""
    worker = await deployment.worker("a", "loss_agents:scripted_in_a_thread")
    async with deployment.stream(script) as stream:
        await stream.until("a:3 " if script == "ticks" else "agent_turn_start")
        answer = await deployment.cancel(stream.run_id)
        if script == "silent":
            await worker.until(f"note a sees run.cancelled {stream.run_id}")
        assert await ended(worker, stream.run_id) == "RunCancelled"
        messages = await stream.whole()
    assert_cancelled(answer, messages)
    assert "too late" not in content_of(answer)


async def test_cancel_is_noticed_without_its_message(deployment: Deployment) -> None:
    """If the message of a cancel is lost, the worker notices the cancel at the next renewal of its lease."""
    worker = await deployment.worker("a")
    async with deployment.stream("text") as stream:
        await stream.until(SAID_BY_A[-1])
        await deployment.flag_cancel(stream.run_id)
        messages = await stream.whole()
    assert error_of(messages) == "cancelled"
    assert said(messages) == SAID_BY_A
    assert await ended(worker, stream.run_id) == "CancelledError"


@pytest.mark.parametrize("script", ["text on a", "silent on a"])
async def test_run_of_a_killed_worker_is_cancelled_by_the_next(deployment: Deployment, script: str) -> None:
    """If the worker of a cancelled run was killed, the next worker ends the run without calling the agent."""
    first = await deployment.worker("a")
    async with deployment.stream(script) as stream:
        await stream.until(SAID_BY_A[-1] if script == "text on a" else "agent_turn_start")
        await kill_worker(first)
        cancelling = asyncio.create_task(deployment.cancel(stream.run_id))
        second = await deployment.worker("b")
        messages = await stream.whole()
        answer = await cancelling
    assert_cancelled(answer, messages)
    assert said(messages) == (SAID_BY_A if script == "text on a" else [])
    assert "begins" not in second.output


async def test_cancelling_more_than_once_is_harmless(deployment: Deployment) -> None:
    """Concurrent and later cancels of a run get the same answer, and the run ends once."""
    await deployment.worker("a")
    async with deployment.stream("text") as stream:
        await stream.until(SAID_BY_A[-1])
        answers = await asyncio.gather(*(deployment.cancel(stream.run_id) for _ in range(5)))
        messages = await stream.whole()
        answers.append(await deployment.cancel(stream.run_id))
        log = await deployment.log_of(stream.run_id)
    for answer in answers:
        assert answer == answers[0]
        assert_cancelled(answer, messages)
    assert str(log).count("run_cancelled") == 1


@pytest.mark.parametrize(("script", "status"), [("answer", "completed"), ("unknown script", "failed")])
async def test_cancelling_a_run_that_has_ended_changes_nothing(
    deployment: Deployment, script: str, status: str
) -> None:
    """A cancel of an ended run changes nothing, and answers with the run."""
    await deployment.worker("a")
    async with deployment.stream(script) as stream:
        messages = await stream.whole()
    log = await deployment.log_of(stream.run_id)
    answer = await deployment.cancel(stream.run_id)
    assert (answer["http_status"], answer["status"]) == (200, status)
    assert answer == await deployment.retrieve(stream.run_id)
    assert await deployment.log_of(stream.run_id) == log
    assert await deployment.replay(stream.run_id) == messages


async def test_only_the_owner_of_a_run_may_cancel_it(processes: Processes, broker_url: str, tmp_path: Path) -> None:
    """A run id that is unknown, malformed or of another key gets the same 404, and the run continues."""
    mine, theirs = ({"Authorization": f"Bearer {key}"} for key in ("sk-mine", "sk-theirs"))
    async with Deployment.open(processes, broker_url, tmp_path) as deployment:
        await deployment.frontend(AGENTSTREAM_API_KEYS="sk-mine,sk-theirs")
        await deployment.worker("a")
        async with deployment.stream("gate", headers=mine) as stream:
            await stream.until("agent_turn_start")
            for run_id in (stream.run_id, f"chatcmpl-{'0' * 32}", "chatcmpl-1", "x"):
                answer = await deployment.cancel(run_id, **theirs)
                assert answer["http_status"] == 404
                assert answer["error"]["code"] == "not_found"
            assert (await deployment.cancel(stream.run_id))["http_status"] == 401
            assert await deployment.field_of(stream.run_id, "cancel") is None
            deployment.open_gate()
            assert error_of(await stream.whole()) is None


# -- the client disconnects -----------------------------------------------------------------------------


async def test_streamed_run_is_cancelled_when_its_client_disconnects(deployment: Deployment) -> None:
    """A run whose streaming client disconnects is cancelled."""
    worker = await deployment.worker("a")
    async with deployment.stream("text") as stream:
        await stream.until(SAID_BY_A[-1])
        stream.disconnect()
    assert await ended(worker, stream.run_id) == "CancelledError"
    assert error_of(await deployment.replay(stream.run_id)) == "cancelled"


async def test_queued_run_is_cancelled_when_its_client_disconnects(deployment: Deployment) -> None:
    """A run whose client disconnects before a worker took it is cancelled and never begins."""
    async with deployment.stream("text") as stream:
        stream.disconnect()
    assert error_of(await deployment.replay(stream.run_id)) == "cancelled"
    worker = await deployment.worker("a")
    await deployment.complete("answer")
    assert f"begins text {stream.run_id}" not in worker.output


async def test_collected_run_is_cancelled_when_its_client_disconnects(deployment: Deployment) -> None:
    """A run whose client waits for the whole answer and disconnects is cancelled."""
    worker = await deployment.worker("a")
    waiting = asyncio.create_task(deployment.complete("text"))
    run_id = await begun(worker, "text")
    await gone(waiting)
    assert await ended(worker, run_id) == "CancelledError"


async def gone(waiting: asyncio.Task[Any]) -> None:
    """Let a waiting client disconnect: cancel its request, which closes the connection."""
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize(
    ("headers", "body"), [({}, {"background": True}), ({"Idempotency-Key": "k1"}, {})], ids=["background", "idempotent"]
)
async def test_run_that_outlives_its_client(
    deployment: Deployment, headers: dict[str, str], body: dict[str, Any]
) -> None:
    """A background run, and a run with an Idempotency-Key, continue without their client and can be read later."""
    worker = await deployment.worker("a")
    async with deployment.stream("text gate", headers=headers, **body) as stream:
        await stream.until(SAID_BY_A[-1])
        stream.disconnect()
    await another_disconnect_is_noticed(deployment)
    assert await deployment.field_of(stream.run_id, "cancel") is None
    deployment.open_gate()
    messages = await deployment.replay(stream.run_id)
    assert error_of(messages) is None
    assert said(messages) == SAID_BY_A
    assert await ended(worker, stream.run_id) == "completed"


async def test_collected_idempotent_run_outlives_its_client(deployment: Deployment) -> None:
    """A repeated request gets the answer of the first run, whose client disconnected before the answer."""
    worker = await deployment.worker("a")
    key = {"Idempotency-Key": "k2"}
    waiting = asyncio.create_task(deployment.complete("gate", **key))
    run_id = await begun(worker, "gate")
    await gone(waiting)
    await another_disconnect_is_noticed(deployment)
    deployment.open_gate()
    answer = await deployment.complete("gate", **key)
    assert (answer["id"], content_of(answer)) == (run_id, "a passed")
    assert worker.output.count("begins gate") == 1


async def another_disconnect_is_noticed(deployment: Deployment) -> None:
    """Disconnect from another run, and wait until it is cancelled.

    By then the front end has noticed every earlier disconnect.
    """
    async with deployment.stream("silent") as stream:
        await stream.until("agent_turn_start")
        stream.disconnect()
    assert error_of(await deployment.replay(stream.run_id)) == "cancelled"


# -- the model server behind the built-in agent ---------------------------------------------------------


class ModelServer:
    """An OpenAI-compatible server that sends one word and never ends. It notices when its client disconnects."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunk = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m1",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": "upstream "}, "finish_reason": None}],
        }
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.asked.set()
        with self._noticing():
            await asyncio.Event().wait()
        return response

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:  # aiohttp cancels the handler when the client disconnects
            self.left.set()
            raise


@asynccontextmanager
async def model_server() -> AsyncIterator[tuple[ModelServer, str]]:
    """Run a model server, and yield it with its base URL."""
    model = ModelServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.answer)
    async with TestServer(app) as server:
        yield model, str(server.make_url("/v1"))


@pytest.mark.parametrize("by", ["endpoint", "disconnect"])
async def test_model_request_is_closed_when_the_run_is_cancelled(deployment: Deployment, by: str) -> None:
    """A cancel closes the built-in agent's request to its model server, so that the model stops generating."""
    async with model_server() as (model, base_url):
        await deployment.worker("a", None, OPENAI_BASE_URL=base_url, OPENAI_API_KEY="sk-test")
        async with deployment.stream("hello") as stream:
            await stream.until("upstream ")
            assert not model.left.is_set()
            if by == "disconnect":
                stream.disconnect()
            else:
                answer = await deployment.cancel(stream.run_id)
                assert (answer["status"], content_of(answer)) == ("cancelled", "upstream ")
            async with asyncio.timeout(TIMEOUT_S):
                await model.left.wait()
