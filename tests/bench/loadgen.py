"""The load generator. It uses raw sockets and epoll, no HTTP library, so that the client is not the bottleneck.

Each token of the benchmark contains one ``~``, and nothing else in a stream does. So the number of ``~`` is the number
of tokens, independent of how the bytes are split. For latencies, 16 digits after the ``~`` are the time of the write
(monotonic clock, in ns).
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
STALL_S: Final = 20.0  # without data for so long, the server has lost something
OPENING_AT_ONCE: Final = 64
IDLE_S: Final = 0.003  # between two requests, so that every process has finished the first


def post(url: str, question: str) -> tuple[tuple[str, int], bytes]:
    """Return the address of a URL, and the bytes of a streaming chat request."""
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    message = {"role": "user", "content": question}
    body = json.dumps({"model": "agentstream", "stream": True, "messages": [message]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    return (where.hostname, where.port), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Streams:
    """A set of open streams."""

    def __init__(self) -> None:
        """Start without streams."""
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._buffer = bytearray(READ_BYTES)

    def open(self, url: str, count: int, question: str) -> None:
        """Open ``count`` more streams and wait for the role chunk of each."""
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
        """Close all streams."""
        for connection in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._poll.close()
        self._poll = select.epoll()

    def count(self, expected: int) -> dict[str, Any]:
        """Read until ``expected`` tokens have arrived."""
        buffer, sockets, seen, reads = self._buffer, self._sockets, 0, 0
        busy_s, began_s = time.process_time(), time.monotonic()
        while seen < expected:
            ready = self._poll.poll(STALL_S)
            assert ready, f"{seen} of {expected} tokens arrived"
            for descriptor, _ in ready:
                size = sockets[descriptor].recv_into(buffer)
                seen += buffer.count(b"~", 0, size)
                reads += 1
                assert size, "the server closed a stream"
        took_s = time.monotonic() - began_s
        return {"seen": seen, "took_s": took_s, "cpu_share": (time.process_time() - busy_s) / took_s, "reads": reads}

    def latencies(self, expected: int) -> dict[str, Any]:
        """Read ``expected`` tokens and return the latency of each, in us, in order of arrival."""
        buffer, sockets = self._buffer, self._sockets
        latencies_us: list[float] = []
        rests: dict[int, bytes] = {}
        busy_s, began_s = time.process_time(), time.monotonic()
        while len(latencies_us) < expected:
            ready = self._poll.poll(STALL_S)
            assert ready, f"{len(latencies_us)} of {expected} tokens arrived"
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
                    latencies_us.append((now_ns - int(digits)) / 1000)
                    at = data.find(b"~", at + DIGITS)
        took_s = time.monotonic() - began_s
        return {"latencies_us": latencies_us, "cpu_share": (time.process_time() - busy_s) / took_s}


def first_events(url: str, count: int, question: str, pause_s: float = IDLE_S) -> dict[str, Any]:
    """Send ``count`` requests to an idle service, one at a time. Return the time to the first event of each, in us.

    ``pause_s`` is the time between the end of a stream and the next request.
    """
    address, request = post(url, question)
    took_us = []
    with socket.create_connection(address, timeout=STALL_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began_ns, event_ns, seen = time.monotonic_ns(), 0, b""
            connection.sendall(request)
            while not seen.endswith(b"0\r\n\r\n"):
                data = connection.recv(READ_BYTES)
                assert data, f"the server closed the connection after {seen!r}"
                seen += data
                if not event_ns and b"event: agent_turn_start" in seen:
                    event_ns = time.monotonic_ns()
            took_us.append((event_ns - began_ns) / 1000)
            time.sleep(pause_s)
    return {"took_us": took_us}


def runs(url: str, connections: int, count: int, question: str = "", again: str = "") -> dict[str, Any]:
    """Stream ``count`` answers over ``connections`` keep-alive connections, one request at a time on each.

    Each request starts a run with ``question``, or, with ``again``, replays the stream of the run with this id.
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
        assert ready, f"{done} of {count} answers arrived"
        for descriptor, _ in ready:
            connection, tail = tails[descriptor]
            data = connection.recv(READ_BYTES)
            assert data, f"the server closed a connection after {tail!r}"
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
    """Execute commands until the input ends."""
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
