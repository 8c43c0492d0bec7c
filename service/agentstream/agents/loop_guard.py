"""A model that makes the same call again and again: it is told, and then stopped."""

import json
from collections import Counter
from typing import Final

from agentstream.engines.base import EngineToolCall
from agentstream.tools.toolbox import ToolOutcome

# Some results change by themselves: looking a second and a third time makes sense.
MAX_SAME_CALLS: Final = 3
# Who is told that nothing will change and makes the call yet again is not to be helped by being told once more.
STOP_AT_SAME_CALLS: Final = 5


class LoopGuard:
    """Counts a run's calls. Two are the same if they have one name and mean the same arguments."""

    def __init__(self) -> None:
        """Start with nothing called."""
        self._made: Counter[tuple[str, str]] = Counter()
        self.stuck = False

    def refusal(self, call: EngineToolCall) -> ToolOutcome | None:
        """Note a call; return its outcome if it must not be run once more. Sets ``stuck`` if the run must end."""
        key = (call.name, _canonical(call.arguments))
        self._made[key] += 1
        times = self._made[key]
        self.stuck = self.stuck or times >= STOP_AT_SAME_CALLS
        if times <= MAX_SAME_CALLS:
            return None
        words = (
            f"{call.name} was not run: it was called with these very arguments {times - 1} times already. "
            "Use the results you have, try something else, or answer."
        )
        return ToolOutcome(tool=call.name, content=words, success=False, latency_s=0.0)


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments
