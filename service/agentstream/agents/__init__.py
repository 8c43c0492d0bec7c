"""The agent contract, which users import from ``agentstream``, and the built-in agent; no module here uses Redis.

An agent is ``async def agent(run: Run) -> AgentResult``. It may also be a plain ``def``; it then runs in a thread::

    from agentstream import AgentResult, Run

    async def my_agent(run: Run) -> AgentResult:
        run.emit("tool_call_start", {"tool": "clock", "arguments": "{}"})
        run.emit("tool_call_end", {"tool": "clock", "success": True, "latency": 0.0, "result": "noon"})
        run.write("It is ")          # streamed at once
        run.write("noon.")
        return AgentResult(content="It is noon.")

If an agent calls ``run.write``, the written text is the answer and ``content`` is ignored. If it never calls
``run.write``, the service streams ``content`` word by word.

A client can send its own tools in the request (``run.request.tools``). To call one, the agent writes the call and
returns::

    async def call_client_tool(run: Run) -> AgentResult:
        run.write_tool_call("get_weather", {"city": "Oslo"})
        return AgentResult(content="")

The client runs the tool. It then sends a new request, with the whole conversation and the tool's result.

``run.write_reasoning`` streams the model's reasoning, which clients show apart from the answer.
"""

from agentstream.agents.caller import Caller
from agentstream.agents.checkpoint import EmittedEvent, Restored, resumable, takes_inputs
from agentstream.agents.contract import Agent, AgentResult, ChildRun, Run, ToolResult
from agentstream.agents.tool_calls import RestoredToolCall, ToolCallWriter
from agentstream.errors import AgentError, InterruptTimeout, RunCancelled

__all__ = [
    "Agent",
    "AgentError",
    "AgentResult",
    "Caller",
    "ChildRun",
    "EmittedEvent",
    "InterruptTimeout",
    "Restored",
    "RestoredToolCall",
    "Run",
    "RunCancelled",
    "ToolCallWriter",
    "ToolResult",
    "resumable",
    "takes_inputs",
]
