"""An agent of the OpenAI Agents SDK with a tool. Install it: pip install 'agentstream[openai-agents]'."""

from agents import Agent, function_tool, set_default_openai_api, set_tracing_disabled

from agentstream.adapters.openai_agents import OpenAIAgent

set_default_openai_api("chat_completions")  # the API of OpenAI-compatible servers
set_tracing_disabled(disabled=True)  # otherwise the SDK sends traces to OpenAI


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


agent = OpenAIAgent(Agent(name="weather agent", model="gpt-5-mini", tools=[weather]))
