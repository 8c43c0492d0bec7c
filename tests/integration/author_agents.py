"""Agents of every shape, and agents that show who asks, for the integration tests."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from agentstream import AgentError, AgentResult, Run
from agentstream.engines.base import EngineDelta, EngineToolCall

log = logging.getLogger("author")


def say(line: str) -> None:
    """Print a line at once, in one write."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def who(run: Run) -> AgentResult:
    """Answer with the caller, as JSON."""
    caller = run.caller
    return AgentResult(json.dumps([caller.key_hash, caller.request_id, dict(caller.headers), repr(caller)]))


async def words(run: Run) -> AsyncIterator[str]:
    """Yield three words; it waits after the first one if the message is "slowly"."""
    try:
        for word in ("one ", "two ", "three"):
            yield word
            if run.request.messages[-1].text == "slowly":
                await asyncio.Event().wait()
    finally:
        say("words closed")


def words_in_a_thread(run: Run) -> Iterator[str]:
    """Yield words; they never end if the message is "for ever"."""
    try:
        yield "one "
        while run.request.messages[-1].text == "for ever":
            time.sleep(0.01)
            yield "more "
        yield "two"
    finally:
        say("words closed")


@asynccontextmanager
async def pooled() -> AsyncIterator[Any]:
    """An agent with a pool that belongs to the process."""
    loop = asyncio.get_running_loop()
    pool = {"runs": 0}
    say(f"pool opened in {os.getpid()}")

    async def agent(_run: Run) -> AgentResult:
        assert asyncio.get_running_loop() is loop
        pool["runs"] += 1
        return AgentResult(f"run {pool['runs']} of {os.getpid()}")

    yield agent
    say(f"pool closed after {pool['runs']} runs")


def fail_to_connect() -> None:
    """Fail like a client of a database."""
    message = "no database"
    raise ConnectionError(message)


@asynccontextmanager
async def broken() -> AsyncIterator[Any]:
    """An agent whose start fails."""
    fail_to_connect()
    yield who


@asynccontextmanager
async def stubborn() -> AsyncIterator[Any]:
    """An agent whose end blocks the event loop."""
    yield who
    say("closing")
    time.sleep(600)  # noqa: ASYNC251 -- the mistake of an author


@asynccontextmanager
async def waiting() -> AsyncIterator[Any]:
    """An agent whose start never ends."""
    say("waiting to start")
    await asyncio.Event().wait()
    yield who


async def no_parameter() -> AgentResult:
    """Take no run."""
    return AgentResult("")


async def secretive(run: Run) -> AgentResult:
    """Fail in the way that the last message names, with a text that no client may see."""
    text = run.request.messages[-1].text
    private = "db password is hunter2-marked"
    if text.startswith("stream"):
        run.write("so far ")
    if text.endswith("contract"):
        return AgentResult(private, finish_reason=private)
    if text.endswith("event"):
        run.emit("bad type!", {"x": private})
    if text.endswith("context"):
        raise AgentError(private, code="context_length_exceeded")
    if text.endswith("model"):
        raise AgentError(private, code="model_error", status=502)
    if text.endswith("quota"):
        message = "your quota is used"
        raise AgentError(message, code="quota_exceeded", status=429)
    if text.endswith("agent error"):
        raise AgentError(private)
    if text.endswith("own log"):
        log.error("the author logs this", exc_info=ValueError(private))
    raise ValueError(private)


def count_cows(city: str) -> str:
    """Count the cows of a city."""
    message = f"db password is hunter2-marked in {city}"
    raise ValueError(message)


class CallingEngine:
    """An engine that calls the tool, and then repeats its result."""

    name = "calling"

    async def stream(
        self, request: Any, messages: Any, tools: Any, tool_choice: Any = None
    ) -> AsyncIterator[EngineDelta]:
        """Call the tool in the first turn."""
        last = messages[-1]
        if last["role"] == "tool":
            yield EngineDelta(text=f"{request.model} says {last['content']}", finish_reason="stop")
            return
        assert "count_cows" in {tool.name for tool in tools}
        assert tool_choice is None
        yield EngineDelta(
            tool_calls=[EngineToolCall("call-1", "count_cows", '{"city": "Oslo"}')], finish_reason="tool_calls"
        )


calling_engine = CallingEngine()
