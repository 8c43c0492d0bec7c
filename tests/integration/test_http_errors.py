"""Errors outside the handlers: wrong paths, body codings, large headers and malformed HTTP, all in OpenAI's shape."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.clients import RawSocket
from tests.helpers import TIMEOUT_S
from tests.processes import Process, Processes

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m1", "messages": [{"role": "user", "content": "x"}]}).encode()
SECRET = "sk-hunter2"  # noqa: S105 -- a value that must not be seen


async def start(processes: Processes) -> tuple[str, Process]:
    """Start a front end that logs everything; return its URL and process."""
    frontend = await processes.start(
        "frontend", AGENTSTREAM_PORT="0", AGENTSTREAM_LOG_LEVEL="debug", AGENTSTREAM_LOG_CONTENT="true"
    )
    return (await frontend.until(r"serving on (http://\S+)"))[1], frontend


@pytest.fixture(scope="module")
def site(broker_url: str, broker_runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a front end for the whole module. There is no worker: no request here may reach one."""
    processes = Processes(broker_url, tmp_path_factory.mktemp("site"))
    yield broker_runner.run(processes.frontend(AGENTSTREAM_QUEUE_TIMEOUT_S="1"))
    broker_runner.run(processes.__aexit__())


async def send(url: str, data: bytes) -> tuple[int, bytes]:
    """Send raw bytes; return the status of the answer, and the answer."""
    async with asyncio.timeout(TIMEOUT_S), RawSocket.open(url) as connection:
        await connection.send(data)
        answer, _ = await connection.rest()
    return int(answer.split(b" ", 2)[1]), answer


def head(*lines: str, start: str = f"POST {CHAT}") -> bytes:
    """Return the head of a request that closes its connection."""
    first = [f"{start} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def post(*lines: str, body: bytes = BODY, start: str = f"POST {CHAT}") -> bytes:
    return head(*lines, f"Content-Length: {len(body)}", start=start) + body


def error_in(answer: bytes) -> dict[str, Any]:
    """Return the error of an answer; assert OpenAI's shape."""
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in top.lower(), answer
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert error["code"]
    return error


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("POST /chat/completions", "POST /v1/chat/completions"),
        ("POST /completions", "POST /v1/completions"),
        ("POST /responses", "POST /v1/responses"),
        ("GET /models", "GET /v1/models"),
        ("POST /models", "GET /v1/models"),
        ("GET /models/meta-llama/Llama-3.1-8B", "GET /v1/models/meta-llama/Llama-3.1-8B"),
        ("GET /chat/completions/chatcmpl-1?stream=true", "GET /v1/chat/completions/chatcmpl-1"),
        ("POST /chat/completions/chatcmpl-1/cancel", "POST /v1/chat/completions/chatcmpl-1/cancel"),
        ("GET /responses/resp_1", "GET /v1/responses/resp_1"),
        ("POST /responses/resp_1/cancel", "POST /v1/responses/resp_1/cancel"),
        ("POST /v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("POST /v1/chat/completions/", "POST /v1/chat/completions"),
        ("POST //v1//chat/completions", "POST /v1/chat/completions"),
        ("POST /api/v1/responses", "POST /v1/responses"),
        ("POST /openai/deployments/m1/chat/completions?api-version=1", "POST /v1/chat/completions"),
        ("GET /v1/models/", "GET /v1/models"),
        ("GET /v1/health/ready", "GET /health/ready"),
        ("GET /metrics/", "GET /metrics"),
        ("POST /v1/embeddings", "GET /openapi.json lists the routes"),
        ("GET /" + "x/" * 5000, "GET /openapi.json lists the routes"),
        ("GET /a%0d%0ab", "GET /openapi.json lists the routes"),
    ],
    ids=lambda value: value[:60],
)
async def test_a_wrong_path_gets_the_right_one(site: str, asked: str, hint: str) -> None:
    """A path without /v1, with it twice, with a prefix or with a slash at its end gets 404 and the right path."""
    status, answer = await send(site, post(start=asked))
    error = error_in(answer)
    assert (status, error["code"]) == (404, "not_found")
    assert hint in error["message"]
    assert ("ends with /v1" in error["message"]) == (" /v1/" in hint)


@pytest.mark.parametrize(
    ("codings", "body", "status"),
    [
        (("zstd",), BODY, 415),
        (("br",), BODY, 415),
        (("compress",), BODY, 415),
        (("x-gzip",), gzip.compress(BODY, mtime=0), 415),
        (("gzip, br",), BODY, 415),
        (("gzip", "gzip"), gzip.compress(gzip.compress(BODY, mtime=0), mtime=0), 415),
        (("identity, gzip",), gzip.compress(BODY, mtime=0), 415),
        (("caf\xe9",), BODY, 415),
        (("gzip",), b"no gzip data", 400),
        (("gzip",), gzip.compress(BODY, mtime=0)[:-20], 400),
        (("gzip",), zlib.compress(BODY), 400),
        (("deflate",), b"\xff" * 100, 400),
        (("deflate",), gzip.compress(BODY, mtime=0), 400),
        (("identity",), gzip.compress(BODY, mtime=0), 400),
    ],
)
async def test_a_coding_that_cannot_be_decoded_is_refused(
    site: str, codings: tuple[str, ...], body: bytes, status: int
) -> None:
    """A Content-Encoding that is not supported gets 415 with those that are, and data that is not of it gets 400."""
    answered, answer = await send(site, post(*(f"Content-Encoding: {coding}" for coding in codings), body=body))
    error = error_in(answer)
    assert answered == status, answer
    if status == 415:
        assert error["code"] == "unsupported_media_type"
        assert "'Content-Encoding: gzip' or 'deflate'" in error["message"]
    else:
        assert error["code"] in {"invalid_request_error", "invalid_json"}


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_supported_coding_is_decoded(site: str, coding: str, compress: Callable[[bytes], bytes]) -> None:
    """A body in gzip or deflate is decoded before it is validated."""
    wrong = json.dumps({"model": "m1", "messages": []}).encode()
    status, answer = await send(site, post(f"Content-Encoding: {coding}", body=compress(wrong)))
    assert (status, error_in(answer)["param"]) == (400, "messages")


@pytest.mark.parametrize("size", [8 << 10, 12 << 10, 16 << 10, 30 << 10])
async def test_large_headers_are_accepted(site: str, size: int) -> None:
    """A header of up to 32 KB is accepted, as proxies with OAuth send them, and so is such a query."""
    lines = (f"Cookie: _oauth2_proxy={'c' * size}", f"Authorization: Bearer {'t' * size}")
    status, answer = await send(site, head(*lines, start="GET /health/live"))
    assert status == 200, answer
    status, answer = await send(site, head(start=f"GET /health/live?{'q' * size}"))
    assert status == 200, answer


LARGE = f"session={SECRET}{'x' * (40 << 10)}{SECRET}"
UNREADABLE = {
    "a cookie that is too large": (head(f"Cookie: {LARGE}"), 400),
    "a key that is too large": (head(f"Authorization: Bearer {LARGE}"), 400),
    "a name that is too large": (head(f"X{LARGE.replace('=', '-')}: x"), 400),
    "a query that is too large": (head(start=f"GET /health/live?{LARGE}"), 400),
    "too many headers": (head(*(f"X-{number}: {SECRET}" for number in range(500))), 400),
    "NUL in a key": (head(f"Authorization: Bearer {SECRET}\0"), 400),
    "CR in a cookie": (head(f"Cookie: a={SECRET}\rb"), 400),
    "a line without a colon": (head(f"Cookie {SECRET}"), 400),
    "a space before the colon": (head(f"Cookie : {SECRET}"), 400),
    "a folded line": (head("Cookie: a", f" {SECRET}"), 400),
    "a header twice": (head(f"Host: {SECRET}"), 400),
    "an unknown transfer coding": (head(f"Transfer-Encoding: {SECRET}"), 400),
    "a length that is no number": (head(f"Content-Length: {SECRET}"), 400),
    "a malformed chunk": (head("Transfer-Encoding: chunked") + f"zz\r\n{SECRET}\r\n0\r\n\r\n".encode(), 400),
    "an unknown expectation": (post(f"Expect: {SECRET}"), 417),
    "an unknown coding": (post("Content-Encoding: br", f"Cookie: {SECRET}"), 415),
    "no path": (head(f"Cookie: {SECRET}", start="OPTIONS *"), 404),
    "an unknown path": (head(f"Cookie: {SECRET}", start="GET /nothing"), 404),
    "a wrong method": (head(f"Cookie: {SECRET}", start="PUT " + CHAT), 405),
    "a malformed method": (head(f"Cookie: {SECRET}", start="G@T /"), 400),
    "a malformed target": (head(f"Cookie: {SECRET}", start="GET http://[::1"), 400),
    "a malformed version": (f"GET / {SECRET}\r\nCookie: {SECRET}\r\n\r\n".encode(), 400),
    "no HTTP": (SECRET.encode() * 50 + b"\r\n\r\n", 400),
    "TLS": (bytes.fromhex("16030100a5010000a10303") + bytes(200), 400),
}


async def test_unreadable_requests_get_errors_without_their_data(processes: Processes) -> None:
    """A request that no handler gets is answered in OpenAI's shape, and no answer or log line holds its headers."""
    url, frontend = await start(processes)
    for name, (data, expected) in UNREADABLE.items():
        status, answer = await send(url, data)
        assert status == expected, (name, answer)
        assert error_in(answer), name
        assert SECRET.encode() not in answer, name
        assert b"x" * 50 not in answer, name
    await frontend.stop()
    assert "a malformed request was refused" in frontend.output
    assert SECRET not in frontend.output
    assert "Traceback" not in frontend.output
