"""The figures in the sentences of the guides that come from the benchmark's table, and how they follow from it."""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.bench.machine import ROOT

PERFORMANCE: Final = ROOT / "deploy" / "guides" / "performance.md"
# The guides that repeat figures of the table.
GUIDES: Final = (PERFORMANCE, PERFORMANCE.with_name("scaling.md"), PERFORMANCE.with_name("operations.md"))


class Measured(NamedTuple):
    """The values of the benchmark's table that sentences repeat."""

    chunks_per_s: float
    ours_us: float
    ours_kernel_us: float
    floor_us: float
    floor_kernel_us: float
    broker_us: float
    broker_of_four_us: float
    idle_kib: float
    worker_tokens_per_s: float
    runs_per_s: float


_ROWS: Final = (
    r"\| chunks/s per core, 1,000 streams, 1 token per message \| ([\d,]+)",
    r"us per chunk .*?ours ([\d.]+) \(",
    r"us per chunk .*?ours [\d.]+ \(([\d.]+)\)",
    r"us per chunk .*?floor ([\d.]+) \(",
    r"us per chunk .*?floor [\d.]+ \(([\d.]+)\)",
    r"\| broker CPU per token, 1,000 streams \| ([\d.]+) us",
    r"\| the same, 4 tokens per message \| ([\d.]+) us",
    r"memory per stream \| ([\d.]+) KiB",
    r"\| tokens/s published, one worker, 200 agents \| ([\d,]+)",
    r"\| runs/s, answers of 20 words, one front end, one worker \| ([\d,]+)",
)


def measured(table: str) -> Measured:
    """Read the values from the benchmark's table, as Markdown. Raises ValueError if a row is missing."""
    values = []
    for row in _ROWS:
        found = re.search(row, table)
        if found is None:
            message = f"the benchmark's table has no row like {row!r}"
            raise ValueError(message)
        values.append(float(found[1].replace(",", "")))
    return Measured(*values)


def _about(value: float) -> str:
    """Return a number with two significant digits: 61,929 is about 62,000."""
    digits = len(str(int(value)))
    return f"{round(value, 2 - digits):,.0f}"


# A sentence, with one group for its figure -> the figure. The benchmark rewrites the group.
SENTENCES: Final[dict[str, Callable[[Measured], str]]] = {
    r"about ([\d,]+) chunks/s with one token per message": lambda m: _about(m.chunks_per_s),
    r"or ([\d,]+) short runs/s": lambda m: _about(m.runs_per_s),
    r"idle stream uses ([\d.]+) KiB": lambda m: f"{m.idle_kib:.1f}",
    r"10,000 idle streams use about ([\d,]+) MiB": lambda m: _about(m.idle_kib * 10_000 / 1024),
    r"About ([\d,]+) tokens/s from agents that only write": lambda m: _about(m.worker_tokens_per_s),
    r"About ([\d.]+) µs of one core per token": lambda m: f"{m.broker_us:.1f}",
    r"([\d.]+) µs at four tokens per message": lambda m: f"{m.broker_of_four_us:.1f}",
    r"This is ([\d,]+) to [\d,]+ tokens/s": lambda m: _about(1e6 / m.broker_us),
    r"This is [\d,]+ to ([\d,]+) tokens/s": lambda m: _about(1e6 / m.broker_of_four_us),
    r"The kernel needs (\d+) % of the time for a chunk": lambda m: f"{100 * m.ours_kernel_us / m.ours_us:.0f}",
    r"is ([\d.]+) us of Python in ten": lambda m: f"{m.ours_us - m.ours_kernel_us:.1f}",
    r"leaves ([\d.]+) us for all of them": lambda m: f"{m.floor_us / 0.85 - m.ours_kernel_us:.1f}",
    r"aiohttp's own writer takes ([\d.]+) us": lambda m: f"{m.floor_us - m.floor_kernel_us:.1f}",
}


def agree(text: str, values: Measured) -> str:
    """Return a guide with the figures of its sentences replaced by those of the table."""
    for sentence, figure in SENTENCES.items():
        for found in reversed(list(re.finditer(sentence, text))):
            text = text[: found.start(1)] + figure(values) + text[found.end(1) :]
    return text
