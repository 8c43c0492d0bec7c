"""The public agent contract: what an agent is given, what it returns.

An agent is ``async def agent(run: Run) -> AgentResult``, or a plain ``def`` (it then runs in a thread)::

    from agentstream.agents import AgentResult, Run

    async def my_agent(run: Run) -> AgentResult:
        run.emit("tool_call_start", {"tool": "clock", "arguments": "{}"})
        run.write("It is ")          # streamed at once
        run.write("noon.")
        return AgentResult(content="It is noon.")

An agent that never calls ``write`` has its ``content`` replayed word by word. One that does has its text
streamed as written, and that text, not ``content``, is the answer.

A client may bring tools of its own: ``run.request.tools``. To have one called, hand the call back and end::

    async def asks_its_client(run: Run) -> AgentResult:
        run.write_tool_call("get_weather", {"city": "Oslo"})
        return AgentResult(content="")

The client runs the tool and sends its result with the whole conversation, as a new request. What a model thinks
before it answers goes to ``run.write_reasoning``.
"""

from agentstream.agents.contract import Agent, AgentResult, Run, ToolCallWriter, ToolResult
from agentstream.errors import RunCancelled

__all__ = ["Agent", "AgentResult", "Run", "RunCancelled", "ToolCallWriter", "ToolResult"]
