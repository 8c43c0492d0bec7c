"""The checks can fail: an agent that ignores restored text doubles words, and without fencing a tool runs twice."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.chaos_clients import judge
from tests.faults.deployment import Deployment, error_of, kill_worker, said
from tests.faults.resumed import GATE, LAST, attempts_of, check_whole, worker_of
from tests.processes import Processes


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


async def test_an_agent_that_ignores_restored_text_doubles_words(deployment: Deployment) -> None:
    """The checks find doubled words if an agent continues at its checkpoint and ignores the text shown after it."""
    first = await worker_of(deployment, "a", "deaf")
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        second = await worker_of(deployment, "b", "deaf")
        await kill_worker(first)
        deployment.open_gate(GATE)
        messages = await stream.whole()
    assert attempts_of(second) == [GATE - 1]
    with pytest.raises(AssertionError):
        check_whole(messages)
    words = "".join(f"#{int(number) - 1} " for number in said(messages))
    assert judge(words, LAST) == {"words doubled": 2}


@pytest.mark.parametrize("words", ["#0 #1 #2 ", "#0 #1 #1 #2", "#0 #2", "#0 #2 #1", "#0 #1#2", ""])
def test_the_check_of_an_answer_finds_each_fault(words: str) -> None:
    """The check of an answer names words that are doubled, lost, broken or out of order, and accepts a whole one."""
    found = {
        "#0 #1 #2 ": {},
        "#0 #1 #1 #2": {"words doubled": 1},
        "#0 #2": {"words lost": 1},
        "#0 #2 #1": {"words out of order": 1},
        "#0 #1#2": {"words broken": 1, "words lost": 2},
        "": {"words lost": 3},
    }
    assert judge(words, 3) == found[words]


@pytest.mark.parametrize(("unfenced", "times"), [("", ["b"]), ("1", ["b", "a"])], ids=["fenced", "unfenced"])
async def test_without_fencing_a_tool_runs_twice(
    deployment: Deployment, tmp_path: Path, unfenced: str, times: list[str]
) -> None:
    """A worker that does not notice its lost lease runs no tool, because the store refuses its start; else twice."""
    marks = tmp_path / "marks"
    settings = {"TEST_MARKS": str(marks), "TEST_UNFENCED": unfenced}
    first = await deployment.worker("a", "tests.faults.unfenced_agents:charging", **settings)
    async with deployment.stream("charge") as stream:
        await stream.until("before ")
        await deployment.worker("b", "tests.faults.unfenced_agents:charging", **settings)
        messages = await stream.whole()
    assert error_of(messages) is None
    assert "".join(said(messages)).split() == ["before", "after"]
    deployment.open_gate()
    await first.until("note a ends")
    assert marks.read_text().split() == times
