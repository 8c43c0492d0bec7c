"""The HTTP client of the commands: it sends requests, reads streams and raises errors that say what to do."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp

from agentstream.cli.exits import Failed, Refused, Unreachable, WrongSettings
from agentstream.config import header_value
from agentstream.stream import sse

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0  # front ends send a keepalive every 4 s
ANSWER_TIMEOUT_S: Final = 60.0  # front ends answer a cancel within 4/3 of a lease + 10 s
MAX_ERROR_CHARACTERS: Final = 300  # error pages of proxies can be long

COMPLETIONS: Final = "/v1/chat/completions"

# 502: a proxy has no front end. 503: Redis is unreachable, or the front end drains. 504: a cancelled run has not ended.
_TEMPORARY_STATUSES: Final = (502, 503, 504)
_SERVER_ERROR: Final = 500
_OK: Final = 200


def run_path(run_id: str) -> str:
    """Return the path of a run. Any text is safe as ``run_id``: it is quoted."""
    return f"{COMPLETIONS}/{quote(run_id, safe='')}"


class ConnectionLost(Unreachable):
    """The connection broke before the stream ended."""


class ApiClient:
    """Sends requests to one front end. Use it as an asynchronous context manager."""

    def __init__(self, url: str, api_key: str | None, event_types: str | None = None) -> None:
        """``url`` is the address of the front end, with or without ``http://`` and the path ``/v1``.

        ``event_types`` is a list of the types of an agent's own events that streams contain, or ``all``. Raises
        WrongSettings if the key or the types cannot be sent.
        """
        url = url.strip()
        if "://" not in url and (":" in url or "." in url or url.startswith("localhost")):
            url = f"http://{url}"
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            api_key = header_value(api_key.strip()) if api_key else None
        except ValueError as exc:
            message = f"the API key is wrong: {exc}"
            raise WrongSettings(message) from exc
        # With strict errors, a failed run sends an error object instead of a sentence in the answer.
        self._headers = {"X-Agent-Errors": "strict"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        if event_types is not None:
            try:
                self._headers["X-Agent-Event-Types"] = header_value(event_types.strip())
            except ValueError as exc:
                message = f"--events is wrong: {exc}"
                raise WrongSettings(message) from exc
        self._session: aiohttp.ClientSession | None = None
        self.server_header = ""  # the Server header of the last response

    async def __aenter__(self) -> Self:
        """Open the HTTP session."""
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the HTTP session."""
        if self._session is not None:
            await self._session.close()

    async def stream(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, after: str = ""
    ) -> AsyncGenerator[list[sse.ReceivedFrame]]:
        """Yield the frames of each received piece of a stream; an empty list for a keepalive.

        With ``after``, the stream resumes after the frame with this id. Raises Refused, Unreachable or Failed, and
        ConnectionLost if the connection breaks after the stream has begun. The caller must check that the stream is
        complete: a response can also end cleanly too early.
        """
        headers = {"Last-Event-ID": after} if after else {}
        decoder = sse.Decoder()
        async with self._request(method, path, body, headers) as response:
            if response.content_type != "text/event-stream":
                message = f"{self.url} sent {response.content_type}, not an event stream; check that it is a front end"
                raise Failed(message)
            try:
                async for piece in response.content.iter_any():
                    yield list(decoder.feed(piece))
            except (aiohttp.ClientError, TimeoutError) as exc:
                message = f"the stream from {self.url} broke: {_reason(exc)}"
                raise ConnectionLost(message) from exc

    async def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a POST request and return the parsed answer. Raises Refused, Unreachable or Failed."""
        return await self._json("POST", path, body)

    async def get(self, path: str) -> dict[str, Any]:
        """Send a GET request and return the parsed answer. Raises Refused, Unreachable or Failed."""
        return await self._json("GET", path, None)

    async def _json(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        async with self._request(method, path, body, {}, ANSWER_TIMEOUT_S) as response:
            try:
                answer: dict[str, Any] = await response.json()
            except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
                message = f"{self.url} sent no JSON answer ({_reason(exc)}); check that it is a front end"
                raise Failed(message) from exc
            return answer

    async def cancel(self, run_id: str) -> dict[str, Any]:
        """Cancel a run and return its final state, after it has ended."""
        return await self.post(f"{run_path(run_id)}/cancel")

    async def answer(self, run_id: str, answers: dict[str, Any]) -> dict[str, Any]:
        """Answer interrupts of a run and return its state then. It does not wait for the end of the run."""
        return await self.post(f"{run_path(run_id)}/resume", {"answers": answers, "background": True})

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: dict[str, str],
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "enter the context first"  # noqa: S101 -- narrows the type
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=read_timeout_s)
        request = self._session.request(method, self.url + path, json=body, headers=headers, timeout=timeout)
        try:
            response = await request
        except aiohttp.InvalidURL as exc:
            message = f"--url {self.url!r} is not an http:// or https:// URL"
            raise WrongSettings(message) from exc
        except aiohttp.ClientConnectorError as exc:
            message = f"cannot connect to {self.url} ({exc.strerror or exc}); start a front end with: agentstream up"
            raise Unreachable(message) from exc
        except (aiohttp.ClientError, TimeoutError) as exc:
            message = f"no answer from {self.url}: {_reason(exc)}"
            raise Unreachable(message) from exc
        async with response:
            self.server_header = response.headers.get("Server", "")
            if response.status != _OK:
                raise await _error_of(response)
            yield response


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


async def _error_of(response: aiohttp.ClientResponse) -> Failed:
    text = code = ""
    try:
        text = await response.text(errors="replace")
        error = json.loads(text)["error"]
        message, code = str(error["message"]), str(error.get("code"))
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        message = text[:MAX_ERROR_CHARACTERS]
    message = f"{response.status}: {message}"
    if response.status in _TEMPORARY_STATUSES:
        return Unreachable(message)
    return Failed(message) if response.status >= _SERVER_ERROR else Refused(message, code)
