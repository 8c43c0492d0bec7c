"""``agentstream up --reload``: a change of the user's code reaches the next request, and no run is lost."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers import TIMEOUT_S, texts
from tests.integration.conftest import Client
from tests.processes import ROOT, Process, Processes, ended, linux_only

START_S = 3 * TIMEOUT_S

AGENT = """
import asyncio, os, pathlib
from agentstream import AgentResult

async def agent(run):
    if run.request.messages[-1].text == "wait":
        run.write("begun by {version}, ")
        print("waits", flush=True)
        while not pathlib.Path(os.environ["GATE"]).exists():
            await asyncio.sleep(0.01)
        run.write("ended by {version}")
        return AgentResult("")
    return AgentResult("{version}")
"""


class Reloading:
    """``up --reload`` in a folder with one agent."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.gate = folder / "gate"
        self.url = ""

    async def serves(self) -> None:
        """Wait until it serves."""
        self.url = (await self.process.until(r"serving +(http://\S+) .*\ntry .*\n", START_S))[1]

    def write(self, text: str) -> None:
        """Write the agent."""
        (self.folder / "my_agent.py").write_text(text)

    async def replaced(self, times: int) -> None:
        """Wait until the worker was replaced so many times."""
        await self.process.until(rf"(?s)(takes jobs of queue.*){{{times + 1}}}", START_S)


@pytest.fixture
async def reloading(processes: Processes, tmp_path: Path) -> Reloading:
    """Start ``up --reload`` with version one of the agent."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_agent.py").write_text(AGENT.format(version="one"))
    processes.cwd = folder
    process = await processes.start(
        "up",
        "--reload",
        REDIS_URL="",
        AGENTSTREAM_PORT="0",
        AGENTSTREAM_WORKERS="1",
        AGENTSTREAM_AGENT="my_agent:agent",
        GATE=str(folder / "gate"),
        PYTHONPATH=str(ROOT),
    )
    return Reloading(process, folder)


async def answer(client: Client, url: str, question: str = "?") -> str:
    """Return the answer to a question."""
    return "".join(texts(await client.stream(url, question)))


async def test_a_change_reaches_the_next_request(reloading: Reloading, client: Client) -> None:
    """After each change of a file, which is named, new requests are answered by the new code."""
    await reloading.serves()
    assert await answer(client, reloading.url) == "one"
    for number, version in enumerate(("two", "six"), 1):  # equal lengths: only the time of the file changes
        reloading.write(AGENT.format(version=version))
        await reloading.process.until(rf"(?s)(changed +my_agent\.py: replacing the workers.*){{{number}}}", START_S)
        await reloading.replaced(number)
        for pid in re.findall(r"(?m)^worker 1 +pid (\d+)", reloading.process.output)[:number]:
            await ended(int(pid))  # until then an old worker may still take a job
        assert await answer(client, reloading.url) == version
    assert "ended with code" not in reloading.process.output


async def test_a_run_ends_on_the_old_code(reloading: Reloading, client: Client) -> None:
    """A run that has begun ends on the old worker, while the new worker already answers other requests."""
    await reloading.serves()
    waiting = asyncio.create_task(answer(client, reloading.url, "wait"))
    await reloading.process.until(r"waits")
    reloading.write(AGENT.format(version="two"))
    await reloading.replaced(1)
    await reloading.process.until(r"draining: 1 runs")  # until then the old worker may still take a job
    assert await answer(client, reloading.url) == "two"
    reloading.gate.touch()
    assert await waiting == "begun by one, ended by one"


@linux_only
async def test_a_stop_waits_for_the_old_workers(reloading: Reloading, client: Client) -> None:
    """A stop while an old worker still has a run ends that run too, and leaves no process."""
    await reloading.serves()
    waiting = asyncio.create_task(answer(client, reloading.url, "wait"))
    await reloading.process.until(r"waits")
    reloading.write(AGENT.format(version="two"))
    await reloading.replaced(1)
    reloading.process.send_signal(signal.SIGTERM)
    await reloading.process.until(r"draining: 1 open runs")
    reloading.gate.touch()
    assert await waiting == "begun by one, ended by one"
    assert await reloading.process.ended(START_S) == 0
    for pid in re.findall(r"(?m)^worker 1 +pid (\d+)", reloading.process.output):
        await ended(int(pid))


async def test_an_import_error_is_shown_and_mended(reloading: Reloading, client: Client) -> None:
    """Code that cannot be imported ends nothing: its error is shown, and the next change starts the workers."""
    await reloading.serves()
    reloading.write("import no_such_module\n")
    await reloading.process.until(r"No module named 'no_such_module'", START_S)
    await reloading.process.until(r"worker 1 does not start.*next change", START_S)
    waiting = asyncio.create_task(answer(client, reloading.url))  # waits in the queue
    reloading.write(AGENT.format(version="two"))
    assert await waiting == "two"
    assert reloading.process.output.count("does not start") == 1


async def test_a_first_start_may_fail(processes: Processes, client: Client, tmp_path: Path) -> None:
    """With --reload an import error at the first start ends nothing either; without it, ``up`` ends."""
    (tmp_path / "my_agent.py").write_text("def agent(:\n")
    processes.cwd = tmp_path
    process = await processes.start(
        "up",
        "--reload",
        REDIS_URL="",
        AGENTSTREAM_PORT="0",
        AGENTSTREAM_WORKERS="1",
        AGENTSTREAM_AGENT="my_agent:agent",
        GATE=os.devnull,
        PYTHONPATH=str(ROOT),
    )
    await process.until(r"worker 1 does not start", START_S)
    reloading = Reloading(process, tmp_path)
    reloading.write(AGENT.format(version="one"))
    await reloading.serves()
    assert await answer(client, reloading.url) == "one"
