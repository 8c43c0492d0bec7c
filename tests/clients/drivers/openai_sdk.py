"""openai-python, in any release."""

import asyncio
import json
from typing import Any

import openai
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode

Client: Any = openai.OpenAI
client = Client(base_url=f"{BASE_URL}/v1", api_key="none")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="m1", messages=[{"role": "user", "content": text}], **more)


def readme_loop(seen: Observation, scenario: str) -> None:
    """The loop of the README. It expects a choice in every chunk."""
    for chunk in ask(scenario, stream=True):
        seen.add(chunk.choices[0].delta.content or "")
        seen.record(finish=chunk.choices[0].finish_reason, usage=counts(chunk.usage))


@mode("loop")
def loop(seen: Observation) -> None:
    readme_loop(seen, "streamed")


@mode("safe")
def safe(seen: Observation) -> None:
    """A loop that requests usage and accepts OpenAI's usage chunk, which has no choices."""
    for chunk in ask("replayed", stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            seen.add(chunk.choices[0].delta.content)
            seen.record(finish=chunk.choices[0].finish_reason)
        if chunk.usage:
            seen.record(usage=counts(chunk.usage))


@mode("helper")
def helper(seen: Observation) -> None:
    completions = client.chat.completions
    stream = getattr(completions, "stream", None) or client.beta.chat.completions.stream
    with stream(model="m1", messages=[{"role": "user", "content": "streamed"}]) as events:
        for event in events:
            if event.type == "content.delta":
                seen.add(event.delta)
        final = events.get_final_completion()
    assert final.choices[0].message.content == events.current_completion_snapshot.choices[0].message.content
    seen.record(finish=final.choices[0].finish_reason, usage=counts(final.usage))


@mode("whole")
def whole(seen: Observation) -> None:
    completion = ask("streamed")
    seen.add(completion.choices[0].message.content)
    seen.record(finish=completion.choices[0].finish_reason, usage=counts(completion.usage))


@mode("tools")
def tools(seen: Observation) -> None:
    readme_loop(seen, "tools")


@mode("waits")
def waits(seen: Observation) -> None:
    readme_loop(seen, "waits")


@mode("error")
def error(seen: Observation) -> None:
    readme_loop(seen, "error")


@mode("silent")
def silent(seen: Observation) -> None:
    """The asynchronous client; the other modes use the synchronous client."""

    async def follow() -> None:
        client: Any = openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
        asked = [{"role": "user", "content": "silent"}]
        async for chunk in await client.chat.completions.create(model="m1", messages=asked, stream=True):
            seen.add(chunk.choices[0].delta.content or "")
            seen.record(finish=chunk.choices[0].finish_reason, usage=counts(chunk.usage))

    asyncio.run(follow())


@mode("cancel")
def cancel(seen: Observation) -> None:
    stream = ask("slow", stream=True)
    for chunk in stream:
        seen.add(chunk.choices[0].delta.content or "")
        if seen.pieces == CANCEL_AFTER_PIECES:
            break
    stream.close()


@mode("client tools", needs="tools")
def client_tools(seen: Observation) -> None:
    """Run the client's own tool when the model calls it, and send the result."""
    messages: list[Any] = [{"role": "user", "content": "weather"}]
    calls: dict[int, Any] = {}
    reason = None
    for chunk in client.chat.completions.create(model="m1", messages=messages, tools=[WEATHER], stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
            call["arguments"] += part.function.arguments or ""
        reason = chunk.choices[0].finish_reason
    assert reason == "tool_calls", reason
    [call] = calls.values()
    seen.record(call=[call["name"], json.loads(call["arguments"])])
    function = {"name": call["name"], "arguments": call["arguments"]}
    messages += [
        {"role": "assistant", "tool_calls": [{"id": call["id"], "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny in Paris"},
    ]
    for chunk in client.chat.completions.create(model="m1", messages=messages, tools=[WEATHER], stream=True):
        seen.add(chunk.choices[0].delta.content or "")
        seen.record(finish=chunk.choices[0].finish_reason, usage=counts(chunk.usage))


@mode("completions", needs="completions")
def completions(seen: Observation) -> None:
    for chunk in client.completions.create(model="m1", prompt="streamed", stream=True):
        seen.add(chunk.choices[0].text)
        seen.record(finish=chunk.choices[0].finish_reason, usage=counts(chunk.usage))


def responses(seen: Observation) -> None:
    for event in client.responses.create(model="m1", input="tools", stream=True):
        if event.type == "response.output_text.delta":
            seen.add(event.delta)
        elif event.type == "response.completed":
            seen.record(usage=counts(event.response.usage, "input_tokens", "output_tokens", "total_tokens"))


if hasattr(client, "responses"):  # since 1.66
    mode("responses", needs="responses")(responses)


if __name__ == "__main__":
    drive(openai.__version__)
