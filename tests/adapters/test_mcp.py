"""The tools of MCP servers: real servers of the official package, over pipes and HTTP."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentstream.errors import StartupError
from agentstream.telemetry.masking import mask
from agentstream.tools import mcp
from agentstream.tools.calculator import Calculator
from agentstream.tools.mcp import McpServerConfig, McpServers, read_servers
from agentstream.tools.toolbox import Toolbox, ToolOutcome
from tests.adapters.conftest import StreamingClient, user
from tests.adapters.model_server import ModelServer
from tests.adapters.test_command import is_running, until
from tests.helpers import TIMEOUT_S
from tests.ports import free_port
from tests.processes import Processes

SERVER = Path(__file__).with_name("mcp_servers.py")
ON_PIPES = {"command": sys.executable, "args": [str(SERVER)]}


def write_config(path: Path, **servers: dict[str, Any]) -> str:
    """Write a file that lists the servers; return its path."""
    path.write_text(json.dumps({"mcpServers": servers}))
    return str(path)


@asynccontextmanager
async def opened(timeout_s: float = TIMEOUT_S, /, **servers: dict[str, Any]) -> AsyncIterator[Toolbox]:
    """Connect to the servers; yield a toolbox with their tools."""
    connected = McpServers({name: McpServerConfig.model_validate(server) for name, server in servers.items()})
    try:
        await connected.start()
        yield Toolbox([], timeout_s, connected.tools)
    finally:
        async with asyncio.timeout(TIMEOUT_S):
            await connected.close()


async def eventually(toolbox: Toolbox, name: str, arguments: str = "{}") -> ToolOutcome:
    """Call a tool until it succeeds; return that outcome."""
    async with asyncio.timeout(TIMEOUT_S):
        while not (outcome := await toolbox.call(name, arguments)).success:  # noqa: ASYNC110 -- another process starts
            await asyncio.sleep(0.05)
    return outcome


@asynccontextmanager
async def by_http(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server on a port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVER), str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_tools_of_a_process_are_offered_and_called() -> None:
    """Tool names start with the server's name, schemas are passed on, and a failed call is a failed outcome."""
    async with opened(sums=ON_PIPES) as toolbox:
        schemas = {schema.name: schema for schema in toolbox.schemas()}
        assert {"sums__add", "sums__get_pid", "sums__fail"} <= set(schemas)
        assert schemas["sums__add"].description == "Add two numbers."
        assert schemas["sums__add"].parameters["properties"]["a"]["type"] == "integer"
        added = await toolbox.call("sums__add", '{"a": 2, "b": 3}')
        assert (added.content, added.success) == ("5", True)
        failed = await toolbox.call("sums__fail", "{}")
        assert not failed.success
        assert "out of order" in failed.content
        assert not (await toolbox.call("sums__add", '{"a": 2}')).success


async def test_annotations_say_which_calls_may_be_repeated() -> None:
    """A call of an MCP tool may be repeated if its annotations say that it is read-only or idempotent."""
    async with opened(sums=ON_PIPES) as toolbox:
        repeatable = {name for name in toolbox.tools() if toolbox.is_repeatable(name)}
        assert repeatable == {"sums__add", "sums__get_pid"}
        assert toolbox.tools()["sums__add"].read_only is True  # type: ignore[attr-defined]


async def test_annotations_say_which_calls_are_destructive() -> None:
    """An MCP tool counts as destructive unless its annotations say that it is read-only or not destructive."""
    async with opened(sums=ON_PIPES) as toolbox:
        destructive = {name for name, tool in toolbox.tools().items() if getattr(tool, "destructive", False)}
        assert destructive == {"sums__get_pid", "sums__fail", "sums__sleep", "sums__die"}


async def test_two_tools_never_share_a_name() -> None:
    """If two tools get the same name for the model, the second one gets a number, and both can be called."""
    async with opened(**{"a b": ON_PIPES, "a.b": ON_PIPES}) as toolbox:
        names = [schema.name for schema in toolbox.schemas()]
        assert len(names) == len(set(names)) == 12
        pids = [(await toolbox.call(name, "{}")).content for name in ("a_b__get_pid", "a_b__get_pid_2")]
        assert len(set(pids)) == 2


async def test_a_toolboxs_own_tools_win() -> None:
    """A server's tool cannot replace one of the agent's own tools."""
    own = Calculator()
    other = Calculator()
    toolbox = Toolbox([own], TIMEOUT_S, lambda: [other])
    assert toolbox.tools() == {"calculator": own}
    assert len(toolbox.schemas()) == 1


async def test_a_process_gets_only_a_part_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's process gets the variables of its entry, but not the worker's secrets."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with opened(sums={**ON_PIPES, "env": {"TOKEN": "t"}}) as toolbox:
        seen = (await toolbox.call("sums__environment", "{}")).content.splitlines()
    assert "TOKEN=t" in seen
    assert "sk-secret" not in str(seen)


async def test_a_call_that_times_out_does_not_end_the_session() -> None:
    """A slow call ends at the time limit, and the session answers the next call."""
    async with opened(1, sums=ON_PIPES) as toolbox:
        slow = await toolbox.call("sums__sleep", '{"seconds": 60}')
        assert (slow.success, "longer than 1 s" in slow.content) == (False, True)
        assert (await toolbox.call("sums__add", '{"a": 1, "b": 1}')).content == "2"


async def test_a_process_that_ends_is_started_again() -> None:
    """If a server's process ends, the current call fails with the reason, and a new process answers later calls."""
    async with opened(sums=ON_PIPES) as toolbox:
        before = (await toolbox.call("sums__get_pid", "{}")).content
        died = await toolbox.call("sums__die", "{}")
        assert not died.success
        assert "MCP server 'sums'" in died.content
        after = (await eventually(toolbox, "sums__get_pid")).content
        assert after != before
        os.kill(int(after), signal.SIGKILL)  # while no call is running
        await until(lambda: not is_running(int(after)))
        assert (await eventually(toolbox, "sums__get_pid")).content not in {before, after}


async def test_a_restarted_http_server_is_connected_again() -> None:
    """Over streamable HTTP calls fail while the server is down, and succeed after it was restarted."""
    port = free_port()
    remote = {"url": f"http://127.0.0.1:{port}/mcp", "headers": {"Authorization": "Bearer x"}}
    async with by_http(port), opened(far=remote) as toolbox:
        assert (await toolbox.call("far__add", '{"a": 2, "b": 2}')).content == "4"
        pid = (await toolbox.call("far__get_pid", "{}")).content
        os.kill(int(pid), signal.SIGKILL)
        await until(lambda: not is_running(int(pid)))
        away = await toolbox.call("far__add", '{"a": 2, "b": 2}')
        assert (away.success, "MCP server 'far'" in away.content) == (False, True)
        async with by_http(port):
            assert (await eventually(toolbox, "far__get_pid")).content != pid


async def test_a_missing_server_does_not_delay_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start returns within its time limit even if no server answers, and tools appear when their server answers."""
    monkeypatch.setattr(mcp, "CONNECT_TIMEOUT_S", 0.5)
    port = free_port()
    silent = {"command": "sleep", "args": ["600"]}
    async with asyncio.timeout(TIMEOUT_S), opened(far={"url": f"http://127.0.0.1:{port}/mcp"}, mute=silent) as toolbox:
        assert toolbox.schemas() == []
        monkeypatch.setattr(mcp, "CONNECT_TIMEOUT_S", TIMEOUT_S)
        async with by_http(port):
            assert (await eventually(toolbox, "far__add", '{"a": 1, "b": 2}')).content == "3"


async def test_a_close_does_not_wait_for_servers_that_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    """A close while servers do not answer ends the attempts to connect, and the programs, without a warning."""

    async def read_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()

    async with await asyncio.start_server(read_only, "127.0.0.1", 0) as silent:
        far = McpServerConfig(url=f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/mcp")
        connecting = McpServers({"far": far, "mute": McpServerConfig(command="sleep", args=["600"])})
        start = asyncio.create_task(connecting.start())
        await asyncio.sleep(0.5)
        assert not start.done()
        start.cancel()
        await connecting.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "expected"),
        ("[]", "expected"),
        ('{"mcpServers": {"x": {}}}', "either a command or a url"),
        ('{"mcpServers": {"x": {"command": "sh", "url": "http://x"}}}', "either a command or a url"),
        ('{"mcpServers": {"x": {"url": "http://x", "type": "sse"}}}', "streamable HTTP"),
        ('{"mcpServers": {"x": {"url": "host:80/mcp"}}}', "must begin with http:// or https://"),
        (
            '{"mcpServers": {"x": {"url": "http://x", "headers": {"K": "\u201csecret"}}}}',
            "headers.K.*character 1",
        ),
        ('{"mcpServers": {"x": {"command": "no-such-program"}}}', "no program 'no-such-program'"),
        ('{"mcpServers": {"x": {"command": "sh", "env": {"A": "${NOT_SET_HERE}"}}}}', "NOT_SET_HERE is not set"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, content: str, reason: str) -> None:
    """A wrong file of servers raises StartupError with the path and the reason."""
    path = tmp_path / "mcp.json"
    path.write_text(content)
    with pytest.raises(StartupError, match=reason) as refusal:
        read_servers(str(path))
    assert str(path) in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_the_secrets_of_servers_are_masked(tmp_path: Path) -> None:
    """The headers, the secret variables, and the keys in the address of a server are masked in every text."""
    remote = {
        "url": "https://me:hunter2hunter2@x/mcp/s/0123456789abcdefgh?api_key=url-key-123456789",
        "headers": {"Authorization": "Bearer t0ken-123456 \n", "X-Key": "header-key-123"},
    }
    local = {"command": "sh", "env": {"A_TOKEN": "env-token-123", "MODE": "ordinary"}}
    read_servers(write_config(tmp_path / "mcp.json", far=remote, near=local))
    secrets = "t0ken-123456 header-key-123 env-token-123 hunter2hunter2 0123456789abcdefgh url-key-123456789"
    assert mask(f"{secrets} ordinary") == "*** *** *** *** *** *** ordinary"


def test_a_wrong_proxy_is_refused_if_a_server_is_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable that the client cannot use is refused by name, unless all servers are child processes."""
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    read_servers(write_config(tmp_path / "local.json", near={"command": "sh"}))
    path = write_config(tmp_path / "mcp.json", far={"url": "http://x/mcp"})
    with pytest.raises(StartupError, match=r"ALL_PROXY='socks://127\.0\.0\.1:9'"):
        read_servers(path)


def test_variables_are_replaced_and_disabled_servers_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``${NAME}`` is replaced by an environment variable, and disabled servers and unknown keys are ignored."""
    monkeypatch.setenv("A_TOKEN", "t0ken")
    remote = {"url": "https://x/mcp", "headers": {"Authorization": "Bearer ${A_TOKEN}"}, "autoApprove": []}
    path = write_config(tmp_path / "mcp.json", far=remote, off={"command": "no-such-program", "disabled": True})
    servers = read_servers(path)
    assert list(servers) == ["far"]
    assert servers["far"].headers == {"Authorization": "Bearer t0ken"}


def example_settings(model: ModelServer) -> dict[str, str]:
    """Return the settings of the examples' README, with this interpreter as `python`."""
    return {
        "AGENTSTREAM_MCP_SERVERS": "mcp.json",
        "OPENAI_BASE_URL": f"{model.url}/v1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


async def test_the_built_in_agent_uses_the_example(processes: Processes, model: ModelServer) -> None:
    """The model calls the example server's tool, and the openai client receives the result and the answer."""
    model.tool = "sky__weather"
    model.go.set()
    url, _ = await asyncio.gather(processes.frontend(), processes.worker(None, **example_settings(model)))
    got = [item async for item in StreamingClient(url).stream(user("the weather in Oslo?"))]
    offered = {tool["function"]["name"]: tool["function"] for tool in model.bodies[0]["tools"]}
    assert offered["sky__weather"]["description"] == "Return the weather of a city."
    ended = dict(got)["tool_call_end"]
    assert (ended["tool"], ended["success"], ended["result"]) == ("sky__weather", True, "sunny in Oslo")
    assert "".join(data for kind, data in got if kind == "text").endswith("It is sunny in Oslo.")


async def test_another_agent_with_mcp_servers_causes_a_warning(processes: Processes) -> None:
    """A worker warns if MCP servers are set, but its agent is not the built-in one."""
    worker = await processes.worker("command_agent:agent", AGENTSTREAM_MCP_SERVERS="mcp.json")
    assert "AGENTSTREAM_MCP_SERVERS is for the built-in agent" in worker.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_a_worker_that_ends_leaves_no_server(
    processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    """When a worker stops or is killed, the processes of its MCP servers end too."""
    script = f"echo $$ > {tmp_path}/pid; exec {sys.executable} {SERVER}"
    path = write_config(tmp_path / "mcp.json", sums={"command": "sh", "args": ["-c", script]})
    worker = await processes.worker(None, AGENTSTREAM_MCP_SERVERS=path)
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    worker.send_signal(number)
    await worker.ended()
    await until(lambda: not is_running(pid))
