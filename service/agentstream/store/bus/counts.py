"""What readers and writers of a process have counted since it began: plain integers, told by its metrics."""

from dataclasses import dataclass, field

from agentstream.telemetry.names import CATCH_UP_CAUSES


@dataclass(slots=True)
class FeedCounts:
    """Of all feeds of a process: times they read their logs, by cause; holes these filled; messages already known."""

    catch_ups: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATCH_UP_CAUSES, 0))
    gaps: int = 0
    duplicates: int = 0


@dataclass(slots=True)
class PublishCounts:
    """Of all publishers of a process: batches sent again, runs refused more by whom, and logs that were cut."""

    retries: int = 0
    fenced: int = 0
    refused: int = 0
    trimmed: int = 0
