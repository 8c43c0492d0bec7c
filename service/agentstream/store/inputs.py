"""The messages that clients send to a run that is going on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentstream.protocol.keys import Keys
from agentstream.store.connection.link import Link

# Begins a message on the control channel of a worker: a run of the worker has got messages.
INPUT: Final = "input:"
MAX_INPUTS: Final = 100  # of one run: they stay in its hash until it ends
MAX_INPUTS_BYTES: Final = 256 << 10  # of all of them as JSON


@dataclass(frozen=True, slots=True)
class Inputs:
    """All messages that were sent to a run, and how many of them its agent has taken."""

    messages: Sequence[dict[str, Any]]
    applied: int


def input_id(number: int) -> str:
    """Return the id of a message; the first one that a run gets has the number 1."""
    return f"input-{number}"


class InputStore:
    """Stores and reads the messages for running runs."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Store the link and the keys."""
        self._link = link
        self._keys = keys

    async def add(self, run_id: str, messages: Sequence[dict[str, Any]]) -> int | str | None:
        """Store messages for a run, all or none of them.

        Returns how many the run had before. If it takes none now, returns its status, CLOSED if its agent takes no
        messages, FULL if there would be more than MAX_INPUTS or MAX_INPUTS_BYTES, or None if there is no such run.
        """
        reply = await self._link.call_script(
            "input",
            [self._keys.run(run_id)],
            b",".join(map(orjson.dumps, messages)),
            len(messages),
            MAX_INPUTS,
            MAX_INPUTS_BYTES,
            self._keys.control(""),
            INPUT + run_id,
        )
        return reply.decode() if isinstance(reply, bytes) else reply

    async def read(self, run_id: str) -> Inputs:
        """Return the messages of a run."""
        stored, applied = await self._link.call("HMGET", self._keys.run(run_id), "inputs", "inputs_applied")
        return Inputs(orjson.loads(b"[%b]" % (stored or b"")), int(applied or 0))
