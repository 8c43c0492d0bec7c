"""Stops a model that repeats the same tool call: first the call is refused, then the run ends."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Final

from agentstream.engines.base import EngineToolCall
from agentstream.tools.toolbox import ToolOutcome

# A few repeats make sense, because some results change over time.
MAX_SAME_CALLS: Final = 3
# The fourth call is refused with an explanation. A model that ignores it will ignore a second one too.
STOP_AT_SAME_CALLS: Final = 5


class LoopGuard:
    """Counts the tool calls of a run. Two calls are the same if their names and their arguments as JSON are equal."""

    def __init__(self, made: Mapping[str, int] | None = None) -> None:
        """``made`` has the numbers of the calls so far, as ``counts`` returns them; by default there are none."""
        self._made: Counter[str] = Counter(made or {})  # by a digest, because arguments may be long

    @property
    def stuck(self) -> bool:
        """Whether the run must end."""
        return any(times >= STOP_AT_SAME_CALLS for times in self._made.values())

    def refusal(self, call: EngineToolCall) -> ToolOutcome | None:
        """Count a call. Return an outcome with an error if the call must not run, or None if it may."""
        digest = _digest(call)
        self._made[digest] += 1
        times = self._made[digest]
        if times <= MAX_SAME_CALLS:
            return None
        explanation = (
            f"{call.name} was not run: you have already called it {times - 1} times with the same arguments. "
            "Use the results you have, try something else, or answer."
        )
        return ToolOutcome(tool=call.name, content=explanation, success=False, latency_s=0.0)

    def counts(self) -> dict[str, int]:
        """Return the numbers of the calls so far, for a checkpoint."""
        return dict(self._made)


def _digest(call: EngineToolCall) -> str:
    try:
        arguments = json.dumps(json.loads(call.arguments), sort_keys=True)
    except ValueError:
        arguments = call.arguments
    return hashlib.blake2b(json.dumps([call.name, arguments]).encode(), digest_size=12).hexdigest()
