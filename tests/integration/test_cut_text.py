"""Characters that a model server or a program cuts in two reach the client whole."""

import json
from typing import Any

from tests.helpers import texts
from tests.integration.conftest import Client
from tests.model_server import call, chunk, model_server, text
from tests.processes import Processes

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def deltas(messages: list[Any], field: str) -> str:
    """Return the joined deltas of one field."""
    chunks = [data["choices"][0]["delta"] for name, data in messages[:-1] if name is None and data["choices"]]
    return "".join(delta.get(field) or "" for delta in chunks)


async def test_a_character_that_the_model_server_cuts_is_whole(processes: Processes, client: Client) -> None:
    """Surrogates in two chunks are one character in content, reasoning and arguments, also in the next request."""
    url = await processes.frontend()
    async with model_server() as model:
        own_call = call(
            index=0, id="c1", type="function", function={"name": "calculator", "arguments": '{"x": "\ud83d'}
        )
        client_call = call(index=0, id="c2", type="function", function={"name": "look", "arguments": '{"x": "\ud83d'})
        rest_of_call = call(index=0, function={"arguments": '\ude00"}'})
        model.scripts = [
            [text("one \ud83d"), text("\ude00"), own_call, rest_of_call, chunk({}, "tool_calls"), "[DONE]"],
            [
                chunk({"reasoning_content": "\ud83d"}),
                chunk({"reasoning_content": "\ude01"}),
                text("\ud83d"),
                text("\ude02 two"),
                client_call,
                rest_of_call,
                chunk({}, "tool_calls"),
                "[DONE]",
            ],
        ]
        await processes.worker(OPENAI_BASE_URL=model.url)
        messages = await client.stream(url, "hi", tools=[TOOL])
        said = model.bodies[1]["messages"][1]
    assert deltas(messages, "content") == "one 😀\n\n😂 two"
    assert deltas(messages, "reasoning_content") == "😁"
    chunks = [data["choices"][0]["delta"] for name, data in messages[:-1] if name is None and data["choices"]]
    pieces = [piece["function"]["arguments"] for delta in chunks for piece in delta.get("tool_calls", ())]
    assert json.loads("".join(pieces)) == {"x": "😀"}
    assert said["content"] == "one 😀"
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"x": "😀"}
    started = next(data for name, data in messages if name == "tool_call_start")
    assert json.loads(started["arguments"]) == {"x": "😀"}


async def test_a_character_that_a_program_cuts_is_whole(processes: Processes, client: Client) -> None:
    """A program's character is whole if its bytes came in two reads, in two lines, or as two surrogates."""
    url = await processes.frontend()
    await processes.worker("cut_agents:cut_program")
    assert "".join(texts(await client.stream(url, "hi"))) == "pipe 😀 pair 😀 low 💩 bytes 😀 end \ufffd"
