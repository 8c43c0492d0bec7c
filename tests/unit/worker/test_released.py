"""The memory of a run that is over is free at once, without a search for cycles."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentstream.agents import Agent, AgentResult, Run
from agentstream.errors import RunCancelled
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.store.bus.publisher import RunPublisher
from agentstream.store.queue import Claim
from agentstream.worker.execution import Execution


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Switch Python's garbage collector off, and the log, because pytest keeps the errors that it shows."""
    gc.disable()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


async def answering(_run: Run) -> AgentResult:
    """Answer."""
    return AgentResult("done")


async def failing(_run: Run) -> AgentResult:
    """Fail."""
    message = "the model is gone"
    raise ValueError(message)


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error whose attributes cannot be set."""

    code: int


async def failing_frozen(_run: Run) -> AgentResult:
    """Fail with an error of a class that allows no change."""
    raise FrozenError(7)


async def breaking(_run: Run) -> AgentResult:
    """Break the contract of agents."""
    return cast("AgentResult", None)


def blocking(_run: Run) -> AgentResult:
    """Answer in a thread."""
    return AgentResult("done")


async def executed(agent: Agent) -> Execution:
    """Return the execution of a run after its end."""

    def resolve(_model: str) -> Agent:
        return agent

    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    job = Job(run_id=new_run_id(), request=request, created=1, start_by=time.time() + 60)
    execution = Execution(resolve, Claim("1-0", job, 0.0), lambda _success: None)
    publisher = SimpleNamespace(put_text=lambda _text: None, events_put=1, ended=False, text_characters=0)
    execution.bind(cast("RunPublisher", publisher))
    await execution.run_agent(10)
    await execution.wait_until_finished()
    for thread in threading.enumerate():
        if thread.name.startswith("agent "):
            thread.join(10)  # it has given its answer, but its last frames still refer to the run
    return execution


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("agent", [answering, failing, failing_frozen, breaking, blocking])
async def test_a_run_that_is_over_is_freed(agent: Agent) -> None:
    """After ``release`` nothing refers to the execution of a run, however its agent ended."""
    execution = await executed(agent)
    alive = weakref.ref(execution)
    execution.release()
    del execution
    assert alive() is None


async def test_an_agent_that_keeps_its_run_can_do_nothing_with_it() -> None:
    """After the end of a run, its agent can neither take messages nor ask people."""
    kept: list[Run] = []

    @_takes_inputs
    async def keeping(run: Run) -> AgentResult:
        kept.append(run)
        return AgentResult("done")

    execution = await executed(keeping)
    execution.release()
    execution.inputs.receive(cast("Any", SimpleNamespace(messages=[{"role": "user", "content": "more"}])))
    with pytest.raises(RunCancelled):
        execution.take_inputs()
    with pytest.raises(RunCancelled):
        await kept[0].interrupt("question", {"text": "go on?"})


def _takes_inputs(agent: Any) -> Agent:
    agent.takes_inputs = True
    return cast("Agent", agent)
