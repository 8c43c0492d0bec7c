"""Messages that people send to a run that is going on."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.deployment import COMPLETIONS, Deployment, kill_worker, said
from tests.helpers import TIMEOUT_S
from tests.processes import Processes


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


async def send(deployment: Deployment, run_id: str, *texts: str, role: str = "user") -> tuple[int, Any]:
    """Send messages to a run; return the status and the answer."""
    url = f"{deployment.url}{COMPLETIONS}/{run_id}/input"
    body = {"messages": [{"role": role, "content": text} for text in texts]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as response,
    ):
        return response.status, await response.json()


async def test_input_reaches_the_agent_in_order(deployment: Deployment) -> None:
    """Messages are taken in the order in which they were sent, and every reader sees at which place."""
    await deployment.worker("a", "asking_agents:listening")
    async with deployment.stream("listen") as stream:
        assert await send_when_running(deployment, stream.run_id, "one") == (200, ["input-1"])
        await stream.until("heard one")
        assert (await send(deployment, stream.run_id, "two", "stop"))[1]["inputs"] == ["input-2", "input-3"]
        messages = await stream.whole()
        assert said(messages) == ["heard one ", "heard two ", "heard stop "]
        assert [name for name, _ in messages].count("input_applied") == 2
        assert await deployment.replay(stream.run_id) == messages
        assert (await send(deployment, stream.run_id, "late"))[0] == 409


async def send_when_running(deployment: Deployment, run_id: str, text: str) -> tuple[int, Any]:
    """Send a message to a run as soon as it has begun."""
    while True:
        status, answer = await send(deployment, run_id, text)
        if status != 409 or "not begun" not in answer["error"]["message"]:
            return status, answer.get("inputs", answer)


async def test_input_is_applied_once_if_the_worker_is_killed(deployment: Deployment) -> None:
    """A message that was sent while its worker died is applied once by the next worker."""
    first = await deployment.worker("a", "asking_agents:listening")
    async with deployment.stream("listen") as stream:
        await send_when_running(deployment, stream.run_id, "one")
        await stream.until("heard one")
        await kill_worker(first)
        assert (await send(deployment, stream.run_id, "two"))[0] == 200
        await deployment.worker("b", "asking_agents:listening")
        await stream.until("heard two")
        assert (await send(deployment, stream.run_id, "stop"))[0] == 200
        assert said(await stream.whole()) == ["heard one ", "heard two ", "heard stop "]


async def test_input_that_nobody_took_is_told_at_the_end(deployment: Deployment) -> None:
    """The final chunk and the stored answer name the messages that the agent did not take."""
    await deployment.worker("a", "asking_agents:deaf")
    async with deployment.stream("listen") as stream:
        await send_when_running(deployment, stream.run_id, "one")
        messages = await stream.whole()
        assert messages[-2][1]["unapplied_inputs"] == ["input-1"]
        assert (await deployment.retrieve(stream.run_id))["unapplied_inputs"] == ["input-1"]


async def test_wrong_input_is_refused(deployment: Deployment) -> None:
    """Input from another role, too much of it, and input for an agent that takes none: each a clear error."""
    await deployment.worker("a", "asking_agents:listening")
    async with deployment.stream("listen") as stream:
        await send_when_running(deployment, stream.run_id, "one")
        status, answer = await send(deployment, stream.run_id, "obey", role="system")
        assert (status, answer["error"]["param"]) == (400, "messages[0].role")
        status, answer = await send(deployment, stream.run_id, "x" * (300 << 10))
        assert (status, answer["error"]["code"]) == (429, "too_much_input")
        assert (await send(deployment, stream.run_id, *["x"] * 21))[0] == 400
        await send(deployment, stream.run_id, "stop")
        assert said(await stream.whole()) == ["heard one ", "heard stop "]
