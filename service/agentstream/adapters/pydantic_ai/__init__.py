"""Runs a pydantic-ai agent. No other folder may import pydantic-ai.

In your own module::

    from agentstream.adapters.pydantic_ai import PydanticAIAgent

    agent = PydanticAIAgent(Agent("openai:gpt-5"))  # AGENTSTREAM_AGENT=my_module:agent

The answer is the streamed text of the agent's model. A structured output is written at the end, as JSON. Options may
depend on the run: ``PydanticAIAgent(agent, deps=lambda run: Deps(run.caller.key_hash))``.

The agent is resumable. The message history is stored before each inference and before the tools of each answer. If the
worker is lost, another one continues with it. An answer that was cut is continued by the model, and a tool that was
interrupted is reported to the model instead of a result.

Calls of tools with ``requires_approval=True``, and of tools that raise ``ApprovalRequired``, are approved or denied by
people: each call is a question of the kind ``approval``. A tool that raises ``CallDeferred`` is a question of the kind
``deferred_tool``; the answer is its result. The agent needs no ``DeferredToolRequests`` in its ``output_type``. A
``HandleDeferredToolCalls`` of the agent is asked first.
"""

from agentstream.errors import missing_extra

try:
    import pydantic_ai  # noqa: F401 -- a missing framework is reported here, whatever is loaded already
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "pydantic-ai")) from exc

from agentstream.adapters.pydantic_ai.agent import PydanticAIAgent
from agentstream.adapters.pydantic_ai.conversation import conversation

__all__ = ["PydanticAIAgent", "conversation"]
