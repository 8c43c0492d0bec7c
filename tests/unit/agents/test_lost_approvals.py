"""Runs of the built-in agent that wait for approval or take input go on after a loss at any event."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from agentstream.agents.contract import AgentResult
from agentstream.engines.base import EngineToolCall
from agentstream.protocol.events import INPUT_APPLIED, INTERRUPT, TEXT
from tests.unit.agents.losing_runs import Effects, LosingRun, People, losing_run
from tests.unit.agents.planned_model import Planned, PlannedModel, numbers

ANSWERS: dict[str, Any] = {
    "approval-once_1": {"approve": True},
    "approval-once_2": {"approve": False, "reason": "too dear"},
    "approval-once_3": None,
    "approval-again_4": {"approve": True},
    "approval-once_5": {"approve": True},
}
NOT_RUN = {
    "once_2": "once was not run: a person denied it, and wrote: too dear",
    "once_3": "once was not run: nobody approved it in time.",
}
ANSWER = " 1 2 3\n\n 4 5 6"


def made(name: str, number: int) -> EngineToolCall:
    return EngineToolCall(f"{name}_{number}", name, json.dumps({"n": number}))


ASKING_TURNS = (
    Planned(
        tokens=numbers(1, 3),
        calls=[made("once", 1), made("look", 0), made("once", 2), made("once", 3), made("again", 4)],
    ),
    Planned(calls=[made("once", 5)]),
    Planned(tokens=numbers(4, 6)),
)


def asking_run(*, prefill: bool = False) -> tuple[LosingRun, Effects]:
    """Return a run with two turns that need approval, and the tool that must not run twice."""
    once = Effects("once", needs_approval=True)
    others = [Effects("again", idempotent=True, needs_approval=True), Effects("look", read_only=True)]
    return losing_run(PlannedModel(*ASKING_TURNS, prefill=prefill), once, *others), once


def check_asked(run: LosingRun, once: Effects, result: AgentResult) -> None:
    """Check the answer, the questions, the effects and the events of a run that has ended."""
    assert run.fold().content == result.content == ANSWER
    assert result.finish_reason == "stop"
    assert sorted(asked["id"] for asked in run.data_of(INTERRUPT)) == sorted(ANSWERS)
    ends = {end["tool_call_id"]: end for end in run.data_of("tool_call_end")}
    interrupted = [call_id for call_id, end in ends.items() if "interrupted" in end["result"]]
    assert all(count == 1 for count in Counter(once.calls).values()), "a call was repeated"
    assert set(once.calls) <= {1, 5}, "a call ran that was not approved"
    assert {1, 5} - set(once.calls) <= {int(call_id[-1]) for call_id in interrupted}
    assert {call_id: ends[call_id]["result"] for call_id in NOT_RUN} == NOT_RUN
    assert not any(ends[call_id]["success"] for call_id in NOT_RUN)
    started = [start["tool_call_id"] for start in run.data_of("tool_call_start")]
    assert sorted(started) == sorted(data["tool_call_id"] for data in run.data_of("tool_call_end"))
    assert len(set(started)) == len(started) == 6
    seen: set[str] = set()
    for kind, data in run.facts:
        if kind == INTERRUPT:
            seen.add(data["payload"]["tool_call_id"])
        elif kind == "tool_call_start":
            assert data["tool"] == "look" or data["tool_call_id"] in seen, "a call started before people were asked"
    reported = sum(end["usage"]["total_tokens"] for end in run.data_of("inference_end") if "usage" in end)
    assert result.metadata["total_tokens"] >= reported


async def test_people_are_asked_about_all_calls_of_a_turn_at_once() -> None:
    """The other calls of the turn run first; then all questions are open; no inference is repeated after the answer."""
    run, once = asking_run()
    assert await run.attempt() is None
    assert list(run.people.open) == list(ANSWERS)[:4]
    assert [end["tool"] for end in run.data_of("tool_call_end")] == ["look"]
    assert not once.calls
    assert run.people.open["approval-once_1"].payload == {
        "tool": "once", "arguments": '{"n": 1}', "tool_call_id": "once_1",
    }  # fmt: skip
    run.people.answer(ANSWERS)
    assert await run.attempt() is None
    assert list(run.people.open) == ["approval-once_5"]
    run.people.answer(ANSWERS)
    result = await run.attempt()
    assert result is not None
    check_asked(run, once, result)
    assert once.calls == [1, 5]
    assert len(run.data_of("inference_start")) == 3
    total = sum(end["usage"]["total_tokens"] for end in run.data_of("inference_end"))
    assert result.metadata["total_tokens"] == total
    assert run.data_of("agent_turn_end") == [{"agent": "orchestrator", "turns": 3}]


@pytest.mark.parametrize("prefill", [False, True], ids=["asked in words", "prefill"])
async def test_a_run_that_waits_for_approval_is_lost_at_any_event(prefill: bool) -> None:
    """A run that is lost at any event of its three attempts asks each question once, and ends with the same answer."""
    whole, _ = asking_run(prefill=prefill)
    counts = []
    while await whole.attempt() is None:
        counts.append(whole.put_count)
        whole.people.answer(ANSWERS)
    counts.append(whole.put_count)
    assert len(counts) == 3
    for before, count in enumerate(counts):
        for cut in range(count + 1):
            run, once = asking_run(prefill=prefill)
            for _ in range(before):
                await run.attempt()
                run.people.answer(ANSWERS)
            await run.attempt(cut)
            check_asked(run, once, await run.whole(ANSWERS))


async def test_a_run_that_waits_for_approval_is_lost_twice_at_any_event() -> None:
    """The same holds if the attempt after the answers is lost, too, and if people answer before or after a loss."""
    whole, _ = asking_run()
    await whole.attempt()
    for first in range(whole.put_count + 1):
        second, events = 0, 1
        while second <= events:
            run, once = asking_run()
            await run.attempt(first)
            if second % 2:
                run.people.answer(ANSWERS)
            await run.attempt(second)
            events = run.put_count
            check_asked(run, once, await run.whole(ANSWERS))
            second += 1


class Listening(PlannedModel):
    """A model whose user sends a message during each of the first turns. It checks which messages it has got."""

    people: People

    def _turn(self, messages: Sequence[dict[str, Any]]) -> Planned:
        turn = super()._turn(messages)
        number = self._turns.index(turn)
        said = [message["content"] for message in messages if str(message["content"]).startswith("message")]
        assert said == [f"message {earlier}" for earlier in range(number)]
        if number < 2:
            self.people.send(f"message {number}")
        return turn


HEARING_TURNS = (
    Planned(tokens=numbers(1, 3), calls=[made("once", 1)]),
    Planned(tokens=numbers(4, 8), limit=3),
    Planned(tokens=numbers(9, 11)),
)
HEARD = " 1 2 3\n\n 4 5 6 7 8\n\n 9 10 11"


def hearing_run(*, prefill: bool) -> LosingRun:
    model = Listening(*HEARING_TURNS, prefill=prefill)
    run = losing_run(model, Effects("once"))
    model.people = run.people
    return run


def check_heard(run: LosingRun, result: AgentResult) -> None:
    """Check that each message was applied once, between the right texts."""
    assert run.fold().content == result.content == HEARD
    texts, places = "", []
    for kind, data in run.facts:
        if kind == TEXT:
            texts += data
        elif kind == INPUT_APPLIED:
            places += [(item["id"], texts.split()[-1]) for item in data["inputs"]]
    assert places == [("input-1", "3"), ("input-2", "8")]
    inferences = [kind for kind, _ in run.facts if kind in {"inference_start", "inference_end"}]
    assert all(first != second for first, second in pairwise(inferences))
    assert run.data_of("agent_turn_end") == [{"agent": "orchestrator", "turns": 3}]


@pytest.mark.parametrize("prefill", [False, True], ids=["asked in words", "prefill"])
async def test_input_is_applied_once_at_one_place_if_the_run_is_lost_at_any_event(prefill: bool) -> None:
    """Messages that came during a turn are applied once, before the next turn, wherever the worker is lost."""
    whole = hearing_run(prefill=prefill)
    result = await whole.attempt()
    assert result is not None
    check_heard(whole, result)
    for first in range(whole.put_count + 1):
        second, events = 0, 1
        while second <= events:
            run = hearing_run(prefill=prefill)
            await run.attempt(first)
            await run.attempt(second)
            events = run.put_count
            result = await run.attempt()
            assert result is not None
            check_heard(run, result)
            second += 3


async def test_a_message_that_comes_after_the_end_of_the_agent_is_not_taken() -> None:
    """If the worker was lost after the agent had told its end, the run ends without the message that came later."""
    run = losing_run(PlannedModel(Planned(tokens=numbers(1, 3))), Effects("once"))
    whole = losing_run(PlannedModel(Planned(tokens=numbers(1, 3))), Effects("once"))
    await whole.attempt()
    await run.attempt(whole.put_count)
    run.people.worker_lost = False
    run.people.send("late")
    result = await run.attempt()
    assert result is not None
    assert (result.content, run.data_of(INPUT_APPLIED)) == (" 1 2 3", [])
    assert len(run.data_of("agent_turn_end")) == 1
