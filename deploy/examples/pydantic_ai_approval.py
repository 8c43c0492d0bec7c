"""A pydantic-ai agent that asks people before it sends. Install it: pip install 'agentstream[pydantic-ai]'."""

from pydantic_ai import Agent

from agentstream.adapters.pydantic_ai import PydanticAIAgent

mail_agent = Agent("openai-chat:gpt-5-mini", name="mail agent", defer_model_check=True)


@mail_agent.tool_plain(requires_approval=True)  # waits, without holding a worker
def send_mail(to: str) -> str:
    """Send a mail to a person."""
    return f"sent to {to}"


agent = PydanticAIAgent(mail_agent)
