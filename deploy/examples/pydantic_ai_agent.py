"""A pydantic-ai agent with a tool. Install it: pip install 'agentstream[pydantic-ai]'."""

from pydantic_ai import Agent

from agentstream.adapters.pydantic_ai import PydanticAIAgent

weather_agent = Agent("openai-chat:gpt-5-mini", name="weather agent", defer_model_check=True)


@weather_agent.tool_plain
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


agent = PydanticAIAgent(weather_agent)
