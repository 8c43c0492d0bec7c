"""Agents that fail in the way that the last message names. Worker processes import this module by its name."""

import asyncio

import httpx2
import openai

from agentstream import AgentError, AgentResult, Run


async def failing(run: Run) -> AgentResult:
    """Raise an AgentError for ``status STATUS CODE TEXT``, an SDK's error for ``sdk STATUS TEXT``, else a plain one."""
    kind, _, rest = run.request.messages[-1].text.partition(" ")
    if kind == "status":
        status, code, text = rest.split(" ", 2)
        raise AgentError(text, code=code, status=int(status))
    if kind == "sdk":
        status, text = rest.split(" ", 1)
        response = httpx2.Response(int(status), request=httpx2.Request("POST", "http://model/v1"))
        message = f"Error code: {status} - {text}"
        raise openai.APIStatusError(message, response=response, body=None)
    raise RuntimeError(run.request.messages[-1].text)


def failing_in_a_thread(run: Run) -> AgentResult:
    """Do the same in a thread."""
    return asyncio.run(failing(run))
