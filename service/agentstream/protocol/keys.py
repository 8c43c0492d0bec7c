"""The names of all Redis keys and channels. The part in braces is a cluster hash tag, which decides about the slot."""

import zlib
from typing import Final

PREFIX: Final = "agentstream"
GROUP: Final = "workers"
# Runs are divided into this many partitions. All keys of a partition share one slot of a cluster, so that one script
# and one subscription can serve many runs. The tags {p0} to {p255} spread evenly: three primaries get 32 to 35 % each,
# twelve 7.4 to 9.4 %.
PARTITIONS: Final = 256


def partition(run_id: str) -> int:
    """Return the partition of a run: CRC-32 of its id, modulo PARTITIONS."""
    return zlib.crc32(run_id.encode()) % PARTITIONS


class Keys:
    """The names under one prefix: those of one deployment, or of one test."""

    def __init__(self, prefix: str = PREFIX) -> None:
        """Store the prefix."""
        self.prefix = prefix

    def jobs(self, queue: str) -> str:
        """Stream of job envelopes, consumer group ``workers``. Its length is the number of outstanding jobs."""
        return f"{self.prefix}:jobs:{queue}"

    def workers(self, queue: str) -> str:
        """Sorted set of live worker ids. The score is the server time (s) of the last heartbeat."""
        return f"{self.prefix}:workers:{queue}"

    def events(self, run_id: str) -> str:
        """Pub/sub channel of live batches. The Stream with the same name is the replay log."""
        return f"{self.prefix}:{{p{partition(run_id)}}}:{run_id}:events"

    def run(self, run_id: str) -> str:
        """Hash of a run: status, owner, model, attempt, worker and more. PROTOCOL.md, 4.1, lists the fields."""
        return f"{self.prefix}:{{p{partition(run_id)}}}:{run_id}:run"

    def control(self, worker_id: str) -> str:
        """Channel of one worker: ids of runs that it must cancel, or that have got answers or messages.

        A channel for each run would cost a subscription.
        """
        return f"{self.prefix}:control:{worker_id}"

    def handed_back(self, queue: str) -> str:
        """Pub/sub channel: a message says that a worker of the queue has handed a job back."""
        return self.control(f"handed-back:{queue}")

    def parked(self, queue: str) -> str:
        """Sorted set of parked runs. The score is the Unix time (s) at which an interrupt of the run expires."""
        return f"{self.prefix}:parked:{queue}"

    def idempotency(self, digest: str) -> str:
        """Value with a TTL: the run of an idempotency key. ``digest`` is a hash of the owner and the key."""
        return f"{self.prefix}:idempotency:{digest}"

    def active_runs(self, owner: str) -> str:
        """Sorted set with a TTL: active runs of an API key. The score is the time (s) when a run stops counting."""
        return f"{self.prefix}:{{key-{owner}}}:active"

    def requests(self, owner: str) -> str:
        """Counter with a TTL: requests of an API key in the current minute."""
        return f"{self.prefix}:{{key-{owner}}}:requests"

    def probe(self, number: int = 0) -> str:
        """Name that ``probe.lua`` uses to prove that the server of a partition accepts writes. It stores nothing."""
        return f"{self.prefix}:{{p{number}}}:probe"
