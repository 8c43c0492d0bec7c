"""The older completions API, with real processes and the real client."""

import openai
import pytest

from tests.integration.conftest import Client
from tests.processes import Processes

COMPLETIONS = "/v1/completions"


async def test_the_openai_client_completes_a_prompt(processes: Processes) -> None:
    """The client gets the agent's text and usage, streamed and not, and a stream without agent events."""
    url = await processes.frontend()
    await processes.worker("numbered")
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    async with client:
        whole = await client.completions.create(model="m1", prompt="a")
        chunks = [chunk async for chunk in await client.completions.create(model="m1", prompt=["a"], stream=True)]
    assert whole.id.startswith("cmpl-")
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 47
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].text.startswith("a:0 a:1 ")
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert {chunk.object for chunk in chunks} == {"text_completion"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1]]}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "background": True}, "background"),
    ],
)
async def test_a_request_that_one_text_cannot_answer_is_refused(
    processes: Processes, client: Client, fields: dict[str, object], param: str
) -> None:
    """A field that asks for more than one text, or for an unsupported feature, gets 400, and the error names it."""
    url = await processes.frontend()
    async with client.session.post(url + COMPLETIONS, json={"model": "m1", **fields}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_a_failed_run_ends_the_stream_with_an_error(processes: Processes, client: Client) -> None:
    """The stream of a failed run ends with a chunk that contains a sentence about the error and ``agent_error``."""
    url = await processes.frontend()
    await processes.worker("misbehaving")
    body = {"model": "m1", "prompt": "raises", "stream": True}
    async with client.session.post(url + COMPLETIONS, json=body) as response:
        stream = (await response.read()).decode()
    assert '"text":"Sorry, an error occurred: ' in stream
    assert '"agent_error":{"type":"server_error"' in stream
    assert stream.endswith("data: [DONE]\n\n")
