"""What a worker gets from the job queue: claims, begun attempts and renewals."""

from dataclasses import dataclass
from typing import NamedTuple

from agentstream.protocol.jobs import Job


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker holds, and its queue entry. Its lease began at ``lease_since_s`` (monotonic) or later.

    ``new`` says that the queue delivered it as a new job, so no worker held it before, unless the queue has lost that
    worker's claim. The job must not begin before ``not_before_s`` (monotonic). ``more`` says that another
    entry follows in the same reply.
    """

    entry_id: str
    job: Job
    lease_since_s: float
    new: bool = False
    not_before_s: float = 0.0
    more: bool = False


class Renewal(NamedTuple):
    """The entries that another worker holds, and those whose jobs must be enqueued again.

    The broker has lost the latter, or their replacement is not complete.
    """

    others: list[str]
    lost: list[str]


@dataclass(frozen=True, slots=True)
class BegunAttempt:
    """An attempt that has begun, and its first batch as it is stored.

    ``hand_backs`` is how many attempts of the run were handed back. ``waited_s`` is the time that the job was in the
    queue, and ``silent_s`` the time since the last sign of life of the earlier attempt's worker (0 in the first
    attempt), both by the server's clock.
    """

    attempt: int
    cancel_requested: bool
    hand_backs: int
    waited_s: float
    first_batch: bytes
    silent_s: float = 0.0
