"""Custom tools, hosted tools and their items in the Responses API, with real processes and the real client."""

import json
from typing import Any

import openai

from tests.helpers import TIMEOUT_S
from tests.integration.conftest import Client
from tests.processes import Processes

PATCH: Any = {"type": "custom", "name": "apply_patch", "format": {"type": "text"}}
HOSTED: Any = [
    {"type": "web_search"},
    {"type": "local_shell"},
    {"type": "mcp", "server_label": "s", "headers": {"k": "v"}},
]
NAMESPACE: Any = {
    "type": "namespace",
    "name": "crm",
    "description": "d",
    "tools": [{"type": "function", "name": "get", "parameters": {"type": "object"}, "strict": False}],
}
ASKED: Any = {"role": "user", "content": "Mend it."}


async def test_a_coding_client_calls_its_custom_tool(processes: Processes) -> None:
    """A client streams a call of its custom tool beside hosted tools, and continues with the output in every way."""
    url = await processes.frontend()
    worker = await processes.worker("asks_its_client")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        create = client.responses.create
        tools = [PATCH, *HOSTED, NAMESPACE]
        events = [event async for event in await create(model="m1", input=[ASKED], tools=tools, stream=True)]
        done = [event for event in events if event.type == "response.custom_tool_call_input.done"]
        deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
        assert [event.input for event in done] == ["".join(deltas)] == ['{"city": "Oslo"}']
        last = events[-1]
        assert last.type == "response.completed"
        response = last.response
        _, call = response.output
        assert call.type == "custom_tool_call"
        assert (call.name, call.input) == ("apply_patch", '{"city": "Oslo"}')
        ignored = response.model_dump()["ignored_tools"]
        assert ignored == [{"type": "web_search"}, {"type": "local_shell"}, {"type": "mcp", "name": "s"}]
        assert [tool.type for tool in response.tools] == ["custom", "namespace"]
        kept = await client.responses.retrieve(response.id)
        assert kept == response

        await worker.stop()
        await processes.worker("echo_request")
        output: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "patched"}
        reference: Any = {"id": call.id}
        ways: Any = [
            {"input": [ASKED, *response.output, output]},
            {"input": [ASKED, reference, output]},
            {"input": [output], "previous_response_id": response.id},
        ]
        for way in ways:
            answer = await create(model="m1", tools=tools, **way)
            seen = json.loads(answer.output_text)
            function = {"name": "apply_patch", "arguments": json.dumps({"input": call.input}, separators=(",", ":"))}
            assert seen["messages"] == [
                ASKED,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
                },
                {"role": "tool", "tool_call_id": call.call_id, "content": "patched"},
            ], way
            assert [tool["function"]["name"] for tool in seen["tools"]] == ["apply_patch", "crm__get"]


async def test_a_request_fails_only_if_it_forces_a_hosted_tool(processes: Processes, client: Client) -> None:
    """Hosted tools do not fail a request, but a tool_choice that forces one does, and names the field."""
    url = await processes.frontend()
    await processes.worker("whoami")
    sent: dict[str, Any] = {"model": "m1", "input": "x", "tools": HOSTED}
    for choice, status in [(None, 200), ("auto", 200), ("required", 400), ({"type": "web_search_preview"}, 400)]:
        async with client.session.post(f"{url}/v1/responses", json={**sent, "tool_choice": choice}) as response:
            body = await response.json()
            assert response.status == status, body
            if status == 400:
                assert body["error"]["param"] == "tool_choice"
                assert "web_search" in body["error"]["message"]
