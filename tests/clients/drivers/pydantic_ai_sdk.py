"""pydantic-ai."""

import asyncio
from importlib.metadata import version
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode


def agent(model: Any = OpenAIChatModel) -> Any:
    """Return a new agent. Each mode needs its own, because each runs on its own event loop."""
    return Agent(model("m1", provider=OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key="none")))


def record(seen: Observation, result: Any) -> None:
    usage = result.usage() if callable(result.usage) else result.usage
    seen.record(usage=counts(usage, "input_tokens", "output_tokens", "total_tokens"))


def streamed(seen: Observation, agent: Any, asked: str, enough: int | None = None) -> None:
    """Stream as in its documentation. Leaving the block stops the run."""

    async def follow() -> None:
        async with agent.run_stream(asked) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                seen.add(piece)
                if seen.pieces == enough:
                    return
            seen.record(finish=result.response.finish_reason)
        record(seen, result)

    asyncio.run(follow())


@mode("loop")
def loop(seen: Observation) -> None:
    streamed(seen, agent(), "streamed")


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, agent(), "replayed")


@mode("helper")
def helper(seen: Observation) -> None:
    """Read the events that a user interface would read."""

    async def follow() -> None:
        async with agent().iter("streamed") as run:
            async for node in run:
                if Agent.is_model_request_node(node):
                    async with node.stream(run.ctx) as stream:
                        async for piece in stream.stream_text(delta=True, debounce_by=None):
                            seen.add(piece)
        assert run.result is not None
        record(seen, run.result)

    asyncio.run(follow())


@mode("whole")
def whole(seen: Observation) -> None:
    result = agent().run_sync("streamed")
    seen.add(result.output)
    seen.record(finish=result.response.finish_reason)
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

    with_tool = agent()
    with_tool.tool_plain(weather)
    streamed(seen, with_tool, "weather")


@mode("responses", needs="responses")
def responses(seen: Observation) -> None:
    streamed(seen, agent(OpenAIResponsesModel), "tools")


if __name__ == "__main__":
    drive(version("pydantic-ai-slim"))
