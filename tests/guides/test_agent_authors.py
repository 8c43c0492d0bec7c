"""The guide on agents, for their authors: callers, generators, lifespans, tests, memory, approval, tools, engines."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentstream.agents.loading import load_agent
from agentstream.testing import run_agent_async
from tests.adapters.model_server import run_model_server
from tests.documents import PYTHON, START_S, Document, answer, as_run_here, output, serving, shell, url_of, user
from tests.helpers import decode, texts

AGENTS = Document("deploy/guides/agents.md")


def write_blocks(mark: str, folder: Path) -> list[str]:
    """Write the files of the blocks with a mark, each named by its first line; return the other blocks."""
    others = []
    for block in AGENTS.blocks(mark):
        first = block.partition("\n")[0]
        if first.startswith("# ") and first.endswith(".py"):
            (folder / first[2:]).write_text(block, encoding="utf-8")
        else:
            others.append(block)
    return others


async def ask(url: str, *messages: dict[str, Any], **headers: str) -> str:
    """Return the text of a streamed answer to a request with headers."""
    body = {"model": "m", "stream": True, "messages": list(messages)}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        return "".join(texts(decode(await response.read())))


async def test_an_agent_reads_an_allowed_header(tmp_path: Path) -> None:
    """The agent of the guide knows its user by the header that the command allows."""
    (command,) = write_blocks("caller", tmp_path)
    async with serving(command, tmp_path) as process:
        assert await ask(url_of(process), user("who?"), **{"X-User-Id": "Ada"}) == "You are Ada."
        assert await ask(url_of(process), user("who?")) == "You are somebody."


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


async def test_an_agent_yields_its_answer(imported: Path) -> None:
    """The generator of the guide streams letter by letter, and its result has the finish reason."""
    assert write_blocks("yield", imported) == []
    outcome = await run_agent_async(load_agent("spelling_agent:agent"), "Oslo")
    assert outcome.pieces == ["O ", "s ", "l ", "o "]
    assert outcome.finish_reason == "length"


async def test_an_agent_has_a_sub_agent(tmp_path: Path) -> None:
    """The sub-agent of the guide is seen under its path, and its text only in the answer of its manager."""
    (command,) = write_blocks("sub_agents", tmp_path)
    async with serving(command, tmp_path) as process:
        messages = await answer(url_of(process), "m", user("ask"))
    assert "".join(texts(messages)) == "My researcher says: I found 391."
    assert [(name, data.get("agent_path")) for name, data in messages if name] == [
        ("tool_call_start", ["researcher"]),
        ("tool_call_end", ["researcher"]),
        ("tool_results", None),
    ]


async def test_an_agent_opens_its_connections_once(tmp_path: Path) -> None:
    """The runs of a worker share what the context manager opened, and it is closed when the worker stops."""
    (command,) = write_blocks("lifespan", tmp_path)
    async with serving(command, tmp_path) as process:
        url = url_of(process)
        for _ in range(2):
            assert await ask(url, user(f"{url}/health/live")) == "status 200"
    assert process.output.count("the session is closed next") == 2  # one for each worker of `up`


async def test_a_resumable_agent_outlives_its_worker(tmp_path: Path) -> None:
    """The agent of the guide writes its whole answer once, although all workers are killed in the middle of it."""
    (command,) = write_blocks("resumable", tmp_path)
    async with serving(command, tmp_path, AGENTSTREAM_LEASE_S="1") as process:
        workers = [int(pid) for pid in re.findall(r"(?m)^worker \d +pid (\d+)", process.output)]
        body = {"model": "m", "stream": True, "messages": [user("write")]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url_of(process)}/v1/chat/completions", json=body) as response,
        ):
            first = await response.content.readuntil(b"past")
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            whole = "".join(texts(decode(first + await response.content.read())))
    chapters = [
        f"This chapter is about the {time}. It is as slow as a model. " for time in ("past", "present", "future")
    ]
    assert whole == "".join(chapters)


async def test_the_kill_tests_of_the_guide_pass(tmp_path: Path) -> None:
    """The tests of the guide pass for its resumable agent, and fail for one that ignores the restored text."""
    write_blocks("resumable", tmp_path)
    (command,) = write_blocks("resumable_test", tmp_path)
    process = await shell(f"{PYTHON} -m {command}", tmp_path, PYTHONPATH=str(tmp_path))
    assert await process.ended(START_S) == 0, process.output
    assert "2 passed" in process.output
    agent = tmp_path / "report_agent.py"
    agent.write_text(agent.read_text(encoding="utf-8").replace("chapter = restored.text", 'chapter = ""'))
    process = await shell(f"{PYTHON} -m {command}", tmp_path, PYTHONPATH=str(tmp_path))
    assert await process.ended(START_S) == 1, process.output
    assert "2 failed" in process.output
    assert "killed after the text 'This ', the text 'This ' is shown twice" in process.output


async def test_the_tests_of_the_guide_pass(tmp_path: Path) -> None:
    """The tests of the guide pass for the agents of the guide, in a plain pytest."""
    (tmp_path / "my_agents.py").write_text("\n\n".join(AGENTS.blocks("my_agents")), encoding="utf-8")
    (command,) = write_blocks("testing", tmp_path)
    process = await shell(f"{PYTHON} -m {command}", tmp_path, PYTHONPATH=str(tmp_path))
    assert await process.ended(START_S) == 0, process.output
    assert "4 passed" in process.output


async def test_an_agent_remembers_each_user(tmp_path: Path) -> None:
    """The agent of the guide remembers what a user said, for this user only, whichever worker answers."""
    (command,) = write_blocks("memory", tmp_path)
    async with serving(command, tmp_path) as process:
        url = url_of(process)
        for note in ("tea", "milk"):
            await ask(url, user(note), **{"X-User-Id": "ada"})
        assert await ask(url, user("?"), **{"X-User-Id": "ada"}) == "You told me 2 things before: tea, milk"
        assert await ask(url, user("?"), **{"X-User-Id": "bob"}) == "You told me 0 things before: "


@pytest.mark.parametrize(("typed", "told"), [("y", "I deleted a.tmp, b.tmp."), ("n", "I deleted nothing.")])
async def test_a_client_asks_its_user_for_approval(tmp_path: Path, typed: str, told: str) -> None:
    """The program of the guide asks, and the agent acts only after a yes."""
    (command,) = write_blocks("approval", tmp_path)
    program = tmp_path / "tidy.py"
    async with serving(command, tmp_path) as process:
        program.write_text(as_run_here(program.read_text(), url_of(process)))
        client = await shell(f"echo {typed} | {PYTHON} tidy.py", tmp_path)
        assert await client.ended(START_S) == 0, client.output
    assert client.output == f"delete 2 files? [y/n] {told}\n"


async def test_the_options_of_an_adapter_depend_on_the_run(tmp_path: Path) -> None:
    """The graph of the guide remembers a conversation by the header that names it."""
    (command,) = write_blocks("per_run", tmp_path)
    async with serving(command, tmp_path) as process:
        url = url_of(process)
        for count in (1, 3):
            told = await ask(url, user("hi"), **{"X-Conversation": "one"})
            assert told == f"This thread has {count} messages."
        assert await ask(url, user("hi"), **{"X-Conversation": "two"}) == "This thread has 1 messages."


async def test_the_built_in_agent_has_an_engine_of_its_user(tmp_path: Path) -> None:
    """The engine of the guide answers in the place of a model server."""
    (command,) = write_blocks("own_engine", tmp_path)
    async with serving(command, tmp_path) as process:
        assert texts(await answer(url_of(process), "m", user("hello you"))) == ["hello ", "you "]
    assert "Traceback" not in process.output


async def test_the_built_in_agent_has_tools_of_its_user(tmp_path: Path) -> None:
    """The model calls the function of the guide and gets its result as JSON."""
    (command,) = write_blocks("own_tools", tmp_path)
    async with run_model_server() as model:
        model.tool = "weather"
        model.go.set()
        settings = {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "none", "PATH": os.environ["PATH"]}
        async with asyncio.timeout(START_S), serving(command, tmp_path, **settings) as process:
            messages = await answer(url_of(process), "m", user("the weather in Oslo?"))
        described = {tool["function"]["name"]: tool["function"] for tool in model.bodies[0]["tools"]}
    ends = [(data["tool"], data["result"]) for name, data in messages if name == "tool_call_end"]
    assert ends == [("weather", '{"city":"Oslo","days":1,"sky":"sunny"}')]
    assert described["weather"]["description"] == "Return the weather of a city for a number of days."
    assert described["weather"]["parameters"]["required"] == ["city"]


async def test_people_approve_a_tool_of_the_built_in_agent(tmp_path: Path) -> None:
    """The tool of the guide runs after the request of the guide has approved it."""
    command, approve = write_blocks("needs_approval", tmp_path)
    async with run_model_server() as model:
        model.tool = "book_trip"
        model.go.set()
        settings = {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "none", "PATH": os.environ["PATH"]}
        async with asyncio.timeout(START_S), serving(command, tmp_path, **settings) as process:
            url = url_of(process)
            messages = await answer(url, "m", user("is the weather good for a trip?"))
            final = messages[-2][1]
            names = {"RUN": final["id"], "INTERRUPT": final["interrupts"][0]["id"]}
            approved = json.loads(
                await output(f"curl -s {as_run_here(approve, url).removeprefix('curl')}", tmp_path, **names)
            )
    assert "tool_call_start" not in [name for name, _ in messages]
    assert approved["choices"][0]["message"]["content"].endswith("It is booked a trip to Oslo.")
