"""The load generator: raw sockets and epoll, no HTTP library, so that the client is never what is measured.

A token of the benchmark holds one ``~``, which nothing else of a stream does: counting those counts chunks, however
the bytes were cut. For latencies the 16 digits behind it are the monotonic clock, in ns, of when it was written.
"""

import json
import select
import socket
import time
from typing import Any, Final
from urllib.parse import urlsplit

from tests.bench.machine import commands, reply

READ_BYTES: Final = 1 << 18
DIGITS: Final = 16
STALL_S: Final = 20.0  # nothing for so long: the server has lost something
OPENING_AT_ONCE: Final = 64
IDLE_S: Final = 0.003  # between two requests, so that the one before is over everywhere


def post(url: str, question: str) -> tuple[tuple[str, int], bytes]:
    """Return where to connect, and the bytes of a streamed chat request."""
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    message = {"role": "user", "content": question}
    body = json.dumps({"model": "agentstream", "stream": True, "messages": [message]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    return (where.hostname, where.port), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Streams:
    """Open streams, read as they come."""

    def __init__(self) -> None:
        """Start with none."""
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._buffer = bytearray(READ_BYTES)

    def open(self, url: str, count: int, question: str) -> None:
        """Open ``count`` more; returns when each has had its role chunk."""
        address, request = post(url, question)
        for start in range(0, count, OPENING_AT_ONCE):
            fresh = []
            for _ in range(min(OPENING_AT_ONCE, count - start)):
                connection = socket.create_connection(address, timeout=STALL_S)
                connection.sendall(request)
                fresh.append(connection)
            for connection in fresh:
                seen = b""
                while b'"assistant"' not in seen:
                    data = connection.recv(READ_BYTES)
                    assert data, f"a stream did not open: {seen!r}"
                    seen += data
                connection.setblocking(False)  # noqa: FBT003 -- the standard library's signature
                self._sockets[connection.fileno()] = connection
                self._poll.register(connection, select.EPOLLIN)

    def close(self) -> None:
        """Close all."""
        for connection in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._poll.close()
        self._poll = select.epoll()

    def count(self, expected: int) -> dict[str, Any]:
        """Read until ``expected`` tokens have come."""
        buffer, sockets, seen, reads = self._buffer, self._sockets, 0, 0
        busy_s, began_s = time.process_time(), time.monotonic()
        while seen < expected:
            ready = self._poll.poll(STALL_S)
            assert ready, f"{seen} of {expected} tokens came"
            for descriptor, _ in ready:
                size = sockets[descriptor].recv_into(buffer)
                seen += buffer.count(b"~", 0, size)
                reads += 1
                assert size, "a stream was cut"
        took_s = time.monotonic() - began_s
        return {"seen": seen, "took_s": took_s, "cpu_share": (time.process_time() - busy_s) / took_s, "reads": reads}

    def latencies(self, expected: int) -> dict[str, Any]:
        """Read ``expected`` tokens and return how long each was on its way, in us, in the order they came."""
        buffer, sockets = self._buffer, self._sockets
        on_way_us: list[float] = []
        rests: dict[int, bytes] = {}
        busy_s, began_s = time.process_time(), time.monotonic()
        while len(on_way_us) < expected:
            ready = self._poll.poll(STALL_S)
            assert ready, f"{len(on_way_us)} of {expected} tokens came"
            for descriptor, _ in ready:
                size = sockets[descriptor].recv_into(buffer)
                now_ns = time.monotonic_ns()
                data = rests.pop(descriptor, b"") + buffer[:size]
                at = data.find(b"~")
                while at != -1:
                    digits = data[at + 1 : at + 1 + DIGITS]
                    if len(digits) < DIGITS:
                        rests[descriptor] = bytes(data[at:])
                        break
                    on_way_us.append((now_ns - int(digits)) / 1000)
                    at = data.find(b"~", at + DIGITS)
        took_s = time.monotonic() - began_s
        return {"on_way_us": on_way_us, "cpu_share": (time.process_time() - busy_s) / took_s}


def first_events(url: str, count: int, question: str) -> dict[str, Any]:
    """Ask an idle service ``count`` times on one connection; return when the first event came, each in us."""
    address, request = post(url, question)
    took_us = []
    with socket.create_connection(address, timeout=STALL_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began_ns, event_ns, seen = time.monotonic_ns(), 0, b""
            connection.sendall(request)
            while not seen.endswith(b"0\r\n\r\n"):
                data = connection.recv(READ_BYTES)
                assert data, f"the connection was cut: {seen!r}"
                seen += data
                if not event_ns and b"event: agent_turn_start" in seen:
                    event_ns = time.monotonic_ns()
            took_us.append((event_ns - began_ns) / 1000)
            time.sleep(IDLE_S)
    return {"took_us": took_us}


def runs(url: str, connections: int, count: int, question: str = "", again: str = "") -> dict[str, Any]:
    """Have ``count`` answers streamed over ``connections`` kept alive, each asking again when it has its answer.

    New runs for ``question``, or the stream of the run called ``again``, from its beginning.
    """
    address, request = post(url, question)
    if again:
        request = (
            f"GET /v1/chat/completions/{again}?stream=true HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()
        )
    poll, tails, left, done = select.epoll(), {}, count, 0
    busy_s, began_s = time.process_time(), time.monotonic()
    for _ in range(min(connections, count)):
        connection = socket.create_connection(address, timeout=STALL_S)
        connection.sendall(request)
        poll.register(connection, select.EPOLLIN)
        tails[connection.fileno()] = (connection, b"")
        left -= 1
    while done < count:
        ready = poll.poll(STALL_S)
        assert ready, f"{done} of {count} answers came"
        for descriptor, _ in ready:
            connection, tail = tails[descriptor]
            data = connection.recv(READ_BYTES)
            assert data, f"a connection was cut: {tail!r}"
            tail = (tail + data)[-64:]
            if tail.endswith(b"\r\n0\r\n\r\n"):
                assert b"[DONE]" in tail
                done += 1
                tail = b""
                if left > 0:
                    left -= 1
                    connection.sendall(request)
            tails[descriptor] = (connection, tail)
    took_s = time.monotonic() - began_s
    for connection, _ in tails.values():
        connection.close()
    return {"took_s": took_s, "cpu_share": (time.process_time() - busy_s) / took_s}


def main() -> None:
    """Do as told."""
    streams = Streams()
    for command in commands():
        match command.pop("do"):
            case "open":
                streams.open(**command)
                reply(open=True)
            case "count":
                reply(ready=True)
                reply(**streams.count(**command))
            case "latencies":
                reply(ready=True)
                reply(**streams.latencies(**command))
            case "first_events":
                reply(**first_events(**command))
            case "runs":
                reply(**runs(**command))
            case "close":
                streams.close()
                reply(closed=True)


if __name__ == "__main__":
    main()
