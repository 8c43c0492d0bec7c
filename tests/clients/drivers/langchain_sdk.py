"""langchain-openai."""

import asyncio
from importlib.metadata import version
from typing import Any

from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode

model: Any = ChatOpenAI(base_url=f"{BASE_URL}/v1", api_key="none", model="m1")


def record(seen: Observation, message: Any) -> None:
    seen.record(
        finish=message.response_metadata.get("finish_reason"),
        usage=counts(message.usage_metadata, "input_tokens", "output_tokens", "total_tokens"),
    )


def streamed(seen: Observation, model: Any, asked: Any) -> Any:
    """The loop of its documentation. LangChain adds the chunks to get the complete message."""
    whole: Any = None
    for chunk in model.stream(asked):
        seen.add(chunk.text)
        whole = chunk if whole is None else whole + chunk
    assert isinstance(whole, AIMessageChunk)
    record(seen, whole)
    return whole


@mode("loop")
def loop(seen: Observation) -> None:
    streamed(seen, model, "streamed")


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, model.bind(stream_usage=True), "replayed")


@mode("helper")
def helper(seen: Observation) -> None:
    """Read the events of a runnable."""

    async def follow() -> None:
        async for event in model.astream_events("streamed", version="v2"):
            if event["event"] == "on_chat_model_stream":
                seen.add(event["data"]["chunk"].text)
            elif event["event"] == "on_chat_model_end":
                record(seen, event["data"]["output"])

    asyncio.run(follow())


@mode("whole")
def whole(seen: Observation) -> None:
    message = model.invoke("streamed")
    seen.add(message.text)
    record(seen, message)


@mode("tools")
def tools(seen: Observation) -> None:
    streamed(seen, model, "tools")


@mode("waits")
def waits(seen: Observation) -> None:
    streamed(seen, model, "waits")


@mode("error")
def error(seen: Observation) -> None:
    streamed(seen, model, "error")


@mode("silent")
def silent(seen: Observation) -> None:
    streamed(seen, model, "silent")


@mode("cancel")
def cancel(seen: Observation) -> None:
    stream = model.stream("slow")
    for chunk in stream:
        seen.add(chunk.text)
        if seen.pieces == CANCEL_AFTER_PIECES:
            break
    stream.close()


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


@mode("client tools", needs="tools")
def client_tools(seen: Observation) -> None:
    bound = model.bind_tools([weather])
    asked: list[Any] = [HumanMessage("weather")]
    message = streamed(Observation(), bound, asked)
    [call] = message.tool_calls
    seen.record(call=[call["name"], call["args"]])
    asked += [message, ToolMessage(weather(**call["args"]), tool_call_id=call["id"])]
    streamed(seen, bound, asked)


@mode("responses", needs="responses")
def responses(seen: Observation) -> None:
    other: Any = ChatOpenAI(base_url=f"{BASE_URL}/v1", api_key="none", model="m1", use_responses_api=True)
    whole: Any = None
    for chunk in other.stream("tools"):
        seen.add(chunk.text)
        whole = chunk if whole is None else whole + chunk
    seen.record(usage=counts(whole.usage_metadata, "input_tokens", "output_tokens", "total_tokens"))


if __name__ == "__main__":
    drive(version("langchain-openai"))
