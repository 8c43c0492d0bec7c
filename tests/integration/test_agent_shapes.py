"""Generators and agents with a start and an end, through real processes."""

import signal

import pytest

from tests.helpers import texts
from tests.integration.conftest import Client
from tests.processes import Processes


async def test_generators_stream_what_they_yield(processes: Processes, client: Client) -> None:
    """Async and plain generators stream each text that they yield, and are closed at their end."""
    url = await processes.frontend()
    for agent, expected in (("words", ["one ", "two ", "three"]), ("words_in_a_thread", ["one ", "two"])):
        worker = await processes.worker(f"author_agents:{agent}")
        assert texts(await client.stream(url, "go")) == expected
        await worker.until("words closed")
        await worker.stop()


@pytest.mark.parametrize(("agent", "text"), [("words", "slowly"), ("words_in_a_thread", "for ever")])
async def test_a_cancel_closes_a_generator(processes: Processes, client: Client, agent: str, text: str) -> None:
    """A client that disconnects cancels the run, and the generator runs its ``finally``."""
    url = await processes.frontend()
    worker = await processes.worker(f"author_agents:{agent}")
    body = {"model": "m1", "messages": [{"role": "user", "content": text}], "stream": True}
    async with client.session.post(f"{url}/v1/chat/completions", json=body) as response:
        await response.content.readuntil(b"one ")
    await worker.until("words closed")
    await worker.until("outcome=cancelled")


async def test_an_agent_is_started_once_for_each_process(processes: Processes, client: Client) -> None:
    """The context manager is entered before the worker takes jobs, shared by all runs, and left at the drain."""
    url = await processes.frontend()
    worker = await processes.worker("author_agents:pooled")
    await worker.until(r"pool opened in \d+\n(?s:.*)takes jobs of queue")
    for number in (1, 2):
        assert "".join(texts(await client.stream(url, "go"))) == f"run {number} of {worker.pid}"
    await worker.stop()
    assert await worker.ended() == 0
    assert worker.output.count("pool opened") == 1
    assert "pool closed after 2 runs" in worker.output


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (
            "broken",
            r"agent 'author_agents:broken' could not start: ConnectionError: no database, at .*author_agents.py",
        ),
        ("no_parameter", r"agent 'author_agents:no_parameter' takes no parameter.*async def agent\(run: Run\)"),
    ],
)
async def test_a_wrong_agent_stops_the_start(processes: Processes, agent: str, reason: str) -> None:
    """An agent that cannot start, or cannot be an agent, ends the worker with code 2 and one clear line."""
    worker = await processes.start("worker", AGENTSTREAM_AGENT=f"author_agents:{agent}")
    assert await worker.ended() == 2
    await worker.until(reason)
    assert "Traceback" not in worker.output


async def test_an_agent_that_blocks_at_its_end_cannot_keep_the_worker(processes: Processes) -> None:
    """The end of an agent is bounded, even if it blocks the event loop."""
    worker = await processes.worker("author_agents:stubborn")
    worker.send_signal(signal.SIGTERM)
    assert await worker.ended() == 1
    assert "an agent keeps the process from its end" in worker.output


async def test_up_serves_an_agent_that_is_started(processes: Processes, client: Client) -> None:
    """Under ``up`` each worker process starts the agent once."""
    up = await processes.start("up", REDIS_URL="", AGENTSTREAM_PORT="0", AGENTSTREAM_AGENT="author_agents:pooled")
    url = (await up.until(r"serving +(http://\S+)"))[1]
    assert texts(await client.stream(url, "go"))
    assert up.output.count("pool opened") == 2
    await up.stop()
    assert up.output.count("pool closed") == 2


async def test_a_start_that_never_ends_can_be_stopped(processes: Processes) -> None:
    """A worker that is told to stop while its agent starts ends at once with code 0."""
    worker = await processes.start("worker", AGENTSTREAM_AGENT="author_agents:waiting")
    await worker.until("waiting to start")
    worker.send_signal(signal.SIGTERM)
    assert await worker.ended() == 0
