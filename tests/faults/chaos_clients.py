"""Clients of resumable runs, and the check of an answer: every word comes once, in order."""

import asyncio
import itertools
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from agentstream.stream import sse
from tests.faults.chaos_agents import Plan
from tests.helpers import TIME_SCALE, parse_data

SILENCE_S: Final = 12 * TIME_SCALE
RETRY_S: Final = 0.25 * TIME_SCALE
_KEEPALIVES: Final = re.compile(rb"(?m)^: keepalive\n")
_IDS: Final = re.compile(rb"(?m)^id: ")
_WORD: Final = re.compile(r"#(\d+)")
_TROUBLE: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)


def judge(text: str, words: int) -> Counter[str]:
    """Return the faults of an answer that should have this many words."""
    faults: Counter[str] = Counter()
    pieces = text.split()
    numbers = [int(match[1]) for piece in pieces if (match := _WORD.fullmatch(piece))]
    faults["words broken"] = len(pieces) - len(numbers)
    faults["words doubled"] = len(numbers) - len(set(numbers))
    faults["words lost"] = len(set(range(words)) - set(numbers))
    first_seen = list(dict.fromkeys(numbers))
    faults["words out of order"] = sum(later < earlier for earlier, later in itertools.pairwise(first_seen))
    return +faults


@dataclass
class ResumableRun:
    """What one client received of one run."""

    plan: Plan
    kind: str
    model: str
    run_id: str = ""
    outcome: str = ""  # "complete", or the code of an error
    text: str = ""
    raw: bytes = b""  # whole frames, without keepalives
    last_id: str = ""
    connections: int = 0
    pause_s: float = 0.0  # the longest time between two pieces of text or events
    faults: Counter[str] = field(default_factory=Counter)


Take = Callable[[ResumableRun, sse.ReceivedFrame], None]


class Following:
    """Requests a run, and follows it over all front ends until its end."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str], first: int) -> None:
        self._session = session
        self._urls = urls
        self._turn = first
        self._key = secrets.token_hex(8)
        self.rejected: Counter[int] = Counter()

    def _url(self) -> str:
        self._turn += 1
        return self._urls[self._turn % len(self._urls)]

    async def follow(self, run: ResumableRun) -> None:
        """Follow a run in the way of its kind, and check what came."""
        await {
            "chat": self._chat,
            "answer": self._answer,
            "background": self._background,
            "responses": self._responses,
        }[run.kind](run)
        if run.outcome == "complete":
            run.faults.update(judge(run.text, run.plan.words))

    # -- kinds --------------------------------------------------------------------------------------

    async def _chat(self, run: ResumableRun) -> None:
        """Stream it, and read it again later: every reader must get the same bytes."""
        body = _chat_body(run, stream=True, background=True)
        await self._until_done(run, body, "/v1/chat/completions", _chat_frame)
        await self._compare(run, f"/v1/chat/completions/{run.run_id}?stream=true")

    async def _responses(self, run: ResumableRun) -> None:
        """Stream it as a response, and read it again later."""
        body = {"model": run.model, "input": run.plan.text(), "stream": True, "background": True}
        await self._until_done(run, body, "/v1/responses", _response_frame)
        numbers = [int(number) for number in re.findall(rb"(?m)^id: (\d+)$", run.raw)]
        if numbers != list(range(len(numbers))):
            run.faults["sequence numbers with a gap"] += 1
        await self._compare(run, f"/v1/responses/{run.run_id}?stream=true")

    async def _answer(self, run: ResumableRun) -> None:
        """Ask for it as one object, under an idempotency key, until there is an answer; the repeat must be the same."""
        bodies = [await self._object("POST", "/v1/chat/completions", _chat_body(run)) for _ in range(2)]
        if bodies[0] != bodies[1]:
            run.faults["readers that got other bytes"] += 1
        run.run_id = str(bodies[0].get("id", ""))
        self._take_answer(run, bodies[0])

    async def _background(self, run: ResumableRun) -> None:
        """Start it in the background, and poll it."""
        created = await self._object("POST", "/v1/chat/completions", _chat_body(run, background=True))
        run.run_id = created["id"]
        while True:
            body = await self._object("GET", f"/v1/chat/completions/{run.run_id}")
            if body.get("error") or body.get("status") in {"completed", "failed", "cancelled"}:
                break
            await asyncio.sleep(RETRY_S)
        self._take_answer(run, body)

    # -- requests -----------------------------------------------------------------------------------

    async def _until_done(self, run: ResumableRun, body: Any, path: str, take: Take) -> None:
        """Read a stream until its end; resume it after the last frame as often as necessary."""
        heard_s = time.monotonic()
        while not run.outcome:
            call = (
                self._session.get(
                    f"{self._url()}{path}/{run.run_id}?stream=true", headers={"Last-Event-ID": run.last_id}
                )
                if run.run_id
                else self._session.post(self._url() + path, json=body, headers={"Idempotency-Key": self._key})
            )
            try:
                async with call as response:
                    if response.status == 200:
                        run.connections += 1
                        heard_s = await self._read(response, run, take, heard_s)
                    else:
                        self.rejected[response.status] += 1
            except _TROUBLE:
                self.rejected[0] += 1
            if not run.outcome:
                await asyncio.sleep(RETRY_S)

    async def _read(self, response: aiohttp.ClientResponse, run: ResumableRun, take: Take, heard_s: float) -> float:
        """Read frames until the end. Return the time of the last one."""
        decoder, buffer = sse.Decoder(), b""
        if not run.last_id:
            run.raw = b""  # the role chunk has no id
        async for piece in response.content.iter_any():
            buffer += piece
            *frames, buffer = buffer.split(b"\n\n")
            for frame in frames:
                now_s = time.monotonic()
                raw = _KEEPALIVES.sub(b"", frame) + b"\n\n"
                for message in decoder.feed(raw):
                    if _IDS.search(raw) or message.data == "[DONE]" or not run.last_id:
                        take(run, message)
                        run.pause_s, heard_s = max(run.pause_s, now_s - heard_s), now_s
                        run.raw += raw
                    else:
                        _take_unnumbered(run, message)
                    run.last_id = message.last_event_id or run.last_id
        return heard_s

    async def _compare(self, run: ResumableRun, path: str) -> None:
        """Check that a later reader at each front end gets the same bytes."""
        for url in self._urls:
            if await self._replay(url + path, run.raw[-40:]) != run.raw:
                run.faults["readers that got other bytes"] += 1

    async def _replay(self, url: str, end: bytes) -> bytes:
        """Return the whole stream of a run that has ended with ``end``."""
        while True:
            try:
                async with self._session.get(url) as response:
                    raw = _KEEPALIVES.sub(b"", await response.read())
                    if response.status == 200 and raw.endswith(end):
                        return raw
                    self.rejected[response.status] += 1
            except _TROUBLE:
                self.rejected[0] += 1
            await asyncio.sleep(RETRY_S)

    async def _object(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a request until it is answered, and return its answer."""
        headers = {"Idempotency-Key": self._key} if body else {}
        while True:
            try:
                async with self._session.request(method, self._url() + path, json=body, headers=headers) as response:
                    answer: dict[str, Any] = await response.json()
                    failed_run = response.status >= 500 and answer.get("error", {}).get("code") in _RUN_FAILURES
                    if response.status < 300 or failed_run:
                        return answer
                    self.rejected[response.status] += 1
            except _TROUBLE:
                self.rejected[0] += 1
            await asyncio.sleep(RETRY_S)

    def _take_answer(self, run: ResumableRun, body: dict[str, Any]) -> None:
        error = body.get("error") or body.get("agent_error")
        run.outcome = error["code"] if error else "complete"
        if not error:
            run.text = body["choices"][0]["message"]["content"]


_RUN_FAILURES: Final = frozenset(
    {
        "worker_lost",
        "worker_shutdown",
        "resume_failed",
        "agent_error",
        "model_error",
        "run_timeout",
        "invalid_agent_output",
    }
)


def _chat_body(run: ResumableRun, **fields: Any) -> dict[str, Any]:
    return {"model": run.model, "messages": [{"role": "user", "content": run.plan.text()}], **fields}


def _chat_frame(run: ResumableRun, frame: sse.ReceivedFrame) -> None:
    """Record a frame of chat completions."""
    data: Any = parse_data(frame.data)
    if data == "[DONE]":
        run.outcome = run.outcome or "complete"
        return
    run.run_id = data["id"]
    if error := data.get("agent_error"):
        run.outcome = error["code"]
    elif frame.event == "message" and data["choices"]:
        run.text += data["choices"][0]["delta"].get("content") or ""


def _response_frame(run: ResumableRun, frame: sse.ReceivedFrame) -> None:
    """Record an event of the Responses API."""
    data: dict[str, Any] = json.loads(frame.data)
    kind = data["type"]
    run.run_id = run.run_id or data.get("response", {}).get("id", "")
    if kind == "response.output_text.delta":
        run.text += data["delta"]
    elif kind in {"response.completed", "response.failed", "response.incomplete"}:
        error = data["response"].get("agent_error") or data["response"].get("error")
        run.outcome = error["code"] if error else "complete"


def _take_unnumbered(run: ResumableRun, frame: sse.ReceivedFrame) -> None:
    """Record a frame without an id, which is not in the replay log: a sign of life, or an error of the front end."""
    data: dict[str, Any] = json.loads(frame.data)
    if error := data.get("agent_error") or data.get("error"):
        run.outcome = error["code"]
