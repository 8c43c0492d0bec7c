"""Runs that wait for people: parked, answered on any front end, and continued by any worker."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.deployment import COMPLETIONS, Deployment, Message, error_of, kill_worker, said, terminate
from tests.helpers import TIMEOUT_S, decode
from tests.processes import Process, Processes
from tests.scrape import Scraper, metrics_port

APPROVED = {"approval-1": {"approve": True}}


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


async def worker_of(deployment: Deployment, name: str = "a", agent: str = "asking", **settings: str) -> Process:
    """Start a worker with an asking agent."""
    return await deployment.worker(name, f"asking_agents:{agent}", **settings)


async def resume(deployment: Deployment, run_id: str, answers: dict[str, Any], **body: Any) -> tuple[int, Any]:
    """Answer interrupts; return the status and the body, as messages if it is a stream."""
    url = f"{deployment.url}{COMPLETIONS}/{run_id}/resume"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"answers": answers} | body, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as response,
    ):
        if response.content_type == "text/event-stream":
            return response.status, decode(await response.read())
        return response.status, await response.json()


async def parked(deployment: Deployment, script: str) -> tuple[str, list[Message]]:
    """Start a run that asks; return its id and the messages of its stream, which ends when the run is parked."""
    async with deployment.stream(script) as stream:
        messages = await stream.whole()
        return stream.run_id, messages


async def completed(deployment: Deployment, run_id: str) -> dict[str, Any]:
    """Return the run when it has completed. Nothing tells a client that a parked run goes on by itself."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            answer = await deployment.retrieve(run_id)
            if answer["status"] == "completed":
                return answer
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("agent", ["asking", "asking_in_a_thread"])
async def test_a_run_waits_for_approval_and_goes_on(deployment: Deployment, agent: str) -> None:
    """A stream ends well when its run asks; the answer continues the run, and a later reader sees one whole stream."""
    await worker_of(deployment, agent=agent)
    run_id, first = await parked(deployment, "once")
    final = first[-2][1]
    assert final["status"] == "requires_action"
    assert [asked["id"] for asked in final["interrupts"]] == ["approval-1"]
    assert final["choices"][0]["finish_reason"] == "stop"
    assert final["usage"]["total_tokens"] > 0
    assert "Waiting for approval" in "".join(said(first))
    snapshot = await deployment.retrieve(run_id)
    assert (snapshot["status"], [asked["id"] for asked in snapshot["interrupts"]]) == (
        "requires_action",
        ["approval-1"],
    )
    status, rest = await resume(deployment, run_id, APPROVED, stream=True)
    assert status == 200
    assert said(rest) == ["approved=True "]
    assert error_of(rest) is None
    assert rest[-2][1]["usage"]["total_tokens"] == 8
    whole = await deployment.replay(run_id)
    assert said(whole) == ["before ", "approved=True "]


async def test_all_processes_may_be_restarted_while_a_run_waits(deployment: Deployment) -> None:
    """A parked run needs no process: after a restart of the front end and all workers it is answered and goes on."""
    worker = await worker_of(deployment)
    run_id, _ = await parked(deployment, "once")
    await kill_worker(worker)
    await deployment.frontend()  # another one
    await worker_of(deployment, "b")
    status, answer = await resume(deployment, run_id, APPROVED)
    assert (status, answer["status"]) == (200, "completed")
    assert answer["choices"][0]["message"]["content"] == "before approved=True "


async def test_a_stopped_worker_loses_no_question(deployment: Deployment) -> None:
    """A worker with a parked run stops at once."""
    worker = await worker_of(deployment)
    run_id, _ = await parked(deployment, "once")
    assert await terminate(worker) == 0
    assert (await deployment.retrieve(run_id))["status"] == "requires_action"


async def test_questions_follow_one_another(deployment: Deployment) -> None:
    """An agent may ask again after a checkpoint; each question has its own id."""
    await worker_of(deployment)
    run_id, _ = await parked(deployment, "twice")
    status, answer = await resume(deployment, run_id, {"question-1": "yes"})
    assert (status, answer["status"]) == (200, "requires_action")
    assert [asked["id"] for asked in answer["interrupts"]] == ["question-2"]
    status, answer = await resume(deployment, run_id, {"question-2": "no"})
    assert answer["choices"][0]["message"]["content"] == "yes no "


async def test_several_questions_are_open_at_once(deployment: Deployment) -> None:
    """A run with two open questions goes on when both are answered."""
    await worker_of(deployment)
    run_id, first = await parked(deployment, "both")
    assert {asked["id"] for asked in first[-2][1]["interrupts"]} == {"a", "b"}
    status, answer = await resume(deployment, run_id, {"a": 1}, background=True)
    assert (status, answer["status"]) == (200, "requires_action")
    assert [asked["id"] for asked in answer["interrupts"]] == ["b"]
    status, answer = await resume(deployment, run_id, {"b": 2})
    assert answer["choices"][0]["message"]["content"] == "1+2 "


async def test_an_agent_that_cannot_be_put_down_waits_in_place(deployment: Deployment) -> None:
    """An agent that is not resumable gets the answer in the same attempt, and its stream stays open."""
    await worker_of(deployment, agent="waiting_in_place")
    async with deployment.stream("once") as stream:
        await stream.until("event: interrupt")
        snapshot = await deployment.retrieve(stream.run_id)
        assert snapshot["status"] == "in_progress"
        assert [asked["id"] for asked in snapshot["interrupts"]] == ["approval-1"]
        status, answered = await resume(deployment, stream.run_id, APPROVED, background=True)
        assert (status, "interrupts" in answered) == (200, False)
        assert said(await stream.whole()) == ["before ", "approved=True "]


@pytest.mark.parametrize("agent", ["asking", "waiting_in_place"])
async def test_a_question_expires(deployment: Deployment, agent: str) -> None:
    """If nobody answers in time, the agent learns of it and goes on."""
    await worker_of(deployment, agent=agent)
    async with deployment.stream("briefly") as stream:
        await stream.whole()
        answer = await completed(deployment, stream.run_id)
    assert answer["choices"][0]["message"]["content"] == "nobody answered"


async def test_a_cancel_ends_a_parked_run(deployment: Deployment) -> None:
    """A parked run can be cancelled; it keeps its usage so far."""
    await worker_of(deployment)
    run_id, first = await parked(deployment, "once")
    answer = await deployment.cancel(run_id)
    assert answer["status"] == "cancelled"
    assert answer["usage"] == first[-2][1]["usage"]
    status, refused = await resume(deployment, run_id, APPROVED)
    assert (status, refused["error"]["code"]) == (409, "not_waiting")


async def test_wrong_answers_are_refused_and_change_nothing(deployment: Deployment) -> None:
    """An unknown interrupt, a wrong form, another answer to the same interrupt: each a clear error, nothing changed."""
    await worker_of(deployment)
    run_id, _ = await parked(deployment, "form")
    for answers, expected in (
        ({"nothing": 1}, "no interrupt 'nothing'"),
        ({"form-1": "Oslo"}, "expected an object"),
        ({"form-1": {"days": 2}}, "'city' is missing"),
        ({"form-1": {"city": "Oslo", "days": True}}, "days: expected integer"),
        ({"form-1": {"city": "O"}}, "at least 2 characters"),
        ({"form-1": {"town": "Oslo"}}, "unknown field 'town'"),
        ({}, "answers"),
    ):
        status, body = await resume(deployment, run_id, answers)
        assert (status, expected in body["error"]["message"]) == (400, True), body
    assert (await deployment.retrieve(run_id))["status"] == "requires_action"
    status, answer = await resume(deployment, run_id, {"form-1": {"city": "Oslo"}})
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "{'city': 'Oslo'}")
    status, body = await resume(deployment, run_id, {"form-1": {"city": "Rome"}})
    assert status == 409


async def test_metrics_count_questions_answers_and_waiting_runs(deployment: Deployment) -> None:
    """Parked runs are counted until they are answered, cancelled or expired, and are no lost workers' runs."""
    port, serving = metrics_port()
    await worker_of(deployment, AGENTSTREAM_LEASE_S="1", **serving)
    frontend, worker = Scraper(deployment.url), Scraper.of_port(port)
    answered, _ = await parked(deployment, "once")
    cancelled, _ = await parked(deployment, "both")
    expired, _ = await parked(deployment, "briefly")
    await worker.reaches("agentstream_worker_interrupts_total", 4)
    await worker.reaches("agentstream_worker_runs_total", 3, outcome="parked")
    await resume(deployment, answered, APPROVED)
    await deployment.cancel(cancelled)
    await completed(deployment, expired)
    after = await frontend.until(lambda scrape: scrape.of("agentstream_parked_runs") == 0)
    assert (after.of("agentstream_answers_total"), after.of("agentstream_parked_seconds")) == (1, 1)
    counts = await worker.reaches("agentstream_worker_interrupt_timeouts_total")
    assert counts.of("agentstream_worker_interrupt_timeouts_total") == 1
    assert counts.of("agentstream_worker_retries_total") == 0
    assert counts.of("agentstream_worker_pause_seconds") == 0


async def test_a_timeout_in_place_is_counted(deployment: Deployment) -> None:
    """A question that expires in its worker counts as asked and as not answered."""
    port, serving = metrics_port()
    await worker_of(deployment, agent="waiting_in_place", **serving)
    async with deployment.stream("briefly") as stream:
        await stream.whole()
    counts = await Scraper.of_port(port).reaches("agentstream_worker_interrupt_timeouts_total")
    assert counts.of("agentstream_worker_interrupts_total") == 1
