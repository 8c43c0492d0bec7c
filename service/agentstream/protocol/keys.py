"""Every Redis name. ``{run}`` is a cluster hash tag: one run lives in one slot."""

from typing import Final

PREFIX: Final = "agentstream"
GROUP: Final = "workers"


class Keys:
    """Names under one prefix; tests use a prefix of their own."""

    def __init__(self, prefix: str = PREFIX) -> None:
        """Keep the prefix."""
        self.prefix = prefix

    def jobs(self, queue: str) -> str:
        """Stream of job envelopes, group ``workers``; its length is the outstanding work."""
        return f"{self.prefix}:jobs:{queue}"

    def workers(self, queue: str) -> str:
        """Sorted set of live worker ids by the server time (seconds) of their last beat."""
        return f"{self.prefix}:workers:{queue}"

    def events(self, run_id: str) -> str:
        """Pub/sub channel of live events, and the Stream of the same name: the replay log."""
        return f"{self.prefix}:{{{run_id}}}:events"

    def control(self, worker_id: str) -> str:
        """Channel of one worker: ids of runs it shall cancel. One a worker, so a run costs no subscription."""
        return f"{self.prefix}:control:{worker_id}"

    def idempotency(self, digest: str) -> str:
        """Name of the run an idempotency key of one owner stands for, a string with a TTL; ``digest`` hides both."""
        return f"{self.prefix}:idempotency:{digest}"

    def active_runs(self, owner: str) -> str:
        """Sorted set of an API key's active runs, by the time they must have ended; TTL."""
        return f"{self.prefix}:{{key-{owner}}}:active"

    def requests(self, owner: str) -> str:
        """Counter of an API key's requests in this minute; TTL."""
        return f"{self.prefix}:{{key-{owner}}}:requests"

    def run(self, run_id: str) -> str:
        """Hash: status, owner, model, created, include_usage, attempt, entry, worker, cancel, handed_back."""
        return f"{self.prefix}:{{{run_id}}}:run"
