"""The agent of the client suite: does what the last user message says, always the same way."""

import asyncio
from typing import Any, Final

from agentstream.agents import AgentResult, Run

# What naive clients lose: leading and double spaces, line ends, U+2028, text beyond the BMP.
TEXT: Final = " Grüß Gott,  世界 👋\nsecond line\u2028third\n\n* last "
BEFORE, AFTER = "Let me look.", "It is 391."
USAGE: Final = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
# Of single turns: a client that adds up every usage it finds reports more than USAGE.
TURN_USAGE: Final = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
FAILURE: Final = "broken on purpose"
# Longer than any keepalive (4 s), the empty chunk (30 s) and what bare httpx waits (5 s).
SILENCE_S: Final = 40.0
SLOW_WORDS: Final = 2000  # at 20 a second: nobody waits for their end
ANSWER_JSON: Final = '{"city": "Paris", "population": 2100000}'


async def play(run: Run) -> AgentResult:
    """Play the scenario named by the last user message."""
    asked = next(message.text for message in reversed(run.request.messages) if message.role == "user")
    # @ai-sdk/openai writes the roles into a completion's prompt: "user:\n...".
    scenario = next(word for word in asked.split() if not word.endswith(":"))
    metadata = dict(USAGE)
    if scenario == "replayed":
        return AgentResult(TEXT, metadata=metadata)
    if scenario == "streamed":
        for piece in TEXT.splitlines(keepends=True):
            run.write(piece)
            await asyncio.sleep(0.01)
    elif scenario in {"tools", "silent"}:
        await _with_a_tool(run, SILENCE_S if scenario == "silent" else 0)
    elif scenario == "error":
        run.write(BEFORE)
        raise RuntimeError(FAILURE)
    elif scenario == "slow":
        run.write(run.id)  # tells the suite which run a client stopped, whatever that client shows of ids
        for number in range(SLOW_WORDS):
            run.write(f" {number}")
            await asyncio.sleep(0.05)
    elif scenario == "weather":
        _with_a_tool_of_the_client(run)
    elif scenario in {"json", "silent-json"}:
        await asyncio.sleep(SILENCE_S if scenario == "silent-json" else 0)
        return _structured(run)
    else:
        message = f"no such scenario: {asked!r}"
        raise ValueError(message)
    return AgentResult("", metadata=metadata)


def _with_a_tool_of_the_client(run: Run) -> None:
    """Have the client's first tool called; once its result is there, repeat that."""
    last = run.request.messages[-1]
    if last.role == "tool":
        run.write(f"It is {last.text}.")
    else:
        _call(run, "weather", '{"city": "Paris"}')


def _call(run: Any, tool: str, arguments: str) -> None:
    """Hand the client a call of its tool, in pieces, as models do."""
    call = run.write_tool_call(tool, arguments[:5])
    call.write(arguments[5:])


def _structured(run: Run) -> AgentResult:
    """Answer in JSON: as the arguments of the client's tool, if it brought one to make sure of that."""
    tools = getattr(run.request, "tools", None)
    if not tools:
        return AgentResult(ANSWER_JSON, metadata=USAGE)
    _call(run, tools[0].function.name, ANSWER_JSON)
    return AgentResult("", metadata=USAGE)


async def _with_a_tool(run: Run, tool_s: float) -> None:
    """Write, use a tool that takes its time without a word, write again; with every event there is."""
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
