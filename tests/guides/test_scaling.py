"""The numbers of the scaling guide follow from the benchmark's table."""

import math
import re

from tests.documents import Document

RATE, SHARE = 20, 0.6  # tokens a second of a stream, and the part of a core that is used


def rows(guide: str) -> list[list[int]]:
    """Return the numbers of each row of the table of the guide."""
    table = re.findall(r"(?m)^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", guide)
    return [[int(cell.replace(",", "")) for cell in row] for row in table]


def test_the_numbers_of_processes_follow_from_the_costs_of_a_token() -> None:
    """Each row is streams x rate x cost / share, rounded up, with the costs in the performance guide."""
    measured = re.search(
        r"(?m)^\| 1,000 streams of 20 tokens/s.*: worker (\d+) \(.*?\), broker (\d+) \(.*?\), front end (\d+) ",
        Document("deploy/guides/performance.md").text,
    )
    assert measured is not None
    worker_us, broker_us, frontend_us = map(int, measured.groups())
    guide = Document("deploy/guides/scaling.md").text
    assert f"{frontend_us} us of the front end, {worker_us} us of the worker and {broker_us} us of Redis" in guide
    found = rows(guide)
    assert [row[0] for row in found] == [1_000, 100_000, 1_000_000]
    for streams, *shown in found:
        costs = (frontend_us, worker_us, broker_us)
        needed = [math.ceil(streams * RATE * cost / 1e6 / SHARE) for cost in costs]
        assert shown == [*needed, math.ceil(streams / needed[1])]
    frontends, workers = found[-1][1:3]
    assert f"{frontends + 2 * workers:,} in the last row" in guide
