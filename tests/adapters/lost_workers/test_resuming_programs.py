"""Resumable programs without a worker: they are killed after each event, and continue."""

import json
import sys

import pytest

from agentstream.adapters.command import CommandAgent
from agentstream.agents import Restored
from agentstream.errors import InvalidAgentOutput
from agentstream.testing import run_agent_async, run_agent_with_kills_async
from tests.adapters.counting_model import numbers

PROGRAM = """
import json, sys
job = json.loads(sys.stdin.readline())
restored = job["restored"] or {"state": None, "text": "", "events": [], "tool_calls": []}
def write(**line):
    print(json.dumps(line), flush=True)
reached = (restored["state"] or 0) + restored["text"].count(" ")
seen = [event["type"] for event in restored["events"]]
if not restored["state"] and not reached:
    if "tool_call_start" not in seen:
        write(type="tool_call_start", tool="t", tool_call_id="1")
    if "tool_call_end" not in seen:
        write(type="tool_call_end", tool="t", tool_call_id="1", success=True, latency=0, result="r")
for number in range(reached + 1, 5):
    write(type="text", text=f"{number} ")
    if number == 2:
        write(type="checkpoint", state=number)
write(type="result")
"""


async def test_a_program_continues_at_every_event() -> None:
    """Wherever a resumable program is killed, it finds in ``restored`` how far it came, and its answer is whole."""
    agent = CommandAgent(sys.executable, "-c", PROGRAM, resumable=True)
    runs = await run_agent_with_kills_async(agent, "hi", idempotent_tools=["t"])
    assert {run.outcome.text.replace("\n\n", "") for run in runs} == {numbers(4)}


async def test_a_program_keeps_the_results_of_its_tools() -> None:
    """The results of tools before a checkpoint are part of the answer of a program that writes no text."""
    script = """
import json, sys
job = json.loads(sys.stdin.readline())
if not job["restored"]:
    print(json.dumps({"type": "tool_call_end", "tool": "t", "success": True, "latency": 0, "result": "r"}))
    print(json.dumps({"type": "checkpoint", "state": {"a": [1]}}), flush=True)
print(json.dumps({"type": "result", "content": json.dumps(job["restored"] and job["restored"]["state"])}))
"""
    agent = CommandAgent(sys.executable, "-c", script, resumable=True)
    saved = {"adapter": "command", "state": {"a": [1]}, "tool_results": [["t", "r", True, 0]]}
    outcome = await run_agent_async(agent, "hi", restored=Restored(state=saved))
    assert json.loads(outcome.result.content) == {"a": [1]}
    assert [(each.tool_name, each.content) for each in outcome.result.tool_results] == [("t", "r")]


async def test_a_checkpoint_line_without_a_state_is_refused() -> None:
    """A checkpoint line needs a state; the error shows the line."""
    agent = CommandAgent("sh", "-c", """echo '{"type":"checkpoint"}'""", resumable=True)
    with pytest.raises(InvalidAgentOutput, match='checkpoint without a "state"'):
        await run_agent_async(agent, "hi")
