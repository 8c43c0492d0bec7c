"""llama-index, OpenAILike: chat, and its default, the older completions."""

import asyncio
import gc
from importlib.metadata import version
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from reporting import BASE_URL, ENOUGH, Seen, counts, drive, mode

model: Any = OpenAILike(model="m1", api_base=f"{BASE_URL}/v1", api_key="none", is_chat_model=True)


def tell(seen: Seen, part: Any) -> None:
    choices = part.raw.choices
    seen.tell(finish=choices[0].finish_reason if choices else None, usage=counts(part.raw.usage))


def streamed(seen: Seen, parts: Any) -> None:
    for part in parts:
        seen.add(part.delta)
        tell(seen, part)


def asked(text: str) -> list[Any]:
    return [ChatMessage(role="user", content=text)]


@mode("loop")
def loop(seen: Seen) -> None:
    streamed(seen, model.stream_chat(asked("streamed")))


@mode("safe")
def safe(seen: Seen) -> None:
    streamed(seen, model.stream_chat(asked("replayed"), stream_options={"include_usage": True}))


@mode("helper")
def helper(seen: Seen) -> None:
    """A text completion, which it makes of a chat."""
    streamed(seen, model.stream_complete("streamed"))


@mode("whole")
def whole(seen: Seen) -> None:
    answer = model.chat(asked("streamed"))
    seen.add(answer.message.content)
    tell(seen, answer)


@mode("tools")
def tools(seen: Seen) -> None:
    streamed(seen, model.stream_chat(asked("tools")))


@mode("error")
def error(seen: Seen) -> None:
    streamed(seen, model.stream_chat(asked("error")))


@mode("silent")
def silent(seen: Seen) -> None:
    async def follow() -> None:
        async for part in await model.astream_chat(asked("silent")):
            seen.add(part.delta)
            tell(seen, part)

    asyncio.run(follow())


@mode("cancel")
def cancel(seen: Seen) -> None:
    """It has no way to stop but to let go of the stream; the connection closes once Python has collected it."""
    parts = model.stream_chat(asked("slow"))
    for part in parts:
        seen.add(part.delta)
        if seen.pieces == ENOUGH:
            break
    del parts, part
    gc.collect()


@mode("completions", needs="completions")
def completions(seen: Seen) -> None:
    default: Any = OpenAILike(model="m1", api_base=f"{BASE_URL}/v1", api_key="none")
    for part in default.stream_complete("streamed"):
        seen.add(part.delta)
        seen.tell(usage=counts(part.raw.usage))


if __name__ == "__main__":
    drive(version("llama-index-llms-openai-like"))
