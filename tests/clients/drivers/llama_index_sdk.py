"""llama-index with OpenAILike: chat, and legacy completions (its default)."""

import asyncio
import gc
from importlib.metadata import version
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode

model: Any = OpenAILike(model="m1", api_base=f"{BASE_URL}/v1", api_key="none", is_chat_model=True)


def record(seen: Observation, part: Any) -> None:
    choices = part.raw.choices
    seen.record(finish=choices[0].finish_reason if choices else None, usage=counts(part.raw.usage))


def streamed(seen: Observation, parts: Any) -> None:
    for part in parts:
        seen.add(part.delta)
        record(seen, part)


def asked(text: str) -> list[Any]:
    return [ChatMessage(role="user", content=text)]


@mode("loop")
def loop(seen: Observation) -> None:
    streamed(seen, model.stream_chat(asked("streamed")))


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, model.stream_chat(asked("replayed"), stream_options={"include_usage": True}))


@mode("helper")
def helper(seen: Observation) -> None:
    """A text completion, for which the client sends a chat request."""
    streamed(seen, model.stream_complete("streamed"))


@mode("whole")
def whole(seen: Observation) -> None:
    answer = model.chat(asked("streamed"))
    seen.add(answer.message.content)
    record(seen, answer)


@mode("tools")
def tools(seen: Observation) -> None:
    streamed(seen, model.stream_chat(asked("tools")))


@mode("waits")
def waits(seen: Observation) -> None:
    streamed(seen, model.stream_chat(asked("waits")))


@mode("error")
def error(seen: Observation) -> None:
    streamed(seen, model.stream_chat(asked("error")))


@mode("silent")
def silent(seen: Observation) -> None:
    async def follow() -> None:
        async for part in await model.astream_chat(asked("silent")):
            seen.add(part.delta)
            record(seen, part)

    asyncio.run(follow())


@mode("cancel")
def cancel(seen: Observation) -> None:
    """Stop by deleting the stream, the only way. The connection closes when Python collects the object."""
    parts = model.stream_chat(asked("slow"))
    for part in parts:
        seen.add(part.delta)
        if seen.pieces == CANCEL_AFTER_PIECES:
            break
    del parts, part
    gc.collect()


@mode("completions", needs="completions")
def completions(seen: Observation) -> None:
    default: Any = OpenAILike(model="m1", api_base=f"{BASE_URL}/v1", api_key="none")
    for part in default.stream_complete("streamed"):
        seen.add(part.delta)
        seen.record(usage=counts(part.raw.usage))


if __name__ == "__main__":
    drive(version("llama-index-llms-openai-like"))
