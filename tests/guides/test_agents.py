"""The guide on agents: its agents are served as it says, and answer as it says."""

import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from tests.adapters.model_server import run_model_server
from tests.documents import FREE_PORT, START_S, Document, answer, as_run_here, serving, shell, terminate, url_of, user
from tests.helpers import texts
from tests.processes import Process

AGENTS = Document("deploy/guides/agents.md")
EXAMPLES = Document("deploy/examples/README.md")

# Tests that share a front end share its event loop too.
one_loop = pytest.mark.asyncio(loop_scope="module")


def write_agents(folder: Path) -> list[str]:
    """Write the module of the guide into a folder; return the names of its agents."""
    program = "\n\n".join(AGENTS.blocks("my_agents"))
    (folder / "my_agents.py").write_text(program, encoding="utf-8")
    return re.findall(r"(?m)^(?:async )?def (\w+)\(run: Run\)", program)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """Every agent of the guide, for the model of its own name."""
    folder = tmp_path_factory.mktemp("agents")
    every = ", ".join(f"{name}=my_agents:{name}" for name in write_agents(folder))
    async with serving("agentstream up", folder, AGENTSTREAM_AGENTS=every) as process:
        yield process


@one_loop
async def test_an_agent_streams_what_it_writes(agents: Process) -> None:
    """The first agent streams its text in pieces, and a plain function does too."""
    assert texts(await answer(url_of(agents), "greet", user("Ada"))) == ["Hello, ", "Ada!"]
    assert texts(await answer(url_of(agents), "count", user("go"))) == ["1 ", "2 ", "3 "]


@one_loop
async def test_an_agent_shows_its_tool(agents: Process) -> None:
    """The events of the tool come before the text, with the arguments, the result and a list of results."""
    messages = await answer(url_of(agents), "weather", user("Oslo?"))
    named = [(name, data) for name, data in messages if name]
    assert [name for name, _ in named] == ["tool_call_start", "tool_call_end", "tool_results"]
    assert json.loads(named[0][1]["arguments"]) == {"city": "Oslo"}
    assert named[1][1]["result"] == "sunny"
    assert texts(messages) == ["It is sunny in Oslo."]


@one_loop
async def test_an_agent_calls_the_tool_of_its_client(agents: Process) -> None:
    """The run ends with the call, and the next request with the result gets the answer."""
    async with openai.AsyncOpenAI(base_url=f"{url_of(agents)}/v1", api_key="none") as client:
        asked: list[Any] = [user("the weather?")]
        first = await client.chat.completions.create(model="ask_client", messages=asked)
        assert first.choices[0].finish_reason == "tool_calls"
        (call,) = first.choices[0].message.tool_calls or []
        asked += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        second = await client.chat.completions.create(model="ask_client", messages=asked)
        assert second.choices[0].message.content == "Your tool says: rain"


@one_loop
async def test_an_agent_streams_reasoning_and_reports_usage(agents: Process) -> None:
    """The reasoning is apart from the answer, and the usage is the agent's."""
    messages = await answer(url_of(agents), "think", user("?"))
    deltas = [data["choices"][0]["delta"] for name, data in messages[:-1] if name is None]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).startswith("The question is old.")
    assert texts(messages) == ["42"]
    assert messages[-2][1]["usage"]["total_tokens"] == 22


@one_loop
async def test_an_agent_that_fails_shows_its_reason(agents: Process) -> None:
    """The client gets the text of the exception and its code, and the next run is served."""
    messages = await answer(url_of(agents), "fail", user("?"))
    assert texts(messages) == ["Sorry, an error occurred: the database does not answer"]
    assert messages[-2][1]["agent_error"]["code"] == "agent_error"
    assert texts(await answer(url_of(agents), "greet", user("Ada")))


@one_loop
async def test_an_agent_cleans_up_after_a_cancel(agents: Process) -> None:
    """A client that disconnects cancels the agent, which runs its ``finally``."""
    body = {"model": "search", "stream": True, "messages": [user("go")]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url_of(agents)}/v1/chat/completions", json=body) as response,
    ):
        await response.content.readuntil(b"page 1")
    await agents.until("the search is closed")


async def test_a_change_is_served_at_once(tmp_path: Path) -> None:
    """The command names the changed file, and the next answer comes from the new code."""
    write_agents(tmp_path)
    (command,) = AGENTS.blocks("reload")
    async with serving(command, tmp_path) as process:
        assert texts(await answer(url_of(process), "agentstream", user("Ada"))) == ["Hello, ", "Ada!"]
        module = tmp_path / "my_agents.py"
        module.write_text(module.read_text(encoding="utf-8").replace('"Hello, "', '"Good day, "'), encoding="utf-8")
        await process.until(r"changed +my_agents\.py", START_S)
        await process.until(r"(?s)(takes jobs of queue.*){4}", START_S)
        assert texts(await answer(url_of(process), "agentstream", user("Ada"))) == ["Good day, ", "Ada!"]


@one_loop
async def test_several_agents_are_served(tmp_path: Path) -> None:
    """Each model has its agent, all are listed, and another model is refused."""
    write_agents(tmp_path)
    (command,) = AGENTS.blocks("several")
    async with serving(command, tmp_path) as process, aiohttp.ClientSession() as session:
        url = url_of(process)
        assert texts(await answer(url, "greet", user("Ada"))) == ["Hello, ", "Ada!"]
        assert texts(await answer(url, "demo", user("count to 2"))) == ["1", " 2"]
        async with session.get(f"{url}/v1/models") as response:
            assert {model["id"] for model in (await response.json())["data"]} == {"greet", "search", "demo"}
        async with session.post(f"{url}/v1/chat/completions", json={"model": "m", "messages": [user("?")]}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


@one_loop
async def test_pools_of_workers_are_served(broker_url: str, tmp_path: Path) -> None:
    """The commands start a front end and a worker for each queue, and both queues answer."""
    write_agents(tmp_path)
    (commands,) = AGENTS.blocks("pools")
    commands = commands.replace("redis://127.0.0.1:6379/0", broker_url)
    process = await shell(as_run_here(commands), tmp_path, **FREE_PORT)
    try:
        url = (await process.until(r"serving on (http://[^\s\"]+)", START_S))[1]
        for queue in ("default", "slow"):
            await process.until(f"takes jobs of queue '{queue}'", START_S)
        assert texts(await answer(url, "greet", user("Ada"))) == ["Hello, ", "Ada!"]
        body = {"model": "search", "stream": True, "messages": [user("go")]}
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=body) as stream:
            await stream.content.readuntil(b"page 1")
    finally:
        await terminate(process)


@one_loop
async def test_an_agent_of_a_framework_is_served(tmp_path: Path) -> None:
    """The agent of the guide answers with its tool's result, through a model server."""
    program, command = AGENTS.blocks("framework")
    (tmp_path / "weather_agent.py").write_text(program, encoding="utf-8")
    async with run_model_server() as model:
        model.go.set()
        settings = {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "none"}
        async with serving(command, tmp_path, **settings) as process:
            messages = await answer(url_of(process), "m", user("the weather in Oslo?"))
    assert "It is sunny in Oslo." in "".join(texts(messages))


@one_loop
async def test_a_program_is_served(tmp_path: Path) -> None:
    """The shell script of the guide answers."""
    script, program, command = AGENTS.blocks("command")
    (tmp_path / "hello.sh").write_text(script, encoding="utf-8")
    (tmp_path / "shell_agent.py").write_text(program, encoding="utf-8")
    async with serving(command, tmp_path) as process:
        assert texts(await answer(url_of(process), "m", user("?"))) == ["Hello from ", "a shell script."]


@one_loop
async def test_the_built_in_agent_asks_a_model(tmp_path: Path) -> None:
    """The command of the guide serves the built-in agent with a model server, and requests the model of the setting."""
    (command,) = AGENTS.blocks("model")
    async with run_model_server() as model:
        model.go.set()
        command = command.replace("http://127.0.0.1:11434", model.url)
        async with serving(command, tmp_path) as process:
            assert texts(await answer(url_of(process), "any", user("hello")))
        assert model.bodies[0]["model"] == "llama3.1"


@one_loop
async def test_the_built_in_agent_has_tools_of_mcp_servers() -> None:
    """The guide shows the file of the examples, and with its command the model calls the tool of that server."""
    file, command = AGENTS.blocks("mcp")
    assert json.loads(file) == json.loads((EXAMPLES.folder / "mcp.json").read_text(encoding="utf-8"))
    await assert_the_sky_is_asked(command)


async def assert_the_sky_is_asked(command: str) -> None:
    """Run a command in the folder of the examples; the model calls the tool of their MCP server."""
    async with run_model_server() as model:
        model.tool = "sky__weather"
        model.go.set()
        command = command.replace("http://127.0.0.1:11434", model.url)
        settings = {"OPENAI_BASE_URL": f"{model.url}/v1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        async with serving(command, EXAMPLES.folder, **settings) as process:
            messages = await answer(url_of(process), "m", user("the weather in Oslo?"))
    assert ("sky__weather", "sunny in Oslo") in [
        (data["tool"], data.get("result")) for name, data in messages if name == "tool_call_end"
    ]


@one_loop
async def test_the_examples_are_served() -> None:
    """The commands of the examples serve an agent of a framework, and the built-in agent with a tool."""
    (command,) = EXAMPLES.blocks("example")
    async with run_model_server() as model:
        model.go.set()
        settings = {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "none"}
        async with serving(command, EXAMPLES.folder, **settings) as process:
            assert "It is sunny in Oslo." in "".join(texts(await answer(url_of(process), "m", user("weather?"))))
    await assert_the_sky_is_asked(EXAMPLES.blocks("mcp_example")[0])


def test_every_example_is_in_the_table() -> None:
    """The table of examples has every agent of the folder, and names no other."""
    agents = {path.stem for path in EXAMPLES.folder.glob("*_agent.py")}
    assert set(re.findall(r"(?m)^\| `(\w+):agent`", EXAMPLES.text)) == agents
