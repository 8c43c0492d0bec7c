"""Programs as agents: the protocol, and the end of the processes."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentstream.adapters import command
from agentstream.adapters.command import MAX_LOG_LINES, CommandAgent
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError, InvalidAgentOutput
from agentstream.protocol.openai import ChatCompletionRequest
from tests.adapters.conftest import StreamingClient, user
from tests.helpers import TIMEOUT_S, RecordingSink
from tests.processes import Processes

READS_REQUEST = """
import json, sys
got = json.loads(sys.stdin.read())
request = got.pop("request")
got |= {"made_up": request["made_up"], "characters": len(request["messages"][0]["content"])}
print(json.dumps({"type": "got", **got}))
print(json.dumps({"type": "result"}))
"""


def run_with(sink: RecordingSink, text: str = "hello") -> Run:
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [user(text)], "made_up": 1})
    return Run("chatcmpl-1", request, sink)


async def play(script: str, sink: RecordingSink | None = None, text: str = "hello") -> AgentResult:
    """Run a shell script as an agent."""
    async with asyncio.timeout(TIMEOUT_S):
        return await CommandAgent("sh", "-c", script)(run_with(sink or RecordingSink(), text))


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def until(true: Callable[[], bool]) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(TIMEOUT_S):
        while not true():  # noqa: ASYNC110 -- another process changes it
            await asyncio.sleep(0.01)


async def pid_in(path: Path) -> int:
    """Return the process id that a program writes to a file."""

    def written() -> str:
        return path.read_text() if path.exists() else ""

    await until(lambda: written().endswith("\n"))
    return int(written())


async def test_lines_become_text_events_and_a_result() -> None:
    """Text lines are written, event lines are emitted with their fields, and the result has the reported values."""
    sink = RecordingSink()
    result = await play(
        """echo '{"type":"text","text":"a"}'; echo; echo '{"type":"tool_call_start","tool":"t","arguments":{"x":1}}'
        echo '{"type":"tool_call_end","tool":"t","success":false,"latency":0.5,"result":"r"}'
        printf '{"type":"result","finish_reason":"length","usage":{"prompt_tokens":1,"total_tokens":1}}'""",
        sink,
    )
    assert sink.facts == [
        ("text", "a"),
        ("tool_call_start", {"tool": "t", "arguments": {"x": 1}}),
        ("tool_call_end", {"tool": "t", "success": False, "latency": 0.5, "result": "r"}),
    ]
    assert result.finish_reason == "length"
    assert result.metadata == {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}
    (tool,) = result.tool_results
    assert (tool.tool_name, tool.success, tool.latency_seconds, tool.content) == ("t", False, 0.5, "r")


async def test_the_program_reads_the_request() -> None:
    """Standard input is one line with the version, the run id, the caller and the request, and is then closed."""
    sink = RecordingSink()
    agent = CommandAgent(sys.executable, "-c", READS_REQUEST)
    await agent(run_with(sink, "\N{SNOWMAN}" * 300_000))
    caller = {"key_hash": "", "request_id": "", "headers": {}}
    job: dict[str, Any] = {"version": 1, "run_id": "chatcmpl-1", "caller": caller, "made_up": 1, "characters": 300_000}
    job["restored"] = None
    assert sink.facts == [("got", job)]


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ("exit 0", AgentError, "ended without a result line"),
        ("echo low memory >&2; echo no disk >&2; exit 3", AgentError, "exited with code 3: no disk"),
        ("kill -9 $$", AgentError, "ended by SIGKILL"),
        ("""echo '{"type":"result"}'; exit 4""", AgentError, "exited with code 4"),
        ("""echo '{"type":"error","message":"no such model"}'""", AgentError, "no such model"),
        ("""echo '{"type":"result"}'; echo '{"type":"text","text":"x"}'""", InvalidAgentOutput, "after its result"),
        ("echo hello", InvalidAgentOutput, 'not a JSON object with a "type": hello'),
        ("echo '[1]'", InvalidAgentOutput, "not a JSON object"),
        ("""echo '{"text":"x"}'""", InvalidAgentOutput, 'not a JSON object with a "type"'),
        ("""echo '{"type":"run_completed"}'""", InvalidAgentOutput, "belongs to agentstream"),
        ("""echo '{"type":"text","text":7}'""", InvalidAgentOutput, "takes a str"),
        ("""echo '{"type":"result","usage":{"total_tokens":-1}}'""", InvalidAgentOutput, "result is invalid"),
        ("yes | tr -d '\\n'", InvalidAgentOutput, "a line of more than 1048576 bytes"),
    ],
)
async def test_a_program_that_fails_ends_its_run(script: str, error: type[AgentError], reason: str) -> None:
    """A missing result, an exit code, a signal, an error line or a violated protocol ends the run with the reason."""
    with pytest.raises(error, match=reason):
        await play(script)


async def test_a_missing_program_is_refused_at_once() -> None:
    """The agent of a missing program cannot be created, so that no worker starts with it."""
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        CommandAgent("no-such-program")


async def test_standard_error_is_logged_within_limits(caplog: pytest.LogCaptureFixture) -> None:
    """Lines of standard error are logged up to a limit, and of the other lines only the number is logged."""
    caplog.set_level("INFO", command.__name__)
    await play(f"""i=0; while [ $i -lt {MAX_LOG_LINES + 5} ]; do echo line $i >&2; i=$((i+1)); done
        echo '{{"type":"result","content":"x"}}'""")
    assert len(caplog.records) == MAX_LOG_LINES + 1
    assert caplog.messages[0] == "line 0"
    assert "5 more lines" in caplog.messages[-1]


async def test_a_cancelled_run_ends_the_program_and_its_children(tmp_path: Path) -> None:
    """After a cancel, a program that ignores SIGTERM and its child process get SIGKILL."""
    script = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/program; wait; sleep 600"
    agent = CommandAgent("sh", "-c", script)
    task = asyncio.create_task(agent(run_with(RecordingSink())))
    pids = [await pid_in(tmp_path / name) for name in ("child", "program")]
    assert all(map(is_running, pids))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(map(is_running, pids)))


async def test_a_remaining_child_does_not_block_the_run(tmp_path: Path) -> None:
    """If a program ends while its child process keeps the output open, the run ends and the child is killed."""
    began = time.monotonic()
    await play(f"""sleep 600 & echo $! > {tmp_path}/child; echo '{{"type":"result","content":"x"}}'""")
    child = await pid_in(tmp_path / "child")
    assert time.monotonic() - began < TIMEOUT_S
    await until(lambda: not is_running(child))


async def test_the_example_streams_through_the_openai_client(processes: Processes) -> None:
    """The client receives the events, the words and the usage of a JavaScript program."""
    url, _ = await asyncio.gather(processes.frontend(), processes.worker("command_agent:agent"))
    got = [item async for item in StreamingClient(url).stream(user("three little words"))]
    kinds = [kind for kind, _ in got]
    assert kinds == ["tool_call_start", "tool_call_end", "tool_results", *["text"] * 5, "usage"]
    events: dict[str, Any] = dict(got)
    assert orjson.loads(events["tool_call_start"]["arguments"]) == {"text": "three little words"}
    assert "".join(data for kind, data in got if kind == "text") == "You wrote 3 words . "
    assert events["usage"].total_tokens == 8


@pytest.fixture
def endless(tmp_path: Path, processes: Processes) -> Path:
    """A folder with an agent whose program writes its process id to a file and never ends."""
    script = f"""echo '{{"type":"text","text":"x"}}'; echo $$ > {tmp_path}/pid; exec sleep 600"""
    source = f"from agentstream.adapters.command import CommandAgent\nagent = CommandAgent('sh', '-c', {script!r})\n"
    (tmp_path / "endless.py").write_text(source)
    processes.cwd = tmp_path
    return tmp_path


async def test_a_disconnect_of_the_client_ends_the_program(processes: Processes, endless: Path) -> None:
    """When the client of a run disconnects, the program ends."""
    url, _ = await asyncio.gather(processes.frontend(), processes.worker("endless:agent"))
    async with aclosing(StreamingClient(url).stream(user("go"))) as stream:
        async for _ in stream:
            break
        pid = await pid_in(endless / "pid")
        assert is_running(pid)
    await until(lambda: not is_running(pid))


async def test_the_time_limit_ends_the_program(processes: Processes, endless: Path) -> None:
    """The run's time limit ends the program, and the run fails with the code run_timeout."""
    limit = {"AGENTSTREAM_RUN_TIMEOUT_S": "1"}
    url, _ = await asyncio.gather(processes.frontend(**limit), processes.worker("endless:agent", **limit))
    got = [item async for item in StreamingClient(url).stream(user("go"))]
    assert got[-1][1]["code"] == "run_timeout"
    pid = await pid_in(endless / "pid")
    await until(lambda: not is_running(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_a_killed_worker_leaves_no_program(processes: Processes, endless: Path) -> None:
    """When a worker gets SIGKILL, the kernel ends its programs."""
    url, worker = await asyncio.gather(processes.frontend(), processes.worker("endless:agent"))
    async with aclosing(StreamingClient(url).stream(user("go"))) as stream:
        async for _ in stream:
            break
        pid = await pid_in(endless / "pid")
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: not is_running(pid))
