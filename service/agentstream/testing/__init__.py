"""Runs an agent in a test, without Redis and without other processes.

In a plain test::

    from agentstream.testing import run_agent

    def test_greeting():
        assert run_agent(my_agent, "hi").text == "Hello!"

In an async test: ``outcome = await run_agent_async(my_agent, "hi")``.

A worker's own code calls the agent. So every shape of agent works, a wrong result or event is refused as in a worker,
and the text is the text that a client gets.

To test that a ``resumable`` agent continues when its worker is lost::

    from agentstream.testing import run_agent_with_kills

    def test_nothing_is_lost():
        run_agent_with_kills(my_agent, "count to ten")
"""

from agentstream.agents import Caller, EmittedEvent, Restored
from agentstream.testing.kills import KilledRun, run_agent_with_kills, run_agent_with_kills_async
from agentstream.testing.outcome import AgentOutcome, ToolCall
from agentstream.testing.running import run_agent, run_agent_async

__all__ = [
    "AgentOutcome",
    "Caller",
    "EmittedEvent",
    "KilledRun",
    "Restored",
    "ToolCall",
    "run_agent",
    "run_agent_async",
    "run_agent_with_kills",
    "run_agent_with_kills_async",
]
