"""Asks people whether calls of tools may run. A call that is not approved gets an outcome that the model reads."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from agentstream.agents.contract import Run
from agentstream.agents.interrupts import MAX_PAYLOAD_BYTES
from agentstream.engines.base import EngineToolCall
from agentstream.errors import InterruptTimeout
from agentstream.protocol.interrupts import APPROVAL, NAME
from agentstream.protocol.plain_json import json_bytes
from agentstream.telemetry.masking import mask, mask_json
from agentstream.tools.toolbox import Toolbox

# People do not read more questions at once. It also limits the size of the final chunk, which repeats the questions.
MAX_QUESTIONS: Final = 20


class Approvals:
    """The approvals of one run."""

    def __init__(self, run: Run, toolbox: Toolbox) -> None:
        """``toolbox`` says which tools need approval."""
        self._run = run
        self._toolbox = toolbox

    def needed(self, call: EngineToolCall) -> bool:
        """Return whether a person must approve a call."""
        return self._toolbox.needs_approval(call.name)

    def reason_not_to_ask(self, call: EngineToolCall, count: int) -> str:
        """Return why nobody is asked about a call, which then does not run; an empty text if people are asked.

        ``count`` is the number of questions of the turn so far.
        """
        if fault := self._toolbox.fault(call.name, call.arguments):
            return fault
        start = f"{call.name} was not run: it needs the approval of a person"
        if self._run.agent_path:
            # A sub-agent has no checkpoint. After the answer it would begin again, and ask about another call.
            return f"{start}, which a sub-agent cannot ask for."
        if (size := len(json_bytes(mask_json(_payload(call))))) > MAX_PAYLOAD_BYTES:
            return f"{start}, and its arguments are too long to show: {size} bytes; the limit is {MAX_PAYLOAD_BYTES}."
        if count >= MAX_QUESTIONS:
            return f"{start}, and at most {MAX_QUESTIONS} calls are asked for at once. Call it again later."
        return ""

    async def ask(self, calls: Sequence[EngineToolCall]) -> dict[str, str]:
        """Ask about all calls at once, and return the texts for those that are not approved, by call id.

        A question that an earlier attempt asked has the same id, and so the same answer.
        """
        texts = await asyncio.gather(*map(self._ask, calls))
        return {call.id: text for call, text in zip(calls, texts, strict=True) if text}

    async def _ask(self, call: EngineToolCall) -> str:
        try:
            answer = await self._run.interrupt(APPROVAL, _payload(call), id=question_id(call.id))
        except InterruptTimeout:
            return f"{call.name} was not run: nobody approved it in time."
        if answer["approve"] is True:
            return ""
        reason = mask(str(answer.get("reason") or "")).strip()
        return f"{call.name} was not run: a person denied it{f', and wrote: {reason}' if reason else '.'}"


def question_id(call_id: str) -> str:
    """Return the id of the question about a call. Different calls have different ids."""
    plain = f"{APPROVAL}-{call_id}"
    if NAME.fullmatch(plain):
        return plain
    return f"{APPROVAL}.{hashlib.blake2b(call_id.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def _payload(call: EngineToolCall) -> dict[str, Any]:
    return {"tool": call.name, "arguments": call.arguments, "tool_call_id": call.id}
