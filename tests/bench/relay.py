"""Baseline ``relay``: the same number of processes sends the same commands to the broker over blocking sockets.

The front enqueues the requests of a client and forwards the published messages. The agent appends tokens, or claims a
job, begins it and appends an event. The broker does the same work as for the service. The other processes do nothing
else: no HTTP, no checks, no event loop. So the difference from the service is the cost of our own code.
"""

import os
import socket
import sys
import time
from typing import Any, Final

import hiredis

from agentstream.protocol.broker_url import parse
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.handshake import login_steps
from agentstream.store.connection.wire import pack
from agentstream.store.scripts import SCRIPTS
from agentstream.stream import sse
from tests.bench.floor import chunk
from tests.bench.machine import commands, reply
from tests.bench.tokens import TICK_S, Load, stamp

KEYS: Final = Keys()
QUEUE: Final = "bench-relay"
JOBS: Final = KEYS.jobs(QUEUE)
TOKENS: Final = "tokens"  # the id of the run whose tokens are forwarded
TTL_S: Final = 600
READ_BYTES: Final = 1 << 16
OPENING: Final = chunk("chatcmpl-", 0, '{"role":"assistant"}')
EVENT: Final = sse.frame(b"{}", event="agent_turn_start")
END: Final = b"0\r\n\r\n"


class Broker:
    """A connection to the broker, one command at a time."""

    def __init__(self, url: str) -> None:
        """Connect."""
        self._socket = _connect(url)
        self._reader = hiredis.Reader()
        for step in login_steps(Endpoint(url), "bench-relay"):
            self.ask(*step.command)
        for script in SCRIPTS.values():
            self.ask("SCRIPT", "LOAD", script.source)

    def send(self, *commands: tuple[bytes | str | int, ...]) -> None:
        """Send commands in one write."""
        self._socket.sendall(b"".join(map(pack, commands)))

    def receive(self) -> Any:
        """Return the next reply or push."""
        while (answer := self._reader.gets()) is False:
            data = self._socket.recv(READ_BYTES)
            assert data, "the broker closed the connection"
            self._reader.feed(data)
        return answer

    def ask(self, *command: bytes | str | int) -> Any:
        """Send a command and return its reply."""
        self.send(command)
        return self.receive()

    def begin(self, run_id: str, entry_id: bytes | str) -> None:
        """Begin a run."""
        keys = [KEYS.run(run_id), KEYS.events(run_id)]
        began = self.ask(*script("begin", keys, entry_id, "bench", TTL_S, run_id))
        assert isinstance(began, list), began

    def append(self, run_id: str, seq: int, message: bytes) -> None:
        """Append a batch to the replay log of a run and publish it."""
        stored = self.ask(*script("append", [KEYS.events(run_id)], f"1-{seq}", message))
        assert stored == 1, stored

    def published(self) -> bytes:
        """Return the payload of the next message on a subscribed channel."""
        while True:
            answer = self.receive()
            if isinstance(answer, list) and answer[0] == b"message":
                return bytes(answer[2])


def script(name: str, keys: list[str], *args: bytes | str | int) -> tuple[bytes | str | int, ...]:
    """Return the command that calls a script of the service."""
    return ("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args)


def _connect(url: str) -> socket.socket:
    """Return a connection to the broker's socket or port."""
    broker = parse(url)
    if not broker.path:
        return _set_nodelay(socket.create_connection(broker.addresses[0]))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(broker.path)
    return connection


def _set_nodelay(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def front(url: str) -> None:
    """Serve one client at a time, until killed: forward tokens, or enqueue a job and return its event."""
    broker = Broker(url)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        client = _set_nodelay(listener.accept()[0])
        while request := client.recv(READ_BYTES):
            if b'"tokens"' in request:
                broker.send(("SUBSCRIBE", KEYS.events(TOKENS)))
                client.sendall(OPENING)
                while True:
                    client.sendall(broker.published())
            run_id = new_run_id()
            broker.send(
                ("SUBSCRIBE", KEYS.events(run_id)),
                script("admit", [JOBS, KEYS.run(run_id)], 1000, run_id.encode() + request, TTL_S, "status", "queued"),
            )
            while (message := broker.published()) != EVENT:
                pass  # the message that the run has begun
            client.sendall(message + END)
            broker.send(("UNSUBSCRIBE", KEYS.events(run_id)))


def agent(url: str) -> None:
    """Write loads, or process jobs, on command."""
    broker = Broker(url)
    reply(ready=True)
    for command in commands():
        if command["do"] == "write":
            _write(broker, Load(**command["load"]), command["tokens"])
            reply(done=True)
        else:
            _work(broker, command["count"])


def _write(broker: Broker, load: Load, tokens: int) -> None:
    assert load.per_s is not None
    before, after = chunk("chatcmpl-", 2, '{"content":"@"}').split(b"@")
    broker.ask("DEL", KEYS.run(TOKENS), KEYS.events(TOKENS))
    broker.begin(TOKENS, "0-1")
    began_s, written = time.monotonic(), 0
    while written < tokens:
        due = min(tokens, int((time.monotonic() - began_s) * load.per_s) + 1)
        for number in range(written, due):
            broker.append(TOKENS, number + 2, before + stamp().encode() + after)
        written = due
        time.sleep(TICK_S)


def _work(broker: Broker, count: int) -> None:
    broker.ask("DEL", JOBS)
    broker.ask("XGROUP", "CREATE", JOBS, GROUP, "0", "MKSTREAM")
    reply(working=True)
    for _ in range(count):
        answer = broker.ask("XREADGROUP", "GROUP", GROUP, "bench", "COUNT", 1, "BLOCK", 10_000, "STREAMS", JOBS, ">")
        assert answer is not None, "no job arrived"
        ((_, ((entry_id, (_, job)),)),) = answer.items() if isinstance(answer, dict) else answer
        run_id = job[: len(new_run_id())].decode()
        broker.begin(run_id, entry_id)
        broker.append(run_id, 2, EVENT)
        broker.ask(*script("finish", [JOBS], GROUP, "bench", entry_id))
    broker.ask("DEL", JOBS)


if __name__ == "__main__":
    {"front": front, "agent": agent}[sys.argv[1]](os.environ["REDIS_URL"])
