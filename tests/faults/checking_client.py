"""A client that checks its stream: every word comes once, in order, up to a terminal frame."""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from agentstream.stream import sse
from tests.faults.chaos_agents import Plan
from tests.helpers import TIME_SCALE, parse_data

# A front end sends a keepalive every 4 s. A front end that is silent for longer than this is considered lost.
SILENCE_S: Final = 12 * TIME_SCALE
RETRY_S: Final = 0.25 * TIME_SCALE

_WORD = re.compile(r"#(\d+)(\.*) ")
_HTTP_TROUBLE = (aiohttp.ClientError, ConnectionError, TimeoutError)


class Verdict(Counter[str]):
    """The number of faults of a stream, by name."""


@dataclass(slots=True)
class StreamRecord:
    """The stream of one run, as received over any number of connections."""

    plan: Plan
    run_id: str = ""
    last_id: str = ""
    outcome: str = ""  # "complete", or the code of the error with which it ended
    done: bool = False
    said: list[str] = field(default_factory=list)
    wrong: Verdict = field(default_factory=Verdict)
    progress_s: float = field(default_factory=time.monotonic)  # of the last word or event
    silence_s: float = 0.0  # before the terminal frame
    connections: int = 0
    _seen: set[int] = field(default_factory=set)
    _highest: int = -1
    _events: set[str] = field(default_factory=set)

    def receive(self, frame: sse.ReceivedFrame) -> None:
        """Record and check one frame."""
        data: Any = parse_data(frame.data)
        if data == "[DONE]":
            self.done = True
            return
        if self.outcome:
            self.wrong["frames after the end"] += 1
        self.last_id = frame.last_event_id or self.last_id
        self.run_id = data["id"]
        if frame.event != "message":
            self._event(frame.event, data)
        for choice in data["choices"]:
            if content := choice["delta"].get("content"):
                self._content(content, failed="agent_error" in data)
            if choice["finish_reason"]:
                self._end(data)

    @property
    def words(self) -> int:
        return len(self._seen)

    def _event(self, name: str, data: dict[str, Any]) -> None:
        self.progress_s = time.monotonic()
        if name == "tool_call_start":
            if data["arguments"] in self._events:
                self.wrong["events doubled"] += 1
            self._events.add(data["arguments"])

    def _content(self, content: str, *, failed: bool) -> None:
        if failed:
            return
        self.said.append(content)
        if (match := _WORD.fullmatch(content)) is None:
            if content != "\n\n":
                self.wrong["words broken"] += 1
            return
        self.progress_s = time.monotonic()
        number = int(match[1])
        if number in self._seen:
            self.wrong["words doubled"] += 1
        elif number < self._highest:
            self.wrong["words out of order"] += 1
        self._seen.add(number)
        self._highest = max(self._highest, number)

    def _end(self, data: dict[str, Any]) -> None:
        error = data.get("agent_error")
        self.outcome = error["code"] if error else "complete"
        self.silence_s = time.monotonic() - self.progress_s
        promised = self._highest + 1 if error else self.plan.words
        if lost := len(set(range(promised)) - self._seen):
            self.wrong["words lost"] += lost
        if self._highest >= self.plan.words:
            self.wrong["words doubled"] += 1


class CheckingClient:
    """Requests a run at one front end, and follows it over all front ends until its terminal frame."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        *,
        first: int = 0,
        may_be_unknown: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start with the front end at ``first``. While ``may_be_unknown`` is true, a refused resume does not count."""
        self._session = session
        self._may_be_unknown = may_be_unknown
        self._urls = urls
        self._turn = first
        self.rejected: Counter[int] = Counter()
        self.obeys_retry_after = False  # when it repeats a request

    def _next_url(self) -> str:
        self._turn += 1
        return self._urls[(self._turn - 1) % len(self._urls)]

    async def begin(self, received: StreamRecord, *, until_word: int | None = None, **body: Any) -> None:
        """Send the request until a run has begun, and read its stream until it ends or breaks.

        With ``until_word``, disconnect after that word.
        """
        request = {
            "model": "m",
            "messages": [{"role": "user", "content": received.plan.text()}],
            "stream": True,
            **body,
        }
        while not received.run_id:
            url, delay_s = f"{self._next_url()}/v1/chat/completions", RETRY_S
            try:
                async with self._session.post(url, data=orjson.dumps(request), headers=_JSON) as response:
                    if response.status == 200:
                        await self._take(response, received, until_word)
                    else:
                        self.rejected[response.status] += 1
                        if response.status == 503 and "Retry-After" not in response.headers:
                            received.wrong["refusals without Retry-After"] += 1
                        elif self.obeys_retry_after:
                            delay_s = float(response.headers.get("Retry-After", RETRY_S))
            except _HTTP_TROUBLE:
                self.rejected[0] += 1
            if not received.run_id:
                await asyncio.sleep(delay_s)

    async def resume(self, received: StreamRecord, *, until_word: int | None = None, stall_s: float = 0) -> None:
        """Resume after the last frame, as often as necessary, and change the front end each time."""
        refusals = 0
        while not received.done:
            url = f"{self._next_url()}/v1/chat/completions/{received.run_id}?stream=true"
            try:
                async with self._session.get(url, headers={"Last-Event-ID": received.last_id}) as response:
                    if response.status == 200:
                        await self._take(response, received, until_word, stall_s)
                        stall_s = 0
                        if until_word is not None and received.words > until_word:
                            return
                    elif response.status < 500:
                        refusals += not self._may_be_unknown()
                        if refusals > 3:  # 400, 404 or 410: the run is not known any more
                            received.outcome, received.done = f"HTTP {response.status}", True
                            received.wrong[f"resumes refused: {await response.text()}"] += 1
                            return
            except _HTTP_TROUBLE:
                self.rejected[0] += 1
            if not received.done:
                await asyncio.sleep(RETRY_S)

    async def follow(self, received: StreamRecord, **body: Any) -> StreamRecord:
        """Request a run, and follow it until its end."""
        await self.begin(received, **body)
        await self.resume(received)
        return received

    async def fetch_answer(self, run_id: str) -> str:
        """Return the content of the run's answer, which is not streamed."""
        while True:
            with contextlib.suppress(*_HTTP_TROUBLE):
                async with self._session.get(f"{self._next_url()}/v1/chat/completions/{run_id}") as response:
                    if response.status == 200:
                        content: str = (await response.json())["choices"][0]["message"]["content"]
                        return content
            await asyncio.sleep(RETRY_S)

    async def _take(
        self,
        response: aiohttp.ClientResponse,
        received: StreamRecord,
        until_word: int | None,
        stall_s: float = 0,
    ) -> None:
        received.connections += 1
        decoder = sse.Decoder()
        if stall_s:
            await asyncio.sleep(stall_s)
        async for piece in response.content.iter_any():
            for message in decoder.feed(piece):
                received.receive(message)
                if until_word is not None and received.words > until_word and not received.outcome:
                    return
        if not received.done:
            received.wrong["bodies ended cleanly without an end"] += 1


_JSON = {"Content-Type": "application/json"}


def client_session(**connector: Any) -> aiohttp.ClientSession:
    """Return a session that times out if a front end is silent."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True, **connector),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S),
    )
