"""A client for HTTP requests to real processes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.helpers import TIMEOUT_S, decode

Stream = list[tuple[str | None, Any]]


@dataclass
class Client:
    """Sends chat completion requests."""

    session: aiohttp.ClientSession

    async def post(self, url: str, body: Any, **headers: str) -> aiohttp.ClientResponse:
        """Return the answer after its body has been read."""
        async with self.session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            return response

    async def stream(
        self, url: str, text: str, *, query: str = "", headers: dict[str, str] | None = None, **body: Any
    ) -> Stream:
        """Return the decoded stream of one request. Raises if the body is incomplete."""
        request = {"model": "m1", "messages": [{"role": "user", "content": text}], "stream": True, **body}
        post = self.session.post(f"{url}/v1/chat/completions{query}", json=request, headers=headers)
        async with post as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return decode(await response.read())


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client whose requests have a time limit."""
    timeout = aiohttp.ClientTimeout(total=3 * TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(session)
