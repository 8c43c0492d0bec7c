"""Runs of the built-in agent go on after a loss at any event, also if the next attempt is lost at any event."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from agentstream.agents.contract import AgentResult
from agentstream.agents.orchestrator.lost import LOST
from agentstream.engines.base import EngineToolCall
from tests.unit.agents.losing_runs import Effects, LosingRun, losing_run
from tests.unit.agents.planned_model import Planned, PlannedModel, numbers

FUNCTION = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}
BOOKINGS = ('{"city": "Oslo", "days": [1, 2]}', '{"city": "Rome"}')
DOCUMENT = ['{"answer"', ": [1, 2", ', 3], "text": ', '"a b', ' c"', "}"]


def own(name: str, number: int) -> EngineToolCall:
    return EngineToolCall(f"{name}_{number}", name, json.dumps({"n": number}))


def thoughts(first: int, last: int) -> list[str]:
    return [f" r{number}" for number in range(first, last + 1)]


TOOL_TURNS = (
    Planned(tokens=numbers(1, 3), reasoning=thoughts(1, 2), calls=[own("once", 1), own("again", 1), own("look", 1)]),
    Planned(tokens=[], reasoning=thoughts(3, 3), calls=[own("once", 2)]),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan of the model, and the whole answer."""

    turns: Sequence[Planned]
    summary: Planned | None = None
    text: str
    finish_reason: str = "stop"
    fields: dict[str, Any] | None = None
    max_turns: int = 10


CASES = {
    "one answer": Case(
        turns=[Planned(tokens=[*numbers(1, 4), "\n\n", "5 "], reasoning=thoughts(1, 2))], text=" 1 2 3 4\n\n5 "
    ),
    "tools": Case(turns=[*TOOL_TURNS, Planned(tokens=numbers(4, 6))], text=" 1 2 3\n\n 4 5 6"),
    "truncated answer": Case(turns=[Planned(tokens=numbers(1, 7), limit=3)], text=" 1 2 3 4 5 6 7"),
    "truncated answer with tools": Case(
        turns=[
            Planned(tokens=numbers(1, 5), limit=3, calls=[own("once", 1)]),
            Planned(tokens=numbers(6, 10), limit=3),
        ],
        text=" 1 2 3 4 5\n\n 6 7 8 9 10",
    ),
    "summary": Case(
        turns=TOOL_TURNS, summary=Planned(tokens=numbers(7, 9)), text=" 1 2 3\n\n 7 8 9",
        finish_reason="length", max_turns=2,
    ),
    "no summary": Case(
        turns=TOOL_TURNS, max_turns=2, finish_reason="length",
        text=" 1 2 3\n\nI stopped after 2 turns without an answer. "
        "I tried: once (2 calls), again (1 call), look (1 call).",
    ),
    "client's tools": Case(
        turns=[
            TOOL_TURNS[0],
            Planned(
                tokens=numbers(4, 5), streamed=True,
                calls=[EngineToolCall(f"book_{n}", "book", text) for n, text in enumerate(BOOKINGS)],
            ),
        ],
        text=" 1 2 3\n\n 4 5", finish_reason="tool_calls", fields={"tools": [FUNCTION]},
    ),
    "JSON": Case(
        turns=[Planned(tokens=DOCUMENT)], text="".join(DOCUMENT),
        fields={"response_format": {"type": "json_object"}},
    ),
}  # fmt: skip


def started(case: Case, *, prefill: bool) -> tuple[LosingRun, list[Effects]]:
    tools = [Effects("once"), Effects("again", idempotent=True), Effects("look", read_only=True)]
    model = PlannedModel(*case.turns, summary=case.summary, prefill=prefill)
    return losing_run(model, *tools, fields=case.fields, max_turns=case.max_turns), tools


def check_whole(case: Case, run: LosingRun, tools: Sequence[Effects], result: AgentResult) -> None:
    """Check the answer, the effects, the events and the usage of a run that has ended."""
    result.check()
    fold = run.fold()
    interrupted = [end["tool"] for end in run.data_of("tool_call_end") if "interrupted" in str(end["result"])]
    expected = case.text
    if "I tried" in expected and interrupted:  # the fixed summary tells of the failed call
        failed = f", {len(interrupted)} failed"
        expected = expected.replace("once (2 calls)", f"once (2 calls{failed})")
    assert fold.content == expected
    assert result.finish_reason == case.finish_reason
    assert result.content == expected
    seen = fold.reasoning.split()
    assert all(count == 1 for count in Counter(seen).values()), seen
    check_calls(case, fold.tool_calls)
    once = tools[0]
    assert all(count == 1 for count in Counter(once.calls).values()), "a call was repeated"
    assert set(interrupted) <= {"once"}
    for kind in ("agent_turn_start", "agent_turn_end"):
        assert len(run.data_of(kind)) == 1
    announced = [data["tool_call_id"] for data in run.data_of("tool_call_start")]
    assert sorted(announced) == sorted(data["tool_call_id"] for data in run.data_of("tool_call_end"))
    assert len(set(announced)) == len(announced)
    assert [r.tool_name for r in result.tool_results] == [data["tool"] for data in run.data_of("tool_call_start")]
    for r in result.tool_results:
        assert r.success is (r.tool_name not in interrupted or not r.content.startswith("the call of"))
        assert r.content.split()[0] == r.tool_name or "interrupted" in r.content
    inferences = [kind for kind, _ in run.facts if kind in {"inference_start", "inference_end"}]
    assert all(pair != ("inference_start", "inference_start") for pair in pairwise(inferences)), "one has no end"
    assert len(run.data_of("inference_start")) == len(run.data_of("inference_end"))
    reported = sum(end["usage"]["total_tokens"] for end in run.data_of("inference_end") if "usage" in end)
    estimated = result.metadata["total_tokens"] - reported
    lost = sum(end["finish_reason"] == LOST for end in run.data_of("inference_end"))
    assert estimated >= lost if lost else estimated == 0


def check_calls(case: Case, calls: Sequence[dict[str, Any]]) -> None:
    """Check that the client has whole calls, in order; only later ones may be missing."""
    made = [call["function"]["arguments"] for call in calls]
    assert made == list(BOOKINGS[: len(made)])
    assert bool(made) is (case.finish_reason == "tool_calls")
    assert [call["id"] for call in calls] == [f"book_{number}" for number in range(len(made))]


@pytest.mark.parametrize("prefill", [False, True], ids=["asked in words", "prefill"])
@pytest.mark.parametrize("name", CASES)
async def test_a_run_that_is_lost_at_any_event_goes_on(name: str, prefill: bool) -> None:
    """A run whose worker is lost after any event ends with the whole answer, and no call of a tool is repeated."""
    case = CASES[name]
    whole, tools = started(case, prefill=prefill)
    result = await whole.attempt()
    assert result is not None
    check_whole(case, whole, tools, result)
    for cut in range(whole.put_count + 1):
        run, tools = started(case, prefill=prefill)
        await run.attempt(cut)
        result = await run.attempt()
        assert result is not None
        check_whole(case, run, tools, result)


@pytest.mark.parametrize("name", CASES)
async def test_a_run_that_is_lost_again_at_any_event_goes_on(name: str) -> None:
    """The same holds if the attempt that continues the run is lost after any of its own events, and then a third."""
    case = CASES[name]
    whole, _ = started(case, prefill=False)
    await whole.attempt()
    for first in range(whole.put_count + 1):
        second = 0
        while True:
            run, tools = started(case, prefill=False)
            await run.attempt(first)
            await run.attempt(second)
            events = run.put_count
            await run.attempt(second % 3)
            result = await run.attempt()
            assert result is not None
            check_whole(case, run, tools, result)
            second += 1
            if second > events:
                break
