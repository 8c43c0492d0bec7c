"""Checkpoints: the state that an agent stores, and the state and output that a later attempt gets back."""

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import orjson

from agentstream.agents.tool_calls import RestoredToolCall
from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.plain_json import json_bytes, whole_text
from agentstream.telemetry.masking import mask, mask_json

MAX_STATE_BYTES: Final = 1 << 20  # of one checkpoint, as JSON; the broker keeps one for each open run
# orjson would store these as text or objects, and the agent would not get back what it stored.
_STRICT: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

A = TypeVar("A", bound=Callable[..., Any])


class EmittedEvent(NamedTuple):
    """An event that the agent emitted with ``run.emit``: its type, and its data as clients get it."""

    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The state and output of earlier attempts at the run. The agent continues after them.

    ``state`` is the state of the last checkpoint; None if there is none. The other fields hold what was stored after
    that checkpoint, or from the beginning. Clients have seen all of it, so the agent must not send it again: ``text``
    was written with ``run.write``, ``reasoning`` with ``run.write_reasoning``, and ``events`` were emitted, in this
    order. ``tool_calls`` are calls of the client's tools; the last one may be incomplete.
    """

    state: Any = None
    text: str = ""
    reasoning: str = ""
    events: Sequence[EmittedEvent] = ()
    tool_calls: Sequence[RestoredToolCall] = ()


class CheckpointSink(Protocol):
    """Where a checkpoint waits until it is stored."""

    async def wait_for_room(self) -> None:
        """Return when the checkpoint is stored. Raises RunCancelled if it cannot be stored."""


class StoredSoon(Awaitable[None]):
    """The result of ``run.checkpoint``: await it on the event loop to wait until the checkpoint is stored."""

    def __init__(self, sink: CheckpointSink | None) -> None:
        """``sink`` is None if the checkpoint is stored already."""
        self._sink = sink

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until the checkpoint is stored."""
        if self._sink is not None:
            yield from self._sink.wait_for_room().__await__()


def resumable(agent: A) -> A:
    """Declare that an agent can continue a run that another worker began. A decorator for a function or a class.

    It sets ``resumable = True`` on the agent. Such an agent reads ``run.restored``.
    """
    agent.resumable = True  # type: ignore[attr-defined]
    return agent


def takes_inputs(agent: A) -> A:
    """Declare that an agent takes messages while it works, with ``run.inputs``. A decorator, as ``resumable``."""
    agent.takes_inputs = True  # type: ignore[attr-defined]
    return agent


def encode_state(state: object) -> bytes:
    """Return the state of a checkpoint as JSON, with known secrets masked.

    Raises InvalidAgentOutput if it is larger than MAX_STATE_BYTES, or if the agent would get back another value.
    """
    try:
        encoded = orjson.dumps(state, option=_STRICT)
        difference = _difference(state, orjson.loads(encoded))
    except TypeError as exc:
        encoded, difference = _encode_rare(state, exc)
    if difference:
        message = f"run.checkpoint: the state is not JSON: {difference}"
        raise InvalidAgentOutput(message)
    masked = mask_json(orjson.loads(encoded)) if mask(text := encoded.decode()) != text else None
    if masked is not None:
        encoded = orjson.dumps(masked)
    if len(encoded) > MAX_STATE_BYTES:
        message = f"run.checkpoint: the state has {len(encoded)} bytes as JSON; the limit is {MAX_STATE_BYTES}"
        raise InvalidAgentOutput(message)
    return encoded


def _encode_rare(state: object, reason: TypeError) -> tuple[bytes, str]:
    """Return the JSON of a state that orjson refuses, and the difference: a lone surrogate in a text is replaced."""
    try:
        encoded = json_bytes(state)
        return encoded, _difference(state, orjson.loads(encoded))
    except Exception as exc:  # noqa: BLE001 -- a class of the agent's may raise anything when its fields are read
        return b"", f"{reason} ({exc})" if str(exc) not in str(reason) else str(reason)


def _difference(given: Any, stored: Any, path: str = "state") -> str:  # noqa: ANN401 -- JSON
    """Return where the stored value differs from the given one; an empty text if it does not.

    A tuple may become a list, and a lone surrogate U+FFFD.
    """
    if given.__class__ is stored.__class__ and given == stored:
        return ""
    if isinstance(given, dict) and isinstance(stored, dict):
        for key, value in given.items():
            if not isinstance(key, str):
                return f"{path} has the key {key!r:.60} ({type(key).__name__}); keys must be str"
            if difference := _difference(value, stored.get(whole_text(key)), f"{path}[{key!r:.60}]"):
                return difference
        return ""
    if isinstance(given, list | tuple) and isinstance(stored, list):
        pairs = zip(given, stored, strict=True)
        found = (_difference(item, other, f"{path}[{number}]") for number, (item, other) in enumerate(pairs))
        return next(filter(None, found), "")
    same_text = isinstance(given, str) and isinstance(stored, str) and whole_text(given) == stored
    return "" if same_text else f"{path} is {given!r:.60} ({type(given).__name__}), which JSON cannot hold"
