"""openai-agents: chat completions, and responses (its default)."""

import asyncio
from importlib.metadata import version
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from openai import AsyncOpenAI
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode


def agent(kind: Any = OpenAIChatCompletionsModel, **more: Any) -> Any:
    """Return a new agent. Each mode needs its own, because each runs on its own event loop."""
    client = AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
    return Agent(name="tester", model=kind(model="m1", openai_client=client), **more)


def record(seen: Observation, result: Any) -> None:
    seen.record(usage=counts(result.context_wrapper.usage, "input_tokens", "output_tokens", "total_tokens"))


def streamed(seen: Observation, agent: Any, asked: str, enough: int | None = None) -> None:
    async def follow() -> None:
        result = Runner.run_streamed(agent, asked)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                seen.add(event.data.delta)
                if seen.pieces == enough:
                    result.cancel()
        record(seen, result)

    asyncio.run(follow())


@mode("loop")
def loop(seen: Observation) -> None:
    streamed(seen, agent(), "streamed")


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, agent(), "replayed")


@mode("whole")
def whole(seen: Observation) -> None:
    result = Runner.run_sync(agent(), "streamed")
    seen.add(result.final_output)
    record(seen, result)


@mode("tools")
def tools(seen: Observation) -> None:
    streamed(seen, agent(), "tools")


@mode("waits")
def waits(seen: Observation) -> None:
    streamed(seen, agent(), "waits")


@mode("error")
def error(seen: Observation) -> None:
    streamed(seen, agent(), "error")


@mode("silent")
def silent(seen: Observation) -> None:
    streamed(seen, agent(), "silent")


@mode("cancel")
def cancel(seen: Observation) -> None:
    streamed(seen, agent(), "slow", enough=CANCEL_AFTER_PIECES)


@mode("client tools", needs="tools")
def client_tools(seen: Observation) -> None:
    """The client runs the tool and sends the second request itself. Its usage is the sum of both requests."""

    def weather(city: str) -> str:
        seen.record(call=["weather", {"city": city}])
        return f"sunny in {city}"

    streamed(seen, agent(tools=[function_tool(weather)]), "weather")


@mode("responses", needs="responses")
def responses(seen: Observation) -> None:
    streamed(seen, agent(OpenAIResponsesModel), "tools")


if __name__ == "__main__":
    drive(version("openai-agents"))
