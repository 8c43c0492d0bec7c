"""The agent of the client suite. The last user message names a scenario, which always gives the same events."""

import asyncio
from typing import Any, Final

from agentstream.agents import AgentResult, Run, resumable

# Text that naive clients damage: leading and double spaces, line ends, U+2028, characters outside the BMP.
TEXT: Final = " Grüß Gott,  世界 👋\nsecond line\u2028third\n\n* last "
BEFORE, AFTER = "Let me look.", "It is 391."
USAGE: Final = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
# The usage of single turns. A client that adds up every usage in the stream reports more than USAGE.
TURN_USAGE: Final = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
WAITS: Final = 'Waiting for approval: may I run send_mail with {"to": "bob"}?'
FAILURE: Final = "broken on purpose"
# Longer than the interval of keepalives (4 s) and of empty chunks (30 s), and than the read timeout of httpx (5 s).
SILENCE_S: Final = 40.0
SLOW_WORDS: Final = 2000  # at 20 words/s; every client cancels before the end
ANSWER_JSON: Final = '{"city": "Paris", "population": 2100000}'


@resumable
async def play(run: Run) -> AgentResult:
    """Play the scenario that the last user message names."""
    prompt = next(message.text for message in reversed(run.request.messages) if message.role == "user")
    # @ai-sdk/openai writes the role into the prompt of a completion: "user:\n...".
    scenario = next(word for word in prompt.split() if not word.endswith(":"))
    metadata = dict(USAGE)
    if scenario == "replayed":
        return AgentResult(TEXT, metadata=metadata)
    if scenario == "streamed":
        for piece in TEXT.splitlines(keepends=True):
            run.write(piece)
            await asyncio.sleep(0.01)
    elif scenario in {"tools", "silent"}:
        await _use_tool(run, SILENCE_S if scenario == "silent" else 0)
    elif scenario in {"waits", "error"}:
        run.write(BEFORE)
        await _stop(run, scenario)
    elif scenario == "slow":
        run.write(run.id)  # the suite needs the run id, and some clients do not expose it
        for number in range(SLOW_WORDS):
            run.write(f" {number}")
            await asyncio.sleep(0.05)
    elif scenario == "weather":
        _call_client_tool(run)
    elif scenario in {"json", "silent-json"}:
        await asyncio.sleep(SILENCE_S if scenario == "silent-json" else 0)
        return _structured(run)
    else:
        message = f"unknown scenario: {prompt!r}"
        raise ValueError(message)
    return AgentResult("", metadata=metadata)


async def _stop(run: Run, scenario: str) -> None:
    """Wait for a person, or fail."""
    if scenario == "error":
        raise RuntimeError(FAILURE)
    await run.interrupt("approval", {"tool": "send_mail", "arguments": '{"to": "bob"}'})


def _call_client_tool(run: Run) -> None:
    """Call the client's tool. If the request already has its result, answer with the result."""
    last = run.request.messages[-1]
    if last.role == "tool":
        run.write(f"It is {last.text}.")
    else:
        _call(run, "weather", '{"city": "Paris"}')


def _call(run: Any, tool: str, arguments: str) -> None:
    """Write a call of a client tool, with its arguments in two pieces, as models do."""
    call = run.write_tool_call(tool, arguments[:5])
    call.write(arguments[5:])


def _structured(run: Run) -> AgentResult:
    """Answer in JSON. If the client sent a tool for structured output, answer with a call of this tool."""
    tools = getattr(run.request, "tools", None)
    if not tools:
        return AgentResult(ANSWER_JSON, metadata=USAGE)
    _call(run, tools[0].function.name, ANSWER_JSON)
    return AgentResult("", metadata=USAGE)


async def _use_tool(run: Run, tool_s: float) -> None:
    """Write, use a tool that is silent for ``tool_s`` seconds, write again. Emits every kind of event."""
    run.emit("agent_turn_start", {"agent": "play", "input": "what is 17*23?"})
    run.emit("inference_start", {"model": "inner-model", "engine": "none"})
    run.write(BEFORE)
    run.emit("inference_end", {"model": "inner-model", "usage": TURN_USAGE, "id": "inner", "error": None})
    run.emit("tool_call_start", {"tool": "calculator", "arguments": {"expression": "17*23"}})
    await run.drain()
    await asyncio.sleep(tool_s)
    run.emit("tool_call_end", {"tool": "calculator", "success": True, "latency": tool_s, "result": "391"})
    run.emit("inference_start", {"model": "inner-model", "engine": "none"})
    run.write(AFTER)
    run.emit("inference_end", {"model": "inner-model", "usage": TURN_USAGE, "choices": [], "object": "inner"})
