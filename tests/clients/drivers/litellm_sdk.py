"""litellm."""

import json
from importlib.metadata import version
from typing import Any

import litellm
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(asked: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    return litellm.completion(model="openai/m1", api_base=f"{BASE_URL}/v1", api_key="none", messages=messages, **more)


def streamed(seen: Observation, asked: Any, **more: Any) -> list[Any]:
    chunks = []
    for chunk in ask(asked, stream=True, **more):
        chunks.append(chunk)
        if chunk.choices:
            seen.add(chunk.choices[0].delta.content)
            seen.record(finish=chunk.choices[0].finish_reason)
        if getattr(chunk, "usage", None):
            seen.record(usage=counts(chunk.usage))
    return chunks


@mode("loop")
def loop(seen: Observation) -> None:
    """The loop of its documentation. litellm reports usage only on request."""
    for chunk in ask("streamed", stream=True):
        seen.add(chunk.choices[0].delta.content or "")
        seen.record(finish=chunk.choices[0].finish_reason)


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, "replayed", stream_options={"include_usage": True})


@mode("helper")
def helper(seen: Observation) -> None:
    """Rebuild the completion from the chunks. Without a request for usage, litellm counts the tokens itself."""
    chunks = list(ask("streamed", stream=True, stream_options={"include_usage": True}))
    whole: Any = litellm.stream_chunk_builder(chunks)
    seen.add(whole.choices[0].message.content)
    seen.record(finish=whole.choices[0].finish_reason, usage=counts(whole.usage))


@mode("whole")
def whole(seen: Observation) -> None:
    completion = ask("streamed")
    seen.add(completion.choices[0].message.content)
    seen.record(finish=completion.choices[0].finish_reason, usage=counts(completion.usage))


@mode("tools")
def tools(seen: Observation) -> None:
    streamed(seen, "tools", stream_options={"include_usage": True})


@mode("waits")
def waits(seen: Observation) -> None:
    streamed(seen, "waits")


@mode("error")
def error(seen: Observation) -> None:
    streamed(seen, "error")


@mode("silent")
def silent(seen: Observation) -> None:
    streamed(seen, "silent", stream_options={"include_usage": True})


@mode("cancel")
def cancel(seen: Observation) -> None:
    stream = ask("slow", stream=True)
    for chunk in stream:
        seen.add(chunk.choices[0].delta.content)
        if seen.pieces == CANCEL_AFTER_PIECES:
            break
    stream.completion_stream.close()


@mode("client tools", needs="tools")
def client_tools(seen: Observation) -> None:
    messages: list[Any] = [{"role": "user", "content": "weather"}]
    whole: Any = litellm.stream_chunk_builder(streamed(Observation(), messages, tools=[WEATHER]))
    [call] = whole.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    seen.record(call=[call.function.name, arguments])
    result = {"role": "tool", "tool_call_id": call.id, "content": f"sunny in {arguments['city']}"}
    streamed(seen, [*messages, whole.choices[0].message, result], tools=[WEATHER])


if __name__ == "__main__":
    drive(version("litellm"))
