"""An agent that puts the keys of its environment, in many encodings, into everything that an agent can produce."""

import base64
import json
import logging
import os
from urllib.parse import quote

from agentstream.agents import AgentResult, Run, ToolResult

log = logging.getLogger("my_agent")


def _quoted(secret: str) -> str:
    """Return the secret in the encodings of libraries."""
    data = f"Bearer {secret}".encode()
    encodings = [repr(data), json.dumps(secret), quote(secret, safe=""), base64.b64encode(data).decode(), data.hex()]
    return " ".join([*encodings, base64.b64encode(data).decode().rstrip("="), repr(repr(secret))])


async def leak(run: Run) -> AgentResult:
    """Fail, answer or call a tool, according to the request, with every secret in the text."""
    secrets = (os.environ["OPENAI_API_KEY"], os.environ["MY_SERVICE_API_KEY"], "hunter2hunter2")
    text = "quoted: " + " ".join(map(_quoted, secrets))
    how = run.request.messages[-1].text
    log.warning("the secrets are %s", text, extra={"field": text})
    run.emit("agent_turn_start", {"agent": "leaky", "input": text})
    run.emit("tool_call_start", {"tool": "leak", "arguments": text})
    run.emit("tool_call_end", {"tool": "leak", "success": False, "latency": 0.0, "result": text})
    if how == "fail":
        raise ValueError(text)
    if how == "header":
        message = f"Illegal header value b'Bearer {os.environ['UNKNOWN']}\\n'"
        raise ValueError(message)
    return AgentResult(text, [ToolResult("leak", text)])
