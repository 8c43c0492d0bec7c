"""The older form of tools in chat completions, with the real client: functions, function_call and role function."""

import json
from typing import Any

import openai

from tests.helpers import TIMEOUT_S
from tests.processes import Processes

FUNCTION: Any = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
ASKED: Any = {"role": "user", "content": "How is it?"}


async def test_a_client_of_the_older_form_calls_its_function(processes: Processes) -> None:
    """A client that sends functions gets the call as function_call, streamed or not, and can send its result back."""
    url = await processes.frontend()
    worker = await processes.worker("asks_its_client")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        create = client.chat.completions.create
        whole = await create(model="m1", messages=[ASKED], functions=[FUNCTION])
        chunks = [c async for c in await create(model="m1", messages=[ASKED], functions=[FUNCTION], stream=True)]
        kept = await client.get(f"/chat/completions/{whole.id}", cast_to=type(whole))
        choice, message = whole.choices[0], whole.choices[0].message
        assert message.function_call is not None
        assert (message.function_call.name, message.function_call.arguments) == ("weather", '{"city": "Oslo"}')
        assert (choice.finish_reason, message.content, message.tool_calls) == ("function_call", None, None)
        assert kept == whole
        deltas = (c.choices[0].delta.function_call for c in chunks if c.choices)
        calls = [call for call in deltas if call is not None]
        assert [call.name for call in calls] == ["weather", None]
        assert "".join(call.arguments or "" for call in calls) == '{"city": "Oslo"}'
        assert chunks[-1].choices[0].finish_reason == "function_call"
        await worker.stop()
        await processes.worker("echo_request")
        result: Any = {"role": "function", "name": "weather", "content": "rain"}
        answer = message.model_dump(include={"role", "content", "function_call"})
        final = await create(model="m1", messages=[ASKED, answer, result], functions=[FUNCTION])  # type: ignore[list-item]
    seen = json.loads(final.choices[0].message.content or "")
    assert seen["tools"] == [{"type": "function", "function": FUNCTION}]
    assert seen["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert seen["messages"][2]["tool_call_id"] == seen["messages"][1]["tool_calls"][0]["id"]
    assert seen["messages"][2]["content"] == "rain"
    assert "functions" not in seen
