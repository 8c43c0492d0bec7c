"""The folder of the private broker: its place, who can enter it, and how a killed process's folder is removed."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from redis.asyncio import Redis

from agentstream.errors import StartupError
from agentstream.processes import private_folder
from agentstream.processes.broker import EmbeddedBroker, ServerChoice, usable_servers
from agentstream.processes.private_folder import PREFIX, PrivateFolder
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.new_link import new_link
from tests.helpers import TIMEOUT_S

SERVERS = [choice for choice in usable_servers() if choice.kind == "server"]
LONGEST = 107 if sys.platform == "linux" else 103  # bytes of the path of a socket (unix(7))
NOBODY = 65534

each_server = pytest.mark.parametrize(
    "choice", SERVERS, ids=[choice.executable.name for choice in SERVERS if choice.executable]
)
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short path, which is the usual place for temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def use(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in a place, and use it for temporary files."""
    folder = place / name
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def connect(url: str) -> None:
    """Connect to a broker with the connection of the service; raises BrokerUnavailable."""
    link = new_link(Endpoint(url), name="test")
    link.open()
    await link.wait_ready(TIMEOUT_S)
    await link.close()


async def answers(url: str) -> bool:
    """Return whether a broker answers redis-py and the connections of the service, also with uvloop."""
    async with Redis.from_url(url) as client:
        answered = await client.ping()
    await connect(url)
    await asyncio.to_thread(uvloop.run, connect(url))
    return bool(answered)


async def connect_as(user: int, path: str) -> str:
    """Connect to a socket in a process of a user, and return its error."""
    program = "import os, socket, sys; os.setuid(int(sys.argv[1])); socket.socket(socket.AF_UNIX).connect(sys.argv[2])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(user), path), stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    return error.decode()


@as_root
@each_server
async def test_another_user_cannot_connect(choice: ServerChoice) -> None:
    """Another user of the machine can neither see nor use the socket, which has no password."""
    async with EmbeddedBroker(choice) as embedded:
        path = embedded.url.removeprefix("unix://")
        assert await connect_as(os.getuid(), path) == ""
        assert "PermissionError" in await connect_as(NOBODY, path)


def test_only_this_user_can_enter_it(place: Path) -> None:
    """Only the user who made the folder can enter it."""
    folder = PrivateFolder.create()
    assert folder.path.parent == place
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    assert list(place.iterdir()) == []


@each_server
async def test_a_path_of_the_greatest_length_is_used(
    choice: ServerChoice, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest possible path of a socket works with the server and all clients, and a longer one is not used."""
    rest = f"/{PREFIX}12345678/redis.sock"
    longest = use(place, "x" * (LONGEST - len(f"{place}/{rest}")), monkeypatch)
    async with EmbeddedBroker(choice) as embedded:
        assert len(embedded.url) == len("unix://") + LONGEST
        assert await answers(embedded.url)
    too_long = use(place, f"{longest.name}x", monkeypatch)
    async with EmbeddedBroker(choice) as embedded:
        assert str(too_long) not in embedded.url
        assert embedded.url.startswith(f"unix:///tmp/{PREFIX}")
        assert await answers(embedded.url)
    assert list(too_long.iterdir()) == []


@each_server
async def test_a_place_with_any_characters_is_used(
    choice: ServerChoice, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket is reachable even if its path has special characters of URLs or of the server's configuration."""
    folder = use(place, "a \"b' \\n%41@#?é", monkeypatch)
    async with EmbeddedBroker(choice) as embedded:
        assert len(list(folder.glob(f"{PREFIX}*/redis.sock"))) == 1
        assert await answers(embedded.url)


async def test_without_a_place_for_a_socket_the_broker_listens_on_a_port(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no place has a path that is short enough, the broker uses a port and a password, and its warning says why."""
    folder = use(place, "x" * LONGEST, monkeypatch)
    monkeypatch.setattr(private_folder, "SHORT_PLACE", str(place / "missing"))
    async with EmbeddedBroker(SERVERS[0]) as embedded:
        assert embedded.url.startswith("redis://:")
        assert embedded.warning is not None
        assert str(folder) in embedded.warning
        assert "path too long" in embedded.warning
        assert await answers(embedded.url)
    assert list(folder.iterdir()) == []


async def test_without_a_place_for_files_the_error_says_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no folder for temporary files, the error names TMPDIR."""
    monkeypatch.setattr(tempfile, "tempdir", str(place / "missing"))
    monkeypatch.setattr(private_folder, "SHORT_PLACE", str(place / "missing, too"))
    with pytest.raises(StartupError, match=r"No such file or directory; set TMPDIR"):
        await EmbeddedBroker(SERVERS[0]).start()


@pytest.mark.usefixtures("place")
def test_the_folder_of_a_killed_process_is_removed() -> None:
    """Creating a folder removes the folders that no process holds, and keeps those that a process holds."""
    program = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from agentstream.processes.private_folder import PrivateFolder
print(PrivateFolder.create().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    held = PrivateFolder.create()
    killed = subprocess.run(
        [sys.executable, "-c", program, tempfile.gettempdir()],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    new = PrivateFolder.create()
    assert not left.exists()
    assert held.path.is_dir()
    new.remove()
    held.remove()


@pytest.mark.usefixtures("place")
def test_the_folder_is_kept_while_a_child_holds_it() -> None:
    """A broker that outlives its parent keeps its folder."""
    folder = PrivateFolder.create()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[folder.lock]) as child:
        os.close(folder.lock)
        PrivateFolder.create().remove()
        assert folder.path.is_dir()
        child.kill()
    PrivateFolder.create().remove()
    assert not folder.path.exists()


@as_root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_the_folders_of_others_are_left_alone(kind: str, place: Path) -> None:
    """A folder of another user, and a link to any folder, stay as they are."""
    target = place / (f"{PREFIX}other" if kind == "folder" else "target")
    target.mkdir()
    (target / "lock").touch()
    if kind == "folder":
        shutil.chown(target, NOBODY)
    else:
        (place / f"{PREFIX}link").symlink_to(target)
    PrivateFolder.create().remove()
    assert (target / "lock").exists()
