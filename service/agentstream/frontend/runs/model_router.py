"""Maps models to the queues of their jobs."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agentstream.errors import BusError, NotFound
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import Keys
from agentstream.store.connection.link import Link
from agentstream.store.replicas import Replicas
from agentstream.store.submission import Admission, Backlog, JobSubmitter

Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class QueueState:
    """The state of a queue; -1 is an unknown number.

    ``workers`` is the number of workers with a recent heartbeat, ``queued`` the number of jobs that wait or run,
    ``waiting`` the number that no worker has claimed, and ``oldest_s`` the age of the oldest of those in seconds.
    ``parked`` is the number of runs that wait for people. They are not among the jobs.
    """

    workers: int
    queued: int
    waiting: int
    oldest_s: float
    parked: int


class ModelRouter:
    """Submits jobs to the queues of this front end. Each queue has its own limit ``max_queued``."""

    def __init__(  # noqa: PLR0913 -- the names of models and queues, and the limit
        self,
        link: Link,
        keys: Keys,
        *,
        queue_of: Mapping[str, str],
        default_queue: str,
        default_models: Sequence[str],
        max_queued: int,
        replicas: Replicas | None = None,
    ) -> None:
        """Bind the queue of each model.

        If ``queue_of`` is empty, the jobs of every model go to ``default_queue``, and the listed models are
        ``default_models``. ``replicas`` must have a job before it counts as enqueued.
        """
        self._any_model = not queue_of
        self._queue_of = dict(queue_of) or dict.fromkeys(default_models, default_queue)
        queues = dict.fromkeys([default_queue] if self._any_model else queue_of.values())
        self._submitters = {
            queue: JobSubmitter(link, keys, queue, max_queued=max_queued, replicas=replicas) for queue in queues
        }
        self._default_queue = next(iter(queues))
        self._default = self._submitters[self._default_queue]

    @property
    def queues(self) -> list[str]:
        """The names of all queues."""
        return list(self._submitters)

    def check(self, model: str) -> None:
        """Raise NotFound if no agent is configured for this model."""
        if not self._any_model:
            self.queue_of(model)

    def queue_of(self, model: str) -> str:
        """Return the queue of a configured model; raises NotFound for any other model."""
        queue = self._queue_of.get(model)
        if queue is None:
            message = f"no such model: {model[:80]!r}; GET /v1/models lists the available models"
            raise NotFound(message, code="model_not_found", param="model")
        return queue

    def submit(self, job: Job, *, ttl_s: int, admission: Admission | None = None) -> Awaitable[None]:
        """Enqueue a job in the queue of its model. Raises NotFound and the errors of ``JobSubmitter.submit``."""
        return self._submitters[self.queue_of_job(job)].submit(job, ttl_s=ttl_s, admission=admission)

    def keeps_order(self, job: Job) -> bool:
        """Whether one server has the run and its queue; ``JobSubmitter.keeps_order`` explains it."""
        return self._submitters[self.queue_of_job(job)].keeps_order(job)

    def queue_of_job(self, job: Job) -> str:
        """Return the queue of a job; raises NotFound if no agent is configured for its model."""
        return self.queue_of_model(job.request["model"])

    def queue_of_model(self, model: str) -> str:
        """Return the queue of the runs of a model; raises NotFound if no agent is configured for it."""
        return self._default_queue if self._any_model else self.queue_of(model)

    async def check_limits(self, job: Job, **limits: Any) -> None:  # noqa: ANN401 -- JobSubmitter's
        """Count a request against the limits of its owner, which apply to all queues together.

        Raises the errors of ``JobSubmitter.check_limits``.
        """
        await self._default.check_limits(job, **limits)

    async def states(self, timeout_s: float) -> dict[str, QueueState]:
        """Return the state of every queue.

        A number that Redis does not return within ``timeout_s`` is -1: in a cluster, its server may be lost.
        """
        states = await asyncio.gather(*(_state_of(each, timeout_s) for each in self._submitters.values()))
        return dict(zip(self._submitters, states, strict=True))

    async def available_models(self) -> list[str]:
        """Return the models whose queue has a live worker."""
        submitters = self._submitters
        counts = await asyncio.gather(*(submitter.workers_alive() for submitter in submitters.values()))
        alive = {queue for queue, workers in zip(submitters, counts, strict=True) if workers}
        return [model for model, queue in self._queue_of.items() if queue in alive]


async def _state_of(submitter: JobSubmitter, timeout_s: float) -> QueueState:
    workers, backlog, parked = await asyncio.gather(
        _within(timeout_s, submitter.workers_alive(), -1),
        _within(timeout_s, submitter.backlog(), Backlog(-1, -1, -1)),
        _within(timeout_s, submitter.parked(), -1),
    )
    return QueueState(workers, backlog.jobs, backlog.waiting, backlog.oldest_s, parked)


async def _within(timeout_s: float, reading: Awaitable[Fact], unknown: Fact) -> Fact:
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except (TimeoutError, BusError):
        return unknown
