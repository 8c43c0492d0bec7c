"""Which models there are, and to which queue their jobs go."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentstream.errors import NotFound
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import Keys
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobSubmitter


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many workers of a queue beat lately, how many of its jobs wait or run, and those that wait."""

    workers: int
    queued: int
    waiting: int
    oldest_s: float


class ModelRouter:
    """The front end's side of all its queues, each with a bound of its own."""

    def __init__(  # noqa: PLR0913 -- the names and their bound
        self,
        link: Link,
        keys: Keys,
        *,
        queue_of: Mapping[str, str],
        default_queue: str,
        default_models: Sequence[str],
        max_queued: int,
    ) -> None:
        """Take the models' queues; if there are none, any model goes to the default queue.

        Then ``default_models`` are listed.
        """
        self._any_model = not queue_of
        self._queue_of = dict(queue_of) or dict.fromkeys(default_models, default_queue)
        queues = dict.fromkeys([default_queue] if self._any_model else queue_of.values())
        self._submitters = {queue: JobSubmitter(link, keys, queue, max_queued=max_queued) for queue in queues}
        self._default_queue = next(iter(queues))
        self._default = self._submitters[self._default_queue]

    @property
    def queues(self) -> list[str]:
        """The names of all queues."""
        return list(self._submitters)

    def check(self, model: str) -> None:
        """Raise NotFound if no agent answers for this model."""
        if not self._any_model:
            self.queue_of(model)

    def queue_of(self, model: str) -> str:
        """Return the queue of a model that is listed if it has a worker; raises NotFound."""
        queue = self._queue_of.get(model)
        if queue is None:
            message = f"no such model: {model[:80]!r}; GET /v1/models lists those there are"
            raise NotFound(message, code="model_not_found", param="model")
        return queue

    def submit(self, job: Job, *, ttl_s: int) -> Awaitable[None]:
        """Enqueue a job where its model's agent is; see JobSubmitter.submit. Raises NotFound, too."""
        return self._submitters[self.queue_of_job(job)].submit(job, ttl_s=ttl_s)

    def queue_of_job(self, job: Job) -> str:
        """Return the queue a job goes to; raises NotFound."""
        return self._default_queue if self._any_model else self.queue_of(job.request["model"])

    async def check_limits(self, job: Job, **limits: Any) -> None:  # noqa: ANN401 -- JobSubmitter's
        """Count a request against its owner's limits, whatever its queue; see JobSubmitter.check_limits."""
        await self._default.check_limits(job, **limits)

    async def states(self) -> dict[str, QueueState]:
        """Return the state of every queue."""
        submitters = self._submitters.values()
        workers = await asyncio.gather(*(submitter.workers_alive() for submitter in submitters))
        backlogs = await asyncio.gather(*(submitter.backlog() for submitter in submitters))
        return {
            queue: QueueState(alive, backlog.jobs, backlog.waiting, backlog.oldest_s)
            for queue, alive, backlog in zip(self._submitters, workers, backlogs, strict=True)
        }

    async def available_models(self) -> list[str]:
        """Return the models that have a live worker: a request for another would only wait."""
        submitters = self._submitters
        counts = await asyncio.gather(*(submitter.workers_alive() for submitter in submitters.values()))
        alive = {queue for queue, workers in zip(submitters, counts, strict=True) if workers}
        return [model for model, queue in self._queue_of.items() if queue in alive]
