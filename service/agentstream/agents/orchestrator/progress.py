"""The progress of one run: the data with which the orchestrator goes on, and its form in a checkpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream.agents.checkpoint import MAX_STATE_BYTES
from agentstream.agents.contract import Run, ToolResult
from agentstream.agents.orchestrator.context_window import Message, size_of, trim
from agentstream.agents.orchestrator.loop_guard import LoopGuard
from agentstream.engines.base import EngineToolCall
from agentstream.errors import RESUME_FAILED, AgentError
from agentstream.protocol.openai import Usage
from agentstream.protocol.plain_json import json_bytes

VERSION: Final = 1  # of the state in a checkpoint
# The masking of secrets may lengthen a state that has at most this many bytes.
STATE_BYTES: Final = MAX_STATE_BYTES * 7 // 8
# Messages that are too large for a state are shortened to these shares of the size that fits, one after the other: a
# character may need one byte or six.
_SHORTENED_TO: Final = (0.9, 0.4, 0.15, 0.0)
FAILED_PREFIX: Final = "Error: "  # marks a failed tool call for the model, which sees only text


@dataclass(slots=True)
class OpenTurn:
    """A turn that has not ended. ``text`` is its text so far, ``echo`` that of ``EngineDelta``.

    With ``calls`` the model's answer is complete, and the calls have started; ``refused`` are the texts for those that
    are not run, by call id, and ``asking`` are the ids of those that a person must approve. Without ``calls`` the
    answer was truncated, and ``continuations`` tells how often the model has been asked to continue it.
    """

    text: str = ""
    echo: dict[str, Any] = field(default_factory=dict)
    calls: list[EngineToolCall] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    asking: list[str] = field(default_factory=list)
    continuations: int = 0


@dataclass(slots=True)
class Progress:
    """The progress of a run.

    ``added`` are the messages after those of the request: of the finished turns, and of people who sent input.
    ``usages`` has one entry per inference, or their sum; None stands for an inference without a reported usage.
    ``results`` are the results of the tool calls, by call id.
    """

    added: list[Message] = field(default_factory=list)
    usages: list[Usage | None] = field(default_factory=list)
    guard: LoopGuard = field(default_factory=LoopGuard)
    turns: int = 0  # that have ended, and were not the last
    results: dict[str, ToolResult] = field(default_factory=dict)
    open_turn: OpenTurn = field(default_factory=OpenTurn)

    @property
    def texts(self) -> list[str]:
        """The texts of the finished turns."""
        return [message["content"] for message in self.added if message["role"] == "assistant" and message["content"]]

    @property
    def inputs(self) -> list[Message]:
        """The messages that people have sent to the run."""
        return [message for message in self.added if message["role"] == "user"]

    def call_ids(self) -> Iterator[str]:
        """Yield the ids of all own calls so far."""
        yield from self.results
        yield from (call.id for call in self.open_turn.calls)

    def usage(self) -> Usage | None:
        """Return the sum of the usages, or None if one is missing: an incomplete sum would look like the real usage."""
        known = [usage for usage in self.usages if usage is not None]
        if len(known) < len(self.usages):
            return None
        return Usage(**{name: sum(getattr(usage, name) for usage in known) for name in Usage.model_fields})

    def as_state(self) -> dict[str, Any]:
        """Return the state of a checkpoint, at most STATE_BYTES long as JSON.

        If it would be longer, tool results are shortened and old turns left out, as for a small context window. If
        that is not enough, the state says only that it is too large.
        """
        state = self._as_state(self.added)
        size = len(json_bytes(state))
        if size <= STATE_BYTES:
            return state
        question: Message = {"role": "user", "content": ""}  # everything after it can be shortened
        fitting = size_of(self.added) * STATE_BYTES / size
        for share in _SHORTENED_TO:
            shorter = trim([question, *self.added], int(fitting * share), {id(question), *map(id, self.inputs)})
            if shorter is not None:
                state = self._as_state(shorter.messages[1:])
                if len(json_bytes(state)) <= STATE_BYTES:
                    return state
        return {"v": VERSION, "too_large": True}

    def _as_state(self, added: Sequence[Message]) -> dict[str, Any]:
        usage, turn = self.usage(), self.open_turn
        return {
            "v": VERSION,
            "added": list(added),
            "inferences": len(self.usages),
            "usage": usage and usage.model_dump(),
            "calls_made": self.guard.counts(),
            "turns": self.turns,
            "results": [
                [call_id, result.tool_name, result.success, result.latency_seconds]
                for call_id, result in self.results.items()
            ],
            "open_turn": {
                "text": turn.text,
                "echo": turn.echo,
                "calls": [[call.id, call.name, call.arguments] for call in turn.calls],
                "refused": turn.refused,
                "asking": turn.asking,
                "continuations": turn.continuations,
            },
        }


async def store_progress(run: Run, progress: Progress) -> None:
    """Store a checkpoint and the events before it. A sub-agent has no state; its starts of tools are stored."""
    await (run.drain() if run.agent_path else run.checkpoint(progress.as_state()))


def read_state(state: Any) -> Progress:  # noqa: ANN401 -- JSON
    """Return the progress that a checkpoint holds. Raises AgentError if this version cannot read it."""
    version = state.get("v") if isinstance(state, dict) else None
    if version != VERSION:
        message = f"the checkpoint of the orchestrator has version {version!r}; this worker reads version {VERSION}"
        raise AgentError(message, code=RESUME_FAILED)
    if state.get("too_large"):
        message = f"the turn that was lost is too large for a checkpoint: more than {STATE_BYTES} bytes as JSON"
        raise AgentError(message, code=RESUME_FAILED)
    try:
        return _read(state)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        message = f"the checkpoint of the orchestrator cannot be read: {type(exc).__name__}: {exc}"
        raise AgentError(message, code=RESUME_FAILED) from exc


def _read(state: dict[str, Any]) -> Progress:
    turn, usage = state["open_turn"], state["usage"]
    contents = {message["tool_call_id"]: message["content"] for message in state["added"] if message["role"] == "tool"}
    results = {
        call_id: ToolResult(
            name, contents.get(call_id, "") if success else contents.get(call_id, "").removeprefix(FAILED_PREFIX),
            success, latency_s,
        )
        for call_id, name, success, latency_s in state["results"]
    }  # fmt: skip
    return Progress(
        added=list(state["added"]),
        usages=[Usage.model_validate(usage) if usage else None] if state["inferences"] else [],
        guard=LoopGuard(state["calls_made"]),
        turns=int(state["turns"]),
        results=results,
        open_turn=OpenTurn(
            text=str(turn["text"]),
            echo=dict(turn["echo"]),
            calls=[EngineToolCall(*call) for call in turn["calls"]],
            refused=dict(turn["refused"]),
            asking=list(turn["asking"]),
            continuations=int(turn["continuations"]),
        ),
    )
