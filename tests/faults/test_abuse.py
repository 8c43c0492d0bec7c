"""Hostile requests: each gets an error or is cut. The front end stays small, keeps serving, and enqueues nothing."""

import asyncio
import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import redis.asyncio

from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from tests.faults.clients import PATH, RawSocket, resident_bytes, start_frontend
from tests.helpers import TIMEOUT_S, decode, texts
from tests.processes import Process, Processes

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 1.0
# How much a front end may grow under abuse: a few bodies of the largest size, and a margin for the allocator.
GROWTH_BYTES = 48 << 20
FINE = {"model": "m1", "messages": [{"role": "user", "content": "fine"}]}
LINE_ENDS = ("x\r\ny: 1", "x\ny", "x\0y", "x\x85y", "x\u2028y", "\ndata: INJECTED\n\n", "%0d%0aINJECTED: 1")


@dataclass
class Target:
    """A front end with a worker, and its memory and job count before the test."""

    url: str
    frontend: Process
    session: aiohttp.ClientSession
    broker: "redis.asyncio.Redis"
    queue: str
    resident_before_bytes: int = 0
    jobs_before: int = 0
    meant: int = 0  # jobs that the test enqueued on purpose

    @property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    async def send(self, body: Any, **headers: str) -> tuple[int, Any]:
        """Post a chat completion, as JSON or raw bytes. Return the status and the parsed answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        async with self.session.post(self.url + PATH, data=io.BytesIO(data), headers=named) as response:
            return response.status, await response.json()

    async def refused(self, body: Any, status: int = 400, **headers: str) -> dict[str, Any]:
        """Post a request that must be refused with this status. Return OpenAI's error object."""
        got, answer = await self.send(body, **headers)
        assert got == status, (got, answer, str(body)[:200])
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert len(json.dumps(answer)) < 2000, "the error repeats the request"
        error: dict[str, Any] = answer["error"]
        return error

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a new connection, and return all bytes received until it ends."""
        async with asyncio.timeout(2 * TIMEOUT_S), RawSocket.open(self.url) as connection:
            await connection.send(data)
            with contextlib.suppress(ConnectionError):
                return (await connection.rest())[0]
        return b""

    async def jobs(self) -> int:
        """Return how many jobs were ever enqueued."""
        return int((await self.broker.xinfo_stream(self.queue))["entries-added"])

    async def check(self) -> None:
        """Assert that the front end still answers, has not grown, and has enqueued no other jobs."""
        assert await self.jobs() == self.jobs_before + self.meant
        status, answer = await self.send(FINE)
        assert status == 200
        assert json.loads(answer["choices"][0]["message"]["content"])["model"] == "m1"
        assert "Traceback" not in self.frontend.output, self.frontend.output
        assert not re.search(r"(?m)^(data: )?INJECTED", self.frontend.output)
        assert resident_bytes(self.frontend) < self.resident_before_bytes + GROWTH_BYTES


@pytest.fixture
async def target(processes: Processes, broker_url: str) -> AsyncIterator[Target]:
    """Yield a front end, and check after the test that it is unharmed."""
    url, frontend = await start_frontend(
        processes,
        AGENTSTREAM_MAX_BODY_BYTES=str(MAX_BODY_BYTES),
        AGENTSTREAM_BODY_TIMEOUT_S=str(BODY_TIMEOUT_S),
    )
    await processes.worker("echo_request")
    timeout = aiohttp.ClientTimeout(total=3 * TIMEOUT_S)
    async with (
        redis.asyncio.Redis.from_url(broker_url) as broker,
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        target = Target(url, frontend, session, broker, Keys().jobs(processes.queue))
        await target.send(FINE)
        target.resident_before_bytes = resident_bytes(frontend)
        target.jobs_before = await target.jobs()
        yield target
        await target.check()


def chat(**fields: Any) -> dict[str, Any]:
    return FINE | fields


def nested(depth: int, opening: str, closing: str) -> bytes:
    """Return a request whose metadata has this nesting depth."""
    return json.dumps(chat(metadata={"x": "HERE"})).replace('"HERE"', opening * depth + "1" + closing * depth).encode()


# -- bodies ---------------------------------------------------------------------------------------------

WRONG_BODIES: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"\0",
    b"[" * 500_000,
    b'{"a":' * 100_000,
    nested(100, "[", "]"),
    nested(100, '{"a":', "}"),
    nested(20_000, "[", "]"),
    b"\xef\xbb\xbf" + json.dumps(FINE).encode(),
    json.dumps(FINE).encode("utf-16"),
    b'{"model":"\xff\xfe","messages":[{"role":"user","content":"x"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"a\nb"}]}',
    *(
        json.dumps(FINE)[:-1].encode() + b',"%s":%s}' % (name, number)
        for name in (b"temperature", b"seed", b"max_tokens", b"n")
        for number in (b"NaN", b"-Infinity", b"1e999", b"1" * 5000, b"-1e300", b"18446744073709551616", b"0x10", b"[]")
    ),
    json.dumps(chat(messages=[{"role": "user", "content": "x"}] * 2001)).encode(),
    json.dumps(chat(messages=[17] * 2000)).encode(),
    json.dumps(chat(messages=[17] * 60_000)).encode(),
    json.dumps(chat(metadata={str(number): {} for number in range(60_000)})).encode(),
    json.dumps(chat(messages=[{"role": "user", "content": [{"type": "x" * 100_000}]}])).encode(),
    json.dumps(chat(messages=[{"role": "x" * 100_000, "content": "x"}])).encode(),
    json.dumps(chat(model="m" * 500_000)).encode(),
    json.dumps(chat(stop=["x"] * 5)).encode(),
    json.dumps({"y" * 500_000: 1}).encode(),
]


async def test_wrong_bodies_get_a_short_400(target: Target) -> None:
    """Deep, huge, malformed and mistyped JSON gets a short 400 in OpenAI's form."""
    for body in WRONG_BODIES:
        await target.refused(body)


async def test_large_valid_values_pass_unchanged(target: Target) -> None:
    """A very long string, a very long key and a very large number that are valid reach the agent unchanged."""
    body = chat(**{"k" * 100_000: "v" * 100_000, "seed": 2**53, "user": "u" * 100_000, "metadata": {"": 1e308}})
    target.meant += 1
    status, answer = await target.send(body)
    assert status == 200
    assert json.loads(answer["choices"][0]["message"]["content"]) == body


async def test_line_ends_and_nul_change_nothing_but_the_text(target: Target) -> None:
    """CR, LF, NUL and similar characters are refused in a model name, and are plain text in all other fields."""
    for text in LINE_ENDS:
        body = chat(
            user=text, metadata={text: text}, stop=text, messages=[{"role": "user", "content": text, "name": text}]
        )
        if re.search(r"[\x00-\x1f]", text):
            assert (await target.refused(body | {"model": text}))["param"] == "model"
        else:
            body["model"] = text
        target.meant += 1
        data = json.dumps(body | {"stream": True}).encode()
        headers = {"Content-Type": "application/json"}
        async with target.session.post(target.url + PATH, data=data, headers=headers) as response:
            messages = decode(await response.read())
        assert {name for name, _ in messages} == {None}
        assert json.loads("".join(texts(messages))) == body | {"stream": True}


async def test_bodies_over_the_limit_are_refused(target: Target) -> None:
    """A body over the limit gets 413, also if it is chunked, never ends, or grows when it is decompressed."""
    large = json.dumps(chat(user="u" * MAX_BODY_BYTES)).encode()
    assert (await target.refused(large, 413))["code"] == "request_too_large"
    bomb = gzip.compress(bytes(256 << 20), compresslevel=1)
    assert len(bomb) < MAX_BODY_BYTES * 2
    for coding, body in [("gzip", bomb), ("gzip", gzip.compress(large)), ("deflate", zlib.compress(large))]:
        await target.refused(body, 413, Content_Encoding=coding)
        assert resident_bytes(target.frontend) < target.resident_before_bytes + GROWTH_BYTES
    async with asyncio.timeout(2 * TIMEOUT_S), RawSocket.open(target.url) as connection:
        await connection.send(head("Transfer-Encoding: chunked"))
        answer = asyncio.create_task(connection.until(b"request_too_large"))
        while not answer.done():
            await connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert (await answer).startswith(b"HTTP/1.1 413")


async def test_broken_codings_are_refused(target: Target) -> None:
    """A body that does not match its Content-Encoding gets 400."""
    for coding, body in [
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(json.dumps(FINE).encode())[:-20]),
        ("gzip", gzip.compress(gzip.compress(json.dumps(FINE).encode()))),
        ("deflate", b"\xff" * 100),
    ]:
        lines = (f"Content-Encoding: {coding}", f"Content-Length: {len(body)}", "Connection: close")
        answer = await target.raw(head(*lines) + body)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"invalid_" in answer


async def test_slow_bodies_time_out(target: Target) -> None:
    """A client that sends its body too slowly gets 408 after the time limit, even if many do this at the same time."""

    async def drip() -> bytes:
        async with RawSocket.open(target.url) as connection:
            await connection.send(head("Content-Length: 1000"))
            answer = asyncio.create_task(connection.until(b"request_timeout"))
            while not (await asyncio.wait({answer}, timeout=BODY_TIMEOUT_S / 5))[0]:
                await connection.send(b"{")
            return await answer

    async with asyncio.timeout(3 * TIMEOUT_S):
        for answer in await asyncio.gather(*(drip() for _ in range(50))):
            assert answer.startswith(b"HTTP/1.1 408")


async def test_idle_connections_cost_little(target: Target) -> None:
    """Hundreds of connections that send nothing, or never end their headers, do not disturb other clients."""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(400):
            connection = await stack.enter_async_context(RawSocket.open(target.url))
            await connection.send((b"", b"G", b"GET / HTTP/1.1\r\n", head("X: 1")[:-2])[number % 4])
        target.meant += 1
        assert (await target.send(FINE))[0] == 200
        assert resident_bytes(target.frontend) < target.resident_before_bytes + GROWTH_BYTES


# -- heads ----------------------------------------------------------------------------------------------


def head(*lines: str, method: str = "POST", path: str = PATH, version: str = "1.1", host: str = "localhost") -> bytes:
    """Return the request line and the headers of a request."""
    first = [f"{method} {path} HTTP/{version}", f"Host: {host}", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


BODY = json.dumps(FINE).encode()
SMUGGLED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n"
WRONG_HEADS: dict[str, bytes] = {
    "two lengths": head("Content-Length: 5", "Content-Length: 6") + BODY,
    "a list of lengths": head("Content-Length: 5, 6") + BODY,
    "a signed length": head("Content-Length: +5") + BODY,
    "a negative length": head("Content-Length: -5") + BODY,
    "an absurd length": head("Content-Length: 1" + "0" * 40) + BODY,
    "length and chunks": head(f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + SMUGGLED,
    "chunked, then not": head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n" + SMUGGLED,
    "an unknown coding": head("Transfer-Encoding: xchunked") + b"0\r\n\r\n" + SMUGGLED,
    "chunk sizes that are none": head("Transfer-Encoding: chunked") + b"zz\r\nabc\r\n0\r\n\r\n",
    "a signed chunk size": head("Transfer-Encoding: chunked") + b"+3\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than its size": head("Transfer-Encoding: chunked") + b"3\r\nabcdef\r\n0\r\n\r\n",
    "NUL in a value": head("X: a\0b"),
    "CR in a value": head("X: a\rb"),
    "a space before the colon": head("X : y"),
    "no colon": head("X"),
    "a space in front": b"GET /health/live HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a giant value": head("X: " + "y" * 100_000),
    "a giant name": head("X" * 100_000 + ": y"),
    "a giant path": head(path="/" + "y" * 100_000),
    "ten thousand fields": head(*(f"X-{number}: y" for number in range(10_000))),
    "a strange method": head(method="G@T"),
    "a version to come": head(version="9.9"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(200),
    "noise": bytes(range(256)) * 4,
}


async def test_malformed_requests_are_refused(target: Target) -> None:
    """A request that two parsers could read differently gets one 400, and the connection is closed."""
    for trick, data in WRONG_HEADS.items():
        answer = await target.raw(data)
        assert re.match(rb"HTTP/1\.[01] 400 ", answer), (trick, answer[:200])
        assert len(re.findall(rb"HTTP/1\.[01] \d", answer)) == 1, (trick, answer)


async def test_unusual_valid_requests_are_answered(target: Target) -> None:
    """HTTP/1.0, absolute URIs, HEAD and pipelined requests get normal answers."""
    for data, status in [
        (b"GET /health/live HTTP/1.0\r\n\r\n", 200),
        (b"GET http://localhost/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (head("Connection: close", method="HEAD", path="/health/live"), 200),
        (head("Connection: close", method="OPTIONS", path="*"), 404),
        (head("Connection: close", method="DELETE"), 405),
        (head("Connection: close", method="GET", path="/%ff%fe/%0d%0aINJECTED:%201/%00"), 404),
        (head("Connection: close", method="GET", path="/page/../../../etc/passwd"), 404),
        (head("Connection: close", method="GET", path="/page/%2e%2e/%2e%2e/etc/passwd"), 404),
        (head(method="GET", path="/health/live") * 2 + head("Connection: close", method="GET", path="/x"), 200),
    ]:
        answer = await target.raw(data)
        assert re.match(rb"HTTP/1\.[01] %d " % status, answer), (data, answer[:200])
        assert b"\r\nINJECTED" not in answer


# -- forged ids and positions -----------------------------------------------------------------------------


async def test_forged_ids_find_nothing(target: Target) -> None:
    """A run id that the service did not create gets 404, whatever its characters are."""
    unknown = new_run_id()
    for run_id in [
        unknown,
        unknown.upper(),
        f"{unknown}%0a",
        f"{unknown}%00",
        f"{unknown}%20",
        f"{unknown}}}:run",
        "*",
        "%2a",
        "chatcmpl-%0d%0aINJECTED:%201",
        "..%2f..%2fmodels",
        "x" * 5000,
        "%F0%9F%99%82",
        "%ff",
    ]:
        for method, path in [("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")]:
            data = head("Connection: close", "Content-Length: 0", method=method, path=f"{PATH}/{run_id}{path}")
            answer = await target.raw(data)
            assert answer.startswith(b"HTTP/1.1 404"), (run_id, answer[:300])
            assert len(answer) < 2000


async def test_forged_positions_are_refused(target: Target) -> None:
    """A position that no stream has sent gets a 400 that names it, in the query and in the header."""
    target.meant += 1
    _, run = await target.send(chat(background=True))
    assert (await target.send(FINE))[0] == 200  # there is one worker, which works in order: the first run has begun
    target.meant += 1
    url = f"{target.url}{PATH}/{run['id']}?stream=true"
    for text in [
        "x",
        "1",
        "-1-5",
        "1-1\n",
        "1-1\0",
        "1-1.5.5",
        " 1-1",
        "\uff11-\uff11",
        "9" * 20 + "-1",
        "1-" + "9" * 7000,
        "1e9-1",
    ]:
        async with target.session.get(url, params={"starting_after": text}) as response:
            assert response.status == 400, text
            assert (await response.json())["error"]["param"] == "starting_after"
        if text.isprintable() and text.isascii() and text == text.strip():
            async with target.session.get(url, headers={"Last-Event-ID": text}) as response:
                assert response.status == 400, text
    for text in ["999999999-1", "1-999999999999999", "1-999.1"]:
        async with target.session.get(url, params={"starting_after": text}) as response:
            assert response.status == 400, text
    async with target.session.get(url) as response:
        assert decode(await response.read())[-1] == (None, "[DONE]")


async def test_wrong_idempotency_keys_and_formats_are_refused(target: Target) -> None:
    """An invalid Idempotency-Key, event format or error form gets 400, and nothing is enqueued."""
    for line in [
        "Idempotency-Key:",
        "Idempotency-Key: " + "k" * 256,
        "Idempotency-Key: caf\xe9",
        "Idempotency-Key: a\tb",
        "X-Agent-Events: bogus",
        "X-Agent-Events: named, raw",
        "X-Agent-Events: " + "x" * 4000,
        "X-Agent-Errors: bogus",
    ]:
        answer = await target.raw(head(line, "Connection: close", f"Content-Length: {len(BODY)}") + BODY)
        assert answer.startswith(b"HTTP/1.1 400"), (line, answer[:300])
        assert len(answer) < 1000


# -- browsers ---------------------------------------------------------------------------------------------


async def test_a_page_of_another_origin_can_enqueue_nothing(target: Target) -> None:
    """A request that browsers send without a preflight gets 415, and a preflight is not allowed."""
    for content_type in [
        "text/plain",
        "text/plain; application/json",
        "text/plain;charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "",
    ]:
        await target.refused(FINE, 415, Content_Type=content_type, Origin="http://evil.example")
    asking = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    async with target.session.options(target.url + PATH, headers=asking) as response:
        assert response.status == 405
        assert not [name for name in response.headers if name.startswith("Access-Control-")]


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil.example",
    "0.0.0.0:8000",
    "192.168.0.2",
    "[::ffff:192.168.0.2]",
    "[::1",
    "localhost.",
    "xn--lcalhost-q2a",
]
OUR_HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "agents.localhost:8000"]


async def test_foreign_hosts_are_refused(target: Target) -> None:
    """A front end on loopback without keys refuses Host headers that do not name this machine."""
    request = (f"Content-Length: {len(BODY)}", "Connection: close")
    for host in FOREIGN_HOSTS:
        answer = await target.raw(head(*request, host=host) + BODY)
        assert answer.startswith(b"HTTP/1.1 403"), (host, answer[:200])
        assert b"forbidden_host" in answer
    for host in OUR_HOSTS:
        target.meant += 1
        assert (await target.raw(head(*request, host=host) + BODY)).startswith(b"HTTP/1.1 200"), host


async def test_the_host_does_not_matter_with_keys(processes: Processes) -> None:
    """With API keys, or with AGENTSTREAM_ALLOW_OPEN, the front end answers for any Host header."""
    for setting in ({"AGENTSTREAM_API_KEYS": "sk-1"}, {"AGENTSTREAM_ALLOW_OPEN": "true"}):
        url, _ = await start_frontend(processes, **setting)
        named = {"Host": "chat.example"}
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health/live", headers=named) as response:
            assert response.status == 200
