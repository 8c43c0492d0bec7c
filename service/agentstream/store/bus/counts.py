"""Counters of the feeds and publishers of a process since its start: plain integers, which its metrics read."""

from dataclasses import dataclass, field

from agentstream.telemetry.names import CATCH_UP_CAUSES


@dataclass(slots=True)
class FeedCounts:
    """Counters of all feeds of a process.

    ``catch_ups``: reads of a replay log, by cause. ``gaps``: reads that found lost messages. ``duplicates``: messages
    whose events were delivered before.
    """

    catch_ups: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATCH_UP_CAUSES, 0))
    gaps: int = 0
    duplicates: int = 0


@dataclass(slots=True)
class PublishCounts:
    """Counters of all publishers of a process.

    ``retries``: batches sent again. ``fenced``: attempts ended by a newer attempt. ``refused``: attempts ended by an
    error of the broker. ``trimmed``: logs that exceeded their size limit.
    """

    retries: int = 0
    fenced: int = 0
    refused: int = 0
    trimmed: int = 0
