"""A blocked event loop is reported with the agent, the place and the remedy, and Redis is not blamed."""

import asyncio

from tests.helpers import texts
from tests.integration.conftest import Client
from tests.processes import Processes


async def test_a_blocked_loop_names_the_agent_and_the_place(
    processes: Processes, client: Client, unused_tcp_port: int
) -> None:
    """The worker's log names the agent, its run and the line that blocks, and the metric counts it."""
    url = await processes.frontend()
    settings = {"AGENTSTREAM_METRICS_PORT": str(unused_tcp_port), "AGENTSTREAM_LEASE_S": "30"}
    worker = await processes.worker("blocking", **settings)
    neighbour = asyncio.create_task(client.stream(url, "tick"))
    await worker.until("ticking")
    messages = await client.stream(url, "block in a task")
    run_id = messages[0][1]["id"]
    line = await worker.until(r"WARNING.*the agent (\w+) blocks the event loop.*")
    assert line[1] == "blocking"
    assert run_id in line[0]
    assert "asyncio.to_thread" in line[0]
    assert "agents.py, line" in line[0]
    await worker.until(r"time\.sleep\(8\)")  # in the stack
    await worker.until(r"the event loop runs again; it was blocked for \d")
    assert texts(await neighbour)[-1] == "tock"
    async with client.session.get(f"http://127.0.0.1:{unused_tcp_port}/metrics") as response:
        metrics = await response.text()
    assert "agentstream_worker_loop_blocked_seconds_count 1.0" in metrics
    assert "Redis did not answer" not in worker.output
    assert "has not answered a PING" not in worker.output
