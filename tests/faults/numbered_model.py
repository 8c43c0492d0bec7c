"""A model server whose tokens are numbered: every answer continues where the conversation stops.

The user's message is a plan, as JSON (``chaos_agents.Plan``). The server keeps no state: the conversation shows which
calls were made and which words were said. So it continues a lost answer as a real model does.
"""

import asyncio
import contextlib
import json
import re
from typing import Any

from aiohttp import web

from agentstream.engines.base import CONTINUE_PROMPT
from tests.faults.chaos_agents import Plan, tool_name
from tests.model_server import DONE, USAGE, FakeModelServer, call, chunk, text


class NumberedModel(FakeModelServer):
    """Answers by the plan in the conversation."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Stream the rest of the turn, word by word, until it ends or the worker is gone."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        messages = (await request.json())["messages"]
        with contextlib.suppress(ConnectionResetError):
            await response.prepare(request)
            await _answer(messages, response)
        return response


async def _answer(messages: list[dict[str, Any]], response: web.StreamResponse) -> None:
    plan = Plan(**json.loads(next(message["content"] for message in messages if message["role"] == "user")))
    turn = sum(bool(message.get("tool_calls")) for message in messages)

    async def send(item: dict[str, Any] | str) -> None:
        data = item if isinstance(item, str) else json.dumps(item)
        await response.write(f"data: {data}\n\n".encode())

    await asyncio.sleep(plan.think_ms / 1000 if turn == 0 else 0)
    begun = _begun_text(messages)
    if begun and not begun.endswith(" "):
        await send(text(" "))
    for number in _words_of(plan, turn, begun):
        await send(text(f"#{number}"))
        await send(text(" "))
        await asyncio.sleep(plan.pause_ms / 1000)
    if turn < plan.tools:
        arguments = json.dumps({"key": plan.key, "number": turn})
        await send(call(index=0, id=f"call_{turn}", function={"name": tool_name(turn), "arguments": arguments}))
    await send(chunk(finish_reason="tool_calls" if turn < plan.tools else "stop"))
    await send(chunk(usage=USAGE) | {"choices": []})
    await send(DONE)


def _begun_text(messages: list[dict[str, Any]]) -> str:
    """Return the beginning of the answer that is to be continued."""
    *_, before, last = [{"role": "", "content": ""}, *messages]
    begun = before if last == {"role": "user", "content": CONTINUE_PROMPT} else last
    return str(begun["content"]) if begun["role"] == "assistant" else ""


def _words_of(plan: Plan, turn: int, begun: str) -> range:
    """Return the numbers of the words that the turn still has to say."""
    half = plan.words // 2 if plan.tool_between else 0
    if turn < plan.tools_first:
        return range(0)
    first, last = (0, half) if turn < plan.tools else (half, plan.words)
    said = re.findall(r"#(\d+)", begun)
    return range(int(said[-1]) + 1 if said else first, last)
