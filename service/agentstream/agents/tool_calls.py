"""Calls of the client's tools, as an agent writes them."""

from collections.abc import Callable
from typing import Any

from agentstream.errors import InvalidAgentOutput


class ToolCallWriter:
    """A call of one of the client's tools; ``Run.write_tool_call`` returns it, to write more of the arguments.

    ``id`` is the call's id: the client sends its result with this id. ``index`` is the call's number in the run,
    counted from 0.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], index: int, call_id: str) -> None:
        """Create a writer that passes each piece of the call to ``write``."""
        self._write = write
        self.index = index
        self.id = call_id

    def write(self, arguments: str) -> None:
        """Stream the next piece of the call's arguments, a part of their JSON text. Any thread may call it.

        Raises the same errors as ``Run.write``.
        """
        text: object = arguments  # Python does not check type hints
        if not isinstance(text, str):
            message = f"ToolCallWriter.write takes a str, got {type(text).__name__}"
            raise InvalidAgentOutput(message)
        if text:
            self._write({"index": self.index, "arguments": text})


class RestoredToolCall(ToolCallWriter):
    """A call that an earlier attempt began. Its ``write`` continues it.

    ``name`` is the name of the tool. ``arguments`` is the text that the client has already; it may be incomplete.
    """

    def __init__(self, index: int, call_id: str, name: str, arguments: str = "") -> None:
        """Create the call from its events. ``bind`` sets the function that sends more of it."""
        super().__init__(_unbound, index, call_id)
        self.name = name
        self.arguments = arguments

    def bind(self, write: Callable[[dict[str, Any]], None]) -> None:
        """Pass each piece that is written from now on to ``write``."""
        self._write = write


def _unbound(piece: dict[str, Any]) -> None:
    message = f"the call {piece['index']} belongs to no run"
    raise RuntimeError(message)
