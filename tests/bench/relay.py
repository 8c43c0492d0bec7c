"""Baseline ``relay``: the same hops between the same processes, by blocking sockets, and nothing done at any of them.

A front passes on what the broker publishes to it; an agent publishes its tokens, or takes a job from a stream, says
that it has begun, and publishes an event. No HTTP, no checks, no log, no lease: less than any service with a broker
between must do. What remains to ours is what our own code costs.
"""

import os
import socket
import sys
import time
from typing import Any, Final

import hiredis

from service import sse
from service.store.endpoint import Endpoint
from service.store.wire import pack
from tests.bench.floor import chunk
from tests.bench.machine import commands, reply
from tests.bench.tokens import TICK_S, Load, stamp

CHANNEL: Final = b"bench-relay"
READ_BYTES: Final = 1 << 16
OPENING: Final = chunk("chatcmpl-", 0, '{"role":"assistant"}')
EVENT: Final = sse.frame(b"{}", event="agent_turn_start")
END: Final = b"0\r\n\r\n"


class Broker:
    """A connection to the broker, one command at a time."""

    def __init__(self, url: str) -> None:
        """Connect."""
        endpoint = Endpoint(url)
        host, _, port = str(endpoint).rpartition(":")
        self._socket = _quick(socket.create_connection((host, int(port))))
        self._reader = hiredis.Reader()
        for command in endpoint.handshake("bench-relay"):
            self.ask(*command)

    def send(self, *command: bytes | str | int) -> None:
        """Send a command."""
        self._socket.sendall(pack(command))

    def receive(self) -> Any:
        """Return the next reply or push."""
        while (answer := self._reader.gets()) is False:
            data = self._socket.recv(READ_BYTES)
            assert data, "the broker has gone"
            self._reader.feed(data)
        return answer

    def ask(self, *command: bytes | str | int) -> Any:
        """Send a command and return its reply."""
        self.send(*command)
        return self.receive()

    def published(self) -> bytes:
        """Return what the next message of a subscribed channel carries."""
        while True:
            answer = self.receive()
            if isinstance(answer, list) and answer[0] == b"message":
                return bytes(answer[2])


def _quick(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def front(url: str) -> None:
    """Serve one client after the other, until killed: pass tokens on, or a job there and its event back."""
    broker = Broker(url)
    broker.ask("SUBSCRIBE", CHANNEL)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        client = _quick(listener.accept()[0])
        while request := client.recv(READ_BYTES):
            if b'"tokens"' in request:
                client.sendall(OPENING)
                while True:
                    client.sendall(broker.published())
            broker.send("XADD", CHANNEL + b":jobs", "*", "job", request)
            client.sendall(broker.published() + END)


def agent(url: str) -> None:
    """Publish loads as told, or events for jobs."""
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
    began_s, written = time.monotonic(), 0
    while written < tokens:
        due = min(tokens, int((time.monotonic() - began_s) * load.per_s) + 1)
        for _ in range(written, due):
            broker.ask("PUBLISH", CHANNEL, before + stamp().encode() + after)
        written = due
        time.sleep(TICK_S)


def _work(broker: Broker, count: int) -> None:
    jobs, last = CHANNEL + b":jobs", "0"
    broker.ask("DEL", jobs)
    reply(working=True)
    for _ in range(count):
        answer = broker.ask("XREAD", "COUNT", 1, "BLOCK", 10_000, "STREAMS", jobs, last)
        assert answer is not None, "no job came"
        ((_, ((entry_id, _),)),) = answer.items() if isinstance(answer, dict) else answer
        last = entry_id
        broker.ask("HINCRBY", CHANNEL + b":run", "attempt", 1)
        broker.ask("PUBLISH", CHANNEL, EVENT)
    broker.ask("DEL", jobs, CHANNEL + b":run")


if __name__ == "__main__":
    {"front": front, "agent": agent}[sys.argv[1]](os.environ["REDIS_URL"])
