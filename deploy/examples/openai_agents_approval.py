"""An agent of the OpenAI Agents SDK that asks people before it sends.

Install it: pip install 'agentstream[openai-agents]'.
"""

from agents import Agent, function_tool, set_default_openai_api, set_tracing_disabled

from agentstream.adapters.openai_agents import OpenAIAgent

set_default_openai_api("chat_completions")  # the API of OpenAI-compatible servers
set_tracing_disabled(disabled=True)  # otherwise the SDK sends traces to OpenAI


@function_tool(needs_approval=True)  # waits, without holding a worker
def send_mail(to: str) -> str:
    """Send a mail to a person."""
    return f"sent to {to}"


agent = OpenAIAgent(Agent(name="mail agent", model="gpt-5-mini", tools=[send_mail]))
