"""Which tools need a person's approval: those that declare it, and those that the deployment names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from agentstream.tools.base import Tool

ALL: Final = "all"
DESTRUCTIVE: Final = "destructive"


class ApprovalRule:
    """Tells for each tool whether a person must approve its calls."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """``entries`` are names of tools, patterns with ``*`` and ``?``, ALL, or DESTRUCTIVE.

        DESTRUCTIVE stands for the tools with a true attribute ``destructive``: tools of MCP servers that may do harm,
        according to their annotations.
        """
        self.entries = tuple(entries)

    def needs_approval(self, tool: Tool) -> bool:
        """Return whether a person must approve each call of a tool."""
        return bool(getattr(tool, "needs_approval", False)) or any(_names(entry, tool) for entry in self.entries)

    def without_effect(self, tools: Iterable[Tool]) -> list[str]:
        """Return the entries that name none of the tools: a misspelt name would let a tool run without approval."""
        known = list(tools)
        return [
            entry
            for entry in self.entries
            if entry not in {ALL, DESTRUCTIVE} and not any(_names(entry, tool) for tool in known)
        ]


def _names(entry: str, tool: Tool) -> bool:
    if entry == ALL:
        return True
    if entry == DESTRUCTIVE and getattr(tool, "destructive", False) is True:
        return True
    return fnmatchcase(tool.name, entry)
