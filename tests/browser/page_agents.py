"""Agents for the page tests. A worker process imports this module by name."""

import asyncio
import json
import os
from pathlib import Path

from agentstream import AgentResult, InterruptTimeout, Restored, Run, resumable, takes_inputs

WORDS = [f"word{number} " for number in range(60)]
ANSWER = (
    "Cows of **Oslo**:\n\n1. *Dagros*\n2. `Litago`\n\n```python\nprint('moo')\n```\n\nSee https://example.org/cows."
)

# The answer of the screenshots.
SHOWN = """Two cows are in **Oslo**:

| cow | born | litres a day |
|:--|:-:|--:|
| Dagros | 2019 | 24 |
| Litago | 2021 | 31 |

I could not weigh them: [the scales](https://example.org/scales) do not answer. To ask for them yourself:

```python
cows = herd.find(city="Oslo")  # both of them
print(len(cows), "cows")
```
"""

# Hostile text for every field.
HOSTILE = (
    '<script>window.ran="script"</script><img src=x onerror="window.ran=\'image\'"><svg onload="window.ran=\'svg\'">'
    "<iframe srcdoc=\"<script>parent.ran='frame'</script>\"></iframe><style>*{display:none}</style>"
    "[link](javascript:window.ran='link') [data](data:text/html,<script>parent.ran=1</script>) "
    "[split](java\tscript:alert(1)) ![image](https://example.org/x.png) <javascript:alert(1)> "
    "`<b>code</b>` ${window.ran='template'} {{constructor.constructor('window.ran=1')()}} "
    "\u202eothgirtfel \u200f\u05e9\u05dc\u05d5\u05dd \u2028 \x00 \ufeff " + "w" * 3000 + " " + "[" * 500 + "*" * 500
)


async def gate(name: str) -> None:
    """Wait until the test creates a file with this name in the folder GATES."""
    while not (Path(os.environ["GATES"]) / name).exists():  # noqa: ASYNC110 -- another process creates the file
        await asyncio.sleep(0.01)


async def tools(run: Run) -> AgentResult:
    """Reason, call two tools (one fails) and answer in Markdown."""
    run.emit("agent_turn_start", {"agent": "herd", "input": run.request.messages[-1].text})
    run.emit("inference_start", {"model": "cow-1", "engine": "test"})
    run.write_reasoning("They want cows. ")
    run.write_reasoning("I count them.")
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    run.emit("inference_end", {"model": "cow-1", "usage": usage, "finish_reason": "tool_calls"})
    run.emit("tool_call_start", {"tool": "count", "arguments": {"animal": "cow"}, "tool_call_id": "a"})
    run.emit("tool_call_start", {"tool": "weigh", "arguments": {"animal": "cow"}, "tool_call_id": "b"})
    run.emit("tool_call_end", {"tool": "weigh", "success": False, "latency": 0.5, "result": "no scales"})
    run.emit("tool_call_end", {"tool": "count", "success": True, "latency": 1.5, "result": "two cows"})
    for line in ANSWER.splitlines(keepends=True):
        run.write(line)
    return AgentResult("", metadata={"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50})


async def halves(run: Run) -> AgentResult:
    """Write half of the words, wait for the gate ``rest``, and write the others."""
    run.emit("tool_call_start", {"tool": "look", "arguments": "{}"})
    run.emit("tool_call_end", {"tool": "look", "success": True, "latency": 0.25, "result": "seen"})
    for word in WORDS[:30]:
        run.write(word)
    await gate("rest")
    for word in WORDS[30:]:
        run.write(word)
    return AgentResult("")


@resumable
async def steady(run: Run) -> AgentResult:
    """Do the same as ``halves``, but continue after the words that the client has, if another worker was lost."""
    restored = run.restored or Restored()
    if not restored.events:
        run.emit("tool_call_start", {"tool": "look", "arguments": "{}"})
        run.emit("tool_call_end", {"tool": "look", "success": True, "latency": 0.25, "result": "seen"})
        run.emit("inference_start", {"model": "herd-1", "engine": "demo"})
    seen = len(restored.text.split())
    for word in WORDS[seen:30]:
        run.write(word)
    await gate("rest")
    for word in WORDS[max(seen, 30) :]:
        run.write(word)
    return AgentResult("")


async def endless(run: Run) -> AgentResult:
    """Write until the run is cancelled."""
    while True:
        run.write("on and ")
        await asyncio.sleep(0.02)


async def slow_tool(run: Run) -> AgentResult:
    """Run a tool until the gate ``tool`` opens, answer, and end when the gate ``rest`` opens."""
    run.emit("tool_call_start", {"tool": "sql_query", "arguments": {"query": "select 1"}, "tool_call_id": "a"})
    await gate("tool")
    run.emit(
        "tool_call_end", {"tool": "sql_query", "success": True, "latency": 2.0, "result": "1", "tool_call_id": "a"}
    )
    run.write("The answer is 1.")
    await gate("rest")
    run.write("\n\nThat is all.")
    return AgentResult("")


async def flaky(_run: Run) -> AgentResult:
    """Fail until the gate ``works`` opens."""
    if not (Path(os.environ["GATES"]) / "works").exists():
        message = "the herd has run away"
        raise RuntimeError(message)
    return AgentResult("The herd is back.")


async def hostile(run: Run) -> AgentResult:
    """Put hostile text into every field."""
    run.emit("agent_turn_start", {"agent": HOSTILE, "input": HOSTILE})
    run.emit("inference_start", {"model": HOSTILE, "engine": HOSTILE})
    run.write_reasoning(HOSTILE)
    run.emit("inference_end", {"model": HOSTILE, "finish_reason": HOSTILE, "usage": {"total_tokens": HOSTILE}})
    run.emit("tool_call_start", {"tool": HOSTILE, "arguments": {HOSTILE: HOSTILE}, "tool_call_id": HOSTILE})
    run.emit("tool_call_end", {"tool": HOSTILE, "success": False, "latency": HOSTILE, "result": HOSTILE})
    for odd in (
        {},
        {"arguments": None, "model": None},
        {"arguments": ["x"], "latency": -1, "result": {"__proto__": 1}},
    ):
        run.emit("tool_call_start", {"tool": HOSTILE, **odd})
        run.emit("tool_call_end", {"tool": HOSTILE, **odd})
        run.emit("inference_end", odd)
    for line in ("", "# ", "> ", "- ", "1. ", "| a | b |\n|---|---|\n| ", "```"):
        run.write(f"{line}{HOSTILE}\n\n")
    raise RuntimeError(HOSTILE)


@resumable
async def shown(run: Run) -> AgentResult:
    """Play the run of the screenshots, at a speed that gives plausible numbers."""
    question = run.request.messages[-1].text
    if question.startswith("Count"):
        return await steady(run)
    if question.startswith("Mail"):
        run.write(await _ask_approval(run))
        return AgentResult("")
    run.emit("agent_turn_start", {"agent": "herdsman"})
    run.emit("inference_start", {"model": "herd-1", "engine": "demo"})
    for thought in ("They ask for cows in Oslo: ", "I look them up, ", "and weigh them."):
        run.write_reasoning(thought)
        await asyncio.sleep(0.12)
    usage = {"prompt_tokens": 214, "completion_tokens": 31, "total_tokens": 245}
    run.emit("inference_end", {"model": "herd-1", "usage": usage, "finish_reason": "tool_calls"})
    run.emit("tool_call_start", {"tool": "find_cows", "arguments": {"city": "Oslo"}, "tool_call_id": "a"})
    run.emit("tool_call_start", {"tool": "weigh", "arguments": {"cow": "Dagros"}, "tool_call_id": "b"})
    await asyncio.sleep(0.42)
    found = {"tool": "find_cows", "success": True, "latency": 0.418, "result": '["Dagros", "Litago"]'}
    run.emit("tool_call_end", {**found, "tool_call_id": "a"})
    failed = {"tool": "weigh", "success": False, "latency": 0.421, "result": "the scales do not answer"}
    run.emit("tool_call_end", {**failed, "tool_call_id": "b"})
    run.emit("inference_start", {"model": "herd-1", "engine": "demo"})
    for word in SHOWN.split(" "):
        run.write(f"{word} ")
        await asyncio.sleep(0.03)
    usage = {"prompt_tokens": 290, "completion_tokens": 52, "total_tokens": 342}
    run.emit("inference_end", {"model": "herd-1", "usage": usage, "finish_reason": "stop"})
    return AgentResult("", metadata={"prompt_tokens": 504, "completion_tokens": 83, "total_tokens": 587})


async def picked(run: Run) -> AgentResult:
    """Run the agent that the question names; ``echo`` for other questions."""
    agents = {
        "tools": tools,
        "halves": halves,
        "endless": endless,
        "hostile": hostile,
        "slow tool": slow_tool,
        "flaky": flaky,
    }
    return await agents.get(run.request.messages[-1].text, echo)(run)


async def echo(run: Run) -> AgentResult:
    """Answer with the number of messages and the text of the last one."""
    return AgentResult(f"{len(run.request.messages)} {run.request.messages[-1].text}")


FORM = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "title": "City", "minLength": 2},
        "days": {"type": "integer", "title": "Days", "minimum": 1, "maximum": 9},
        "budget": {"type": "number", "description": "In euros"},
        "class": {"type": "string", "enum": ["a", "b"], "enumNames": ["First", "Second"]},
        "hotel": {"type": "boolean"},
    },
    "required": ["city", "days", "hotel"],
}


async def _ask_approval(run: Run) -> str:
    mail = {"to": "ada@example.org", "subject": "Two cows in Oslo", "body": "Dagros gives 24 litres, Litago 31."}
    if run.restored is None:
        run.write("I have written the mail.")
    answer = await run.interrupt("approval", {"tool": "send_mail", "arguments": json.dumps(mail)})
    reason = f" because {answer['reason']}" if "reason" in answer else ""
    return f" It was {'sent' if answer['approve'] else 'not sent'}{reason}."


async def _ask_form(run: Run) -> str:
    return json.dumps(await run.interrupt("form", {"message": "Where do you want to go?"}, schema=FORM))


async def _ask_both(run: Run) -> str:
    first, second = await asyncio.gather(
        run.interrupt("question", {"message": "Which cow?"}), run.interrupt("question", {"message": "Which field?"})
    )
    return f"{first} on {second}"


async def _ask_briefly(run: Run) -> str:
    try:
        await run.interrupt("question", {"message": "Quick?"}, timeout_s=2)
    except InterruptTimeout:
        return "Nobody was there."
    return "Somebody was there."


@resumable
async def asking(run: Run) -> AgentResult:
    """Ask what the question names, and write the answer."""
    asks = {"approval": _ask_approval, "form": _ask_form, "both": _ask_both, "briefly": _ask_briefly}
    run.write(await asks[run.request.messages[-1].text](run))
    return AgentResult("")


async def waiting(run: Run) -> AgentResult:
    """Ask in the same way; the run stays in its worker, because this agent is not resumable."""
    return await asking(run)


@takes_inputs
async def listening(run: Run) -> AgentResult:
    """Write the messages that arrive, until one of them says stop."""
    if run.request.messages[-1].text != "listen":
        return await echo(run)
    run.write("I listen.")
    while True:
        for message in await run.inputs():
            if message.text == "stop":
                return AgentResult("")
            run.write(f"Heard {message.text}.")
        await asyncio.sleep(0.02)


@takes_inputs
async def deaf(run: Run) -> AgentResult:
    """Take no message until the gate ``rest`` opens, and end then."""
    if run.request.messages[-1].text != "ignore me":
        return await echo(run)
    run.write("La la.")
    await gate("rest")
    return AgentResult("")
