"""Why an attempt was stopped, if several things happen to it."""

import time

from agentstream.agents import Agent, AgentResult, Run
from agentstream.errors import Fenced
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.store.queue import Claim
from agentstream.worker.execution import HAND_BACK, LEASE_LOST, Execution


def execution() -> Execution:
    """Return the execution of a job of a resumable agent."""

    async def agent(_run: Run) -> AgentResult:
        return AgentResult("")

    def resolve(_model: str) -> Agent:
        return agent

    job = Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=time.time() + 60)
    return Execution(resolve, Claim("1-0", job, 0.0), lambda _success: None)


async def test_the_loss_of_the_lease_counts_most() -> None:
    """A worker that was frozen, replaced and then told to stop does not report the end of a run that it has lost."""
    stopped = execution()
    stopped.stop(HAND_BACK)
    stopped.abandon(Fenced("attempt 1 was superseded"))
    assert stopped.stop_reason == LEASE_LOST
    assert not stopped.broker_refused


async def test_the_first_of_other_reasons_counts() -> None:
    """Of a stop and a later cancel, the first one decides."""
    stopped = execution()
    stopped.stop(HAND_BACK)
    stopped.cancel()
    assert stopped.stop_reason == HAND_BACK
