"""Stops a model that repeats the same tool call: first the call is refused, then the run ends."""

import json
from collections import Counter
from typing import Final

from agentstream.engines.base import EngineToolCall
from agentstream.tools.toolbox import ToolOutcome

# A few repeats make sense, because some results change over time.
MAX_SAME_CALLS: Final = 3
# The fourth call is refused with an explanation. A model that ignores it will ignore a second one too.
STOP_AT_SAME_CALLS: Final = 5


class LoopGuard:
    """Counts the tool calls of a run. Two calls are the same if their names and their arguments as JSON are equal."""

    def __init__(self) -> None:
        """Start without any calls."""
        self._made: Counter[tuple[str, str]] = Counter()
        self.stuck = False

    def refusal(self, call: EngineToolCall) -> ToolOutcome | None:
        """Count a call. Return an outcome with an error if the call must not run, or None if it may.

        Sets ``stuck`` to True if the run must end.
        """
        key = (call.name, _canonical(call.arguments))
        self._made[key] += 1
        times = self._made[key]
        self.stuck = self.stuck or times >= STOP_AT_SAME_CALLS
        if times <= MAX_SAME_CALLS:
            return None
        explanation = (
            f"{call.name} was not run: you have already called it {times - 1} times with the same arguments. "
            "Use the results you have, try something else, or answer."
        )
        return ToolOutcome(tool=call.name, content=explanation, success=False, latency_s=0.0)


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments
