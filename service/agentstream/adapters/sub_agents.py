"""The sub-agents of a framework: the agents and graphs that it runs inside the agent of a run."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import orjson

from agentstream.agents import Run
from agentstream.agents.sub_agents import MAX_DEPTH, MAX_NAME_CHARS
from agentstream.protocol.events import AGENT_PATH, EVENT_TYPE, NAMED_EVENTS, RESERVED_EVENTS
from agentstream.protocol.plain_json import json_bytes

CUSTOM: Final = "custom"


class SubAgents:
    """The runs of the sub-agents of one run, by their paths."""

    def __init__(self, run: Run, names: Collection[str]) -> None:
        """``names`` are those with which the paths of the framework's sub-agents begin."""
        self._names = {_as_name(name) for name in names}
        self._depth = MAX_DEPTH - len(run.agent_path)
        self._runs: dict[tuple[str, ...], Run] = {(): run}

    def run_of(self, path: Sequence[str]) -> Run:
        """Return the run of a sub-agent. A path that is too deep is cut."""
        names = tuple(map(_as_name, path[: self._depth]))
        for length in range(1, len(names) + 1):
            if names[:length] not in self._runs:
                self._runs[names[:length]] = self._runs[names[: length - 1]].child(names[length - 1])
        return self._runs[names]

    def has_emitted(self, data: Mapping[str, Any]) -> bool:
        """Return whether the agent or one of these sub-agents has emitted an event with this data."""
        path = path_of(data)
        return not path or path[0] in self._names


def path_of(data: Mapping[str, Any]) -> Sequence[str]:
    """Return the path in the data of an event."""
    return data.get(AGENT_PATH) or ()


def custom_event(name: object, data: object) -> tuple[str, dict[str, Any]]:
    """Return type and data of an event that a user's code sends through a framework, which allows any name and value.

    A name that no event of an agent's own may have becomes the field ``name`` of the type CUSTOM. A value that is no
    object becomes the field ``data``.
    """
    try:
        value = orjson.loads(json_bytes(data, unknown=str))
    except (TypeError, ValueError, RecursionError):  # for example a circular reference
        value = str(data)
    fields = value if isinstance(value, dict) else {"data": value}
    is_type = isinstance(name, str) and EVENT_TYPE.fullmatch(name) is not None
    if is_type and name not in NAMED_EVENTS | RESERVED_EVENTS:
        return str(name), fields
    return CUSTOM, fields if name is None else {"name": str(name), **fields}


def _as_name(name: str) -> str:
    """Return the name of a sub-agent of a framework, which allows any text."""
    whole = "".join(" " if unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} else each for each in name)
    return whole[:MAX_NAME_CHARS].strip() or "agent"
