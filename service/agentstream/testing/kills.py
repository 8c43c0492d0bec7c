"""Runs a resumable agent again and again, and kills its worker each time at another place."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from agentstream.agents import Caller, Restored
from agentstream.agents.shapes import is_resumable
from agentstream.protocol.events import (
    REASONING,
    RUN_CHECKPOINT,
    TEXT,
    TOOL_CALL_DELTA,
    TOOL_CALL_END,
    TOOL_CALL_START,
    Event,
)
from agentstream.protocol.jobs import Job
from agentstream.testing.outcome import AgentOutcome
from agentstream.testing.recording import RecordedRun, Recording, started
from agentstream.testing.running import HOW_TO_DECLARE, TIMEOUT_S, in_new_loop, job_of, run_agent_async
from agentstream.testing.whole import check_answer, check_tools

Where = Literal["every event", "every checkpoint"]

MAX_SHOWN: Final = 60  # characters of a text in the description of a kill


@dataclass(frozen=True, slots=True, kw_only=True)
class KilledRun:
    """A run whose worker was killed, once or several times, and that came to its end.

    ``killed_after`` describes the last event before each kill. ``restored`` is what each further attempt got as
    ``run.restored``. ``outcome`` is that of the whole run, over all its attempts.
    """

    killed_after: Sequence[str]
    restored: Sequence[Restored | None]
    outcome: AgentOutcome


def run_agent_with_kills(  # noqa: PLR0913 -- those of run_agent and two more
    agent: object,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    at: Where = "every event",
    idempotent_tools: Collection[str] = (),
    caller: Caller | None = None,
    timeout_s: float = TIMEOUT_S,
    **request: Any,  # noqa: ANN401 -- JSON
) -> list[KilledRun]:
    """Kill the worker of a resumable agent at each place, and check that the run continues and is whole.

    The agent runs once without a kill. Then it runs again for each event that it sends (a piece of text or reasoning,
    an emitted event, a checkpoint): the worker is killed after this event, and a new attempt gets ``run.restored``, as
    in another worker. In one more run each attempt is killed, the first one after its first event, the second one after
    its second event, and so on. ``at="every checkpoint"`` kills only after checkpoints.

    The answer must be the same each time, so give the agent a model that always answers the same. Each tool that the
    agent announces with ``tool_call_start`` must run as often as without a kill, except ``idempotent_tools``. A tool
    that is interrupted by the kill must not run again; then the answer may differ.

    The other arguments are those of ``run_agent``. ``timeout_s`` is for each attempt. Returns the killed runs.

    A kill stops the agent at this event, but it runs in the same process: what the agent keeps in global variables
    survives. An agent that is an async context manager, or a function that returns one, is started for each attempt.

    Raises AssertionError if text is shown twice or lost, if a tool runs twice or never, if a call of a client's tool
    or the finish reason differs, if the agent is not resumable, or if there was nothing to kill at. Raises the other
    errors of ``run_agent``; a note on the exception says after which event the worker was killed.
    """
    return in_new_loop(
        lambda: run_agent_with_kills_async(
            agent,
            messages,
            at=at,
            idempotent_tools=idempotent_tools,
            caller=caller,
            timeout_s=timeout_s,
            **request,
        ),
        "run_agent_with_kills",
    )


async def run_agent_with_kills_async(  # noqa: PLR0913
    agent: object,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    at: Where = "every event",
    idempotent_tools: Collection[str] = (),
    caller: Caller | None = None,
    timeout_s: float = TIMEOUT_S,
    **request: Any,  # noqa: ANN401 -- JSON
) -> list[KilledRun]:
    """Do the same as ``run_agent_with_kills`` on this event loop, for async tests."""
    if at not in {"every event", "every checkpoint"}:
        message = f'at={at!r}; expected "every event" or "every checkpoint"'
        raise ValueError(message)
    whole = await run_agent_async(agent, messages, caller=caller, timeout_s=timeout_s, **request)

    async def killed_run(kill_after: Callable[[int], int | None]) -> KilledRun | None:
        test = _Killing(agent, job_of(messages, caller, request), only_checkpoints=at == "every checkpoint")
        outcome = await test.run(kill_after, timeout_s)
        if not test.kills:
            return None
        interrupted = check_tools(whole, outcome, test.interrupted, idempotent_tools, test.description)
        if not interrupted:
            check_answer(whole, outcome, test.run_so_far.events[: test.last_kill], test.restored[-1], test.description)
        return KilledRun(killed_after=test.kills, restored=test.restored, outcome=outcome)

    found: list[KilledRun] = []
    while (run := await killed_run(_only_the_first_attempt(len(found) + 1))) is not None:
        found.append(run)
    if not found:
        what = "sent no event" if at == "every event" else "made no checkpoint"
        message = f"the agent {what}, so there was no place to kill its worker"
        raise AssertionError(message)
    if (run := await killed_run(lambda attempt: attempt)) is not None:
        found.append(run)
    return found


def _only_the_first_attempt(events: int) -> Callable[[int], int | None]:
    return lambda attempt: events if attempt == 1 else None


@dataclass(slots=True)
class _Killing:
    """One run whose worker is killed."""

    agent: object
    job: Job
    only_checkpoints: bool
    kills: list[str] = field(default_factory=list)
    restored: list[Restored | None] = field(default_factory=list)  # of each attempt after a kill
    interrupted: Counter[str] = field(default_factory=Counter)  # tools that ran when the worker was killed
    last_kill: int = 0  # number of events before it
    run_so_far: RecordedRun = field(init=False)

    def __post_init__(self) -> None:
        self.run_so_far = RecordedRun(self.job)

    @property
    def description(self) -> str:
        """Where the worker was killed, as the beginning of a sentence."""
        return f"killed after {', then after '.join(self.kills)}"

    async def run(self, kill_after: Callable[[int], int | None], timeout_s: float) -> AgentOutcome:
        """Run attempts until one of them ends, and return the outcome of the run.

        ``kill_after`` returns the number of events after which an attempt is killed, or None.
        """
        while True:
            async with started(self.agent, timeout_s) as called:
                if not is_resumable(called):
                    message = f"the agent is not resumable, so no worker continues its runs; {HOW_TO_DECLARE}"
                    raise AssertionError(message)
                attempt = Recording(
                    called,
                    self.run_so_far,
                    kill_after=kill_after(self.run_so_far.attempts + 1),
                    only_checkpoints=self.only_checkpoints,
                )
                try:
                    outcome = await attempt.outcome(timeout_s)
                except BaseException as exc:
                    if self.kills:
                        exc.add_note(f"The worker was {self.description}; then run.restored was {attempt.restored}")
                    raise
            if self.kills:
                self.restored.append(attempt.restored)
            if outcome is not None:
                return outcome
            self._note_kill(attempt)

    def _note_kill(self, attempt: Recording) -> None:
        event = attempt.killed_after
        assert event is not None, "the attempt has no outcome"  # noqa: S101 -- narrows the type
        events = self.run_so_far.events
        self.kills.append(_describe(event, events))
        self.last_kill = len(events)
        running: Counter[str] = Counter()
        for each in events:
            if each.attempt == event.attempt and each.type in {TOOL_CALL_START, TOOL_CALL_END}:
                running[each.data["tool"]] += 1 if each.type == TOOL_CALL_START else -1
        self.interrupted += +running  # without the tools that an earlier attempt began and this one ended


def _describe(event: Event, events: Sequence[Event]) -> str:
    if event.type == RUN_CHECKPOINT:
        return f"checkpoint {sum(each.type == RUN_CHECKPOINT for each in events)}"
    name = {TEXT: "the text", REASONING: "the reasoning", TOOL_CALL_DELTA: "a part of the call"}.get(event.type)
    if name is None:
        tool = event.data.get("tool")
        return event.type if tool is None else f"{event.type} of {tool!r}"
    text = event.data["arguments"] if event.type == TOOL_CALL_DELTA else event.data
    return f"{name} {text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '…'!r}"
