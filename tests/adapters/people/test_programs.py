"""Programs that ask people, and that take their messages."""

import asyncio
import sys
from typing import Any

import pytest

from agentstream.adapters.command import CommandAgent
from agentstream.agents import Run
from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.openai import ChatCompletionRequest
from tests.adapters.people.parked_runs import TIMED_OUT, LosingSink, ParkedRun
from tests.helpers import TIMEOUT_S

PROGRAM = """
import json, sys
job = json.loads(sys.stdin.readline())
def write(**line):
    print(json.dumps(line), flush=True)
def asked(*questions):
    for name, question in questions:
        write(type="interrupt", id=name, **question)
    lines = [json.loads(sys.stdin.readline()) for _ in questions]
    return {line.pop("id"): line for line in lines}
"""
ASKS_TWICE = f"""{PROGRAM}
if job["restored"] is None:
    write(type="text", text="Hello. ")
    write(type="checkpoint", state="greeted")
approval = {{"kind": "approval", "payload": {{"tool": "rm", "arguments": {{}}}}}}
answers = asked(("b", {{"kind": "city"}}), ("a", approval))
write(type="text", text=json.dumps([answers["a"], answers["b"]]))
write(type="result")
"""


def agent_of(script: str, **options: Any) -> CommandAgent:
    return CommandAgent(sys.executable, "-c", script, **{"asks": True, **options})


async def test_a_resumable_program_is_ended_and_asks_again() -> None:
    """A program asks several questions at once; started again, it asks again, reads the answers and goes on."""
    run = ParkedRun(agent_of(ASKS_TWICE, resumable=True))
    questions = await run.attempt(questions=2)
    assert [(question["id"], question["kind"]) for question in questions] == [("b", "city"), ("a", "approval")]
    await run.attempt({"a": {"approve": True}, "b": "Oslo"})
    assert (
        run.answer == 'Hello. [{"type": "answer", "answer": {"approve": true}}, {"type": "answer", "answer": "Oslo"}]'
    )


async def test_a_program_waits_in_place_and_reads_a_time_out() -> None:
    """A program that is not resumable reads the answers in the same process, and a line if nobody answers in time."""
    run = ParkedRun(agent_of(ASKS_TWICE))
    await run.attempt({"a": TIMED_OUT}, in_place="Oslo")
    assert run.answer == 'Hello. [{"type": "answer", "timed_out": true}, {"type": "answer", "answer": "Oslo"}]'


async def test_a_program_that_ends_without_the_answer() -> None:
    """A program that writes its result without reading the answer ends the run, whose question is then void."""
    script = f'{PROGRAM}\nwrite(type="interrupt", id="a", kind="city"); write(type="result", content="done")'
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    async with asyncio.timeout(TIMEOUT_S):
        result = await agent_of(script)(Run("chatcmpl-1", request, LosingSink()))
    assert result.content == "done"


async def test_a_program_takes_messages() -> None:
    """A program reads the messages that people have sent since the last time, once."""
    script = f"""{PROGRAM}
for _ in range(2):
    write(type="take_inputs")
    write(type="text", text=sys.stdin.readline())
write(type="result")
"""
    agent = agent_of(script, asks=False, takes_inputs=True)
    assert agent.takes_inputs
    run = ParkedRun(agent, inputs=[{"role": "user", "content": "stop"}])
    await run.attempt()
    first, second = run.answer.splitlines()
    assert first == '{"type":"input","messages":[{"role":"user","content":"stop"}]}'
    assert second == '{"type":"input","messages":[]}'


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        ('type="interrupt", id="a", kind="k"', {"asks": False}, "asks=True"),
        ('type="take_inputs"', {"asks": False}, "takes_inputs=True"),
        ('type="interrupt", kind="k"', {}, "fields id and kind"),
        ('type="interrupt", id="a", kind="k", color=1', {}, "color"),
        ('type="interrupt", id="a b", kind="k"', {}, "the id 'a b' is not valid"),
    ],
)
async def test_a_wrong_line_is_refused(line: str, options: dict[str, Any], reason: str) -> None:
    """A question that cannot be asked, and a line of a program that reads no answers, end the run with a reason."""
    with pytest.raises(InvalidAgentOutput, match=reason):
        await ParkedRun(agent_of(f"{PROGRAM}\nwrite({line})\nsys.stdin.readline()", **options)).attempt()
