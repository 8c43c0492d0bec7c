"""openai-agents: chat completions, and its default, responses."""

import asyncio
from importlib.metadata import version
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from openai import AsyncOpenAI
from reporting import BASE_URL, ENOUGH, Seen, counts, drive, mode


def agent(kind: Any = OpenAIChatCompletionsModel, **more: Any) -> Any:
    """Return an agent of its own for each mode: they run on different loops."""
    client = AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
    return Agent(name="tester", model=kind(model="m1", openai_client=client), **more)


def tell(seen: Seen, result: Any) -> None:
    seen.tell(usage=counts(result.context_wrapper.usage, "input_tokens", "output_tokens", "total_tokens"))


def streamed(seen: Seen, agent: Any, asked: str, enough: int | None = None) -> None:
    async def follow() -> None:
        result = Runner.run_streamed(agent, asked)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                seen.add(event.data.delta)
                if seen.pieces == enough:
                    result.cancel()
        tell(seen, result)

    asyncio.run(follow())


@mode("loop")
def loop(seen: Seen) -> None:
    streamed(seen, agent(), "streamed")


@mode("safe")
def safe(seen: Seen) -> None:
    streamed(seen, agent(), "replayed")


@mode("whole")
def whole(seen: Seen) -> None:
    result = Runner.run_sync(agent(), "streamed")
    seen.add(result.final_output)
    tell(seen, result)


@mode("tools")
def tools(seen: Seen) -> None:
    streamed(seen, agent(), "tools")


@mode("error")
def error(seen: Seen) -> None:
    streamed(seen, agent(), "error")


@mode("silent")
def silent(seen: Seen) -> None:
    streamed(seen, agent(), "silent")


@mode("cancel")
def cancel(seen: Seen) -> None:
    streamed(seen, agent(), "slow", enough=ENOUGH)


@mode("client tools", needs="tools")
def client_tools(seen: Seen) -> None:
    """It runs the tool and asks again by itself; its usage is that of both requests."""

    def weather(city: str) -> str:
        seen.tell(call=["weather", {"city": city}])
        return f"sunny in {city}"

    streamed(seen, agent(tools=[function_tool(weather)]), "weather")


@mode("responses", needs="responses")
def responses(seen: Seen) -> None:
    streamed(seen, agent(OpenAIResponsesModel), "tools")


if __name__ == "__main__":
    drive(version("openai-agents"))
