"""Questions of an agent that waits in its worker."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from agentstream.errors import InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import RUN_RESUMED
from agentstream.protocol.interrupts import Interrupt
from agentstream.store.interrupts import TIMED_OUT
from agentstream.worker.questions import MAX_OPEN_BYTES, Questions


class Published:
    """Records the types of the events that the questions publish."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def __call__(self, event_type: str, _data: dict[str, Any], _fields: tuple[Any, ...]) -> None:
        self.types.append(event_type)


def question(name: str = "a", payload: object = None) -> Interrupt:
    """Return a question without a time limit of its own."""
    return Interrupt(name, "question", payload, None, 0)


async def settled() -> None:
    """Let the event loop run what the questions have scheduled."""
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("ends", ["answered", "closed"])
async def test_a_question_that_is_over_does_not_keep_its_run_in_memory(ends: str) -> None:
    """The time limit of a question may be a day; after its answer, or after the run, no timer holds the run."""
    published = Published()
    questions = Questions(published, None)
    questions.ask(question()).add_done_callback(lambda future: future.exception())
    await settled()
    if ends == "answered":
        questions.deliver({"a": {"answer": 1}})
    questions.close()
    held = weakref.ref(published)
    del published, questions
    gc.collect()
    await settled()
    assert held() is None


async def test_nothing_is_delivered_after_the_run() -> None:
    """An answer that arrives while the run ends is dropped, because nothing more can be published."""
    published = Published()
    questions = Questions(published, None)
    answer = questions.ask(question())
    questions.close()
    questions.deliver({"a": TIMED_OUT})
    assert not questions.waits
    assert RUN_RESUMED not in published.types
    with pytest.raises(RunCancelled):
        answer.result()


async def test_the_same_question_asked_twice_gets_one_answer() -> None:
    """An agent that asks a question again while it waits gets the same answer in both places."""
    questions = Questions(Published(), None)
    first, second = questions.ask(question()), questions.ask(question())
    questions.deliver({"a": {"answer": 1}})
    assert first.result() == second.result() == 1
    questions.close()


async def test_the_open_questions_of_a_run_are_limited_together() -> None:
    """The hash of a run and its final chunk hold all open questions, so their size is limited."""
    questions = Questions(Published(), None)
    payload = "x" * (MAX_OPEN_BYTES // 2)
    questions.ask(question("a", payload)).add_done_callback(lambda future: future.exception())
    with pytest.raises(InvalidAgentOutput, match="open questions"):
        questions.ask(question("b", payload))
    questions.close()
