"""Questions to people that the adapters ask for their frameworks, with ``run.interrupt``."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import orjson

from agentstream.adapters.run_reporter import as_text
from agentstream.agents import Run
from agentstream.errors import InterruptTimeout, InvalidAgentOutput
from agentstream.protocol.interrupts import APPROVAL, NAME
from agentstream.protocol.plain_json import json_bytes

NOBODY_ANSWERED: Final = "nobody answered in time"

_READABLE_CHARS: Final = 40


class Decision(NamedTuple):
    """What people decided about a tool call. ``reason`` is theirs, or says why nobody decided; often empty."""

    approved: bool
    reason: str

    @property
    def for_model(self) -> str:
        """A text for the model, in the place of the result of a tool that was denied."""
        return f"The tool was not run, because it was not approved: {self.reason or 'no reason was given'}"


class QuestionIds:
    """The ids of a run's questions, made from the ids that the framework has for them.

    A framework or a model may use an id again. The second question gets an id of its own, because otherwise the answer
    to the first one would be the answer to both.
    """

    def __init__(self, used: Iterable[str] = ()) -> None:
        """Begin with the ids of the questions so far."""
        self.used = list(used)

    def new(self, framework_id: str) -> str:
        """Return the id of a new question."""
        first = interrupt_id(framework_id)
        found, number = first, 1
        while found in self.used:
            number += 1
            found = interrupt_id(f"{first}.{number}")
        self.used.append(found)
        return found


def interrupt_id(framework_id: str) -> str:
    """Return an id for ``run.interrupt``: the framework's, or one made from it if it has not the right form."""
    if NAME.fullmatch(framework_id):
        return framework_id
    readable = re.sub(r"[^A-Za-z0-9_.:-]", "-", framework_id)[:_READABLE_CHARS]
    return f"ask-{readable}-{_mark(framework_id)}"


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


async def ask_approval(run: Run, question_id: str, tool: str, arguments: object) -> Decision:
    """Ask people whether a tool may run. If nobody answers in time, or if they cannot be asked, it may not."""
    text = as_text(arguments)
    if run.agent_path:  # it has no checkpoints, so its model may use the id again for another call
        question_id = interrupt_id(f"{question_id}.{_mark(f'{tool} {text}')}")
    try:
        answer = await run.interrupt(APPROVAL, {"tool": tool, "arguments": text}, id=question_id)
    except InterruptTimeout:
        return Decision(approved=False, reason=NOBODY_ANSWERED)
    except InvalidAgentOutput as exc:
        return Decision(approved=False, reason=f"people cannot be asked: {exc}")
    return Decision(answer["approve"], answer.get("reason") or "")


async def ask(run: Run, question_id: str, kind: str, payload: object, schema: object = None) -> Any:  # noqa: ANN401 -- JSON
    """Ask people a question of a framework, and return the answer. Raises InterruptTimeout.

    A ``schema`` that ``run.interrupt`` does not support is left out.
    """
    plain = orjson.loads(json_bytes(payload, unknown=str))
    if isinstance(schema, dict):
        supported = {name: value for name, value in schema.items() if name != "additionalProperties"}
        try:
            return await run.interrupt(kind, plain, id=question_id, schema=supported)
        except InvalidAgentOutput:
            pass  # it is asked without the schema
    return await run.interrupt(kind, plain, id=question_id)
