"""Runs an agent of the OpenAI Agents SDK. No other folder may import the SDK.

In your own module::

    from agentstream.adapters.openai_agents import OpenAIAgent

    agent = OpenAIAgent(Agent(name="Assistant"))  # AGENTSTREAM_AGENT=my_module:agent

The answer is the streamed text of the agent's model, and of the agents that it hands off to. For a structured output
the answer is the JSON that the model wrote. The SDK sends traces to OpenAI; to prevent this, call
``agents.set_tracing_disabled(True)``. Options may depend on the run: ``OpenAIAgent(agent, context=lambda run: ...)``.

The first agent hands off to others as to sub-agents: their events have the field ``agent_path`` with their name, and
the event ``agent_handoff`` says who hands off to whom. An agent as a tool shows only its call, because the SDK does not
show what it does. To show it, call it with a child of the run in a tool of your own: ``OpenAIAgent(helper)(child)``.

The agent is resumable, unless the conversation is kept elsewhere: in a session or by OpenAI. The items of the
conversation are stored before and after each inference. If the worker is lost, another one continues with them. An
answer that was cut is continued by the model. The model is told which tools were interrupted or not run.

Calls of tools with ``needs_approval``, also those of other agents and of agents as tools, are approved or denied by
people: each call is a question of the kind ``approval``. The reason of a denial is the result that the model reads. The
SDK's RunState is stored before people are asked, without the ``context``, which each attempt makes anew.
"""

from agentstream.errors import missing_extra

try:
    import agents  # noqa: F401 -- a missing framework is reported here, whatever is loaded already
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "openai-agents")) from exc

from agentstream.adapters.openai_agents.agent import OpenAIAgent
from agentstream.adapters.openai_agents.conversation import conversation

__all__ = ["OpenAIAgent", "conversation"]
