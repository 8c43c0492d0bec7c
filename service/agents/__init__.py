"""The public agent contract: what an agent is given, what it returns.

An agent is ``async def agent(run: Run) -> AgentResult``, or a plain ``def`` (it then runs in a thread)::

    from service.agents import AgentResult, Run

    async def my_agent(run: Run) -> AgentResult:
        run.emit("tool_call_start", {"tool": "clock", "arguments": "{}"})
        run.write("It is ")          # streamed at once
        run.write("noon.")
        return AgentResult(content="It is noon.")

An agent that never calls ``write`` has its ``content`` replayed word by word. One that does has its text
streamed as written, and that text, not ``content``, is the answer.
"""

from service.agents.contract import Agent, AgentResult, Run, ToolResult
from service.errors import RunCancelled

__all__ = ["Agent", "AgentResult", "Run", "RunCancelled", "ToolResult"]
