"""The benchmark, ``make bench``. It prints a table, a profile and the cost of each layer.

It writes the table of the guide, and the figures that sentences of the guides repeat (``tests.bench.figures``).

All figures of the front end are for one process on one core. Broker, workers and load generator share the other core.
"Chunks/s per core" is the number of chunks divided by the CPU time of the front end, because the other core cannot
produce enough load to keep the front end busy. Linux only.
"""

import asyncio
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from agentstream.processes.broker import EmbeddedBroker, find_server
from tests.bench import figures, layers, scenarios
from tests.bench.people import people
from tests.bench.processes import Rig, new_queue_name
from tests.bench.scenarios import Row
from tests.bench.tokens import Load

SCENARIOS: Final[tuple[Callable[[Rig], Iterator[Row]], ...]] = (
    people,
    scenarios.chunks,
    scenarios.broker,
    scenarios.latencies,
    scenarios.first_event,
    scenarios.idle_streams,
    scenarios.worker,
    scenarios.pipeline,
    scenarios.scaling,
)
TABLE: Final = re.compile(r"(<!-- bench -->\n).*?(<!-- end of bench -->)", re.DOTALL)


def table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| what | measured | baselines | target |", "|---|---|---|---|"]
    for row in rows:
        target = {True: f"{row.target}: met", False: f"{row.target}: missed", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.ours} | {row.baselines} | {target} |")
    return "\n".join(lines) + "\n"


def profile(rig: Rig) -> str:
    """Profile a front end that writes to 1,000 streams, slowly enough for one token per write."""
    queue, load = new_queue_name(), Load(rounds=50, per_s=10_000)
    with rig.frontend(queue, module="tests.bench.profiled") as ours, rig.driver(queue) as driver:
        ours.open(1000)
        driver.ask("claim", count=1000)
        ours.loadgen.ask("count", expected=1000 * load.rounds)
        driver.send("write", **load.model_dump())
        ours.loadgen.answer()
        driver.answer()
        ours.close()
        return ours.child.stop().partition("profile:\n")[2].partition("end of profile")[0]


async def main() -> int:
    """Measure and return the exit code. It is 0 even if a target is missed: the table shows that."""
    began_s = time.monotonic()
    async with EmbeddedBroker(choice := find_server()) as broker:
        rig = Rig(broker.url, broker.pid)
        chosen = [scenario for scenario in SCENARIOS if not sys.argv[1:] or scenario.__name__ in sys.argv[1:]]
        rows: list[Row] = []
        for scenario in chosen:
            print(f"measuring: {scenario.__name__}", file=sys.stderr, flush=True)
            rows += await asyncio.to_thread(list, scenario(rig))
        print(table(rows))
        if len(chosen) < len(SCENARIOS):
            return 0
        print("The hot path of the front end, with one token per message:\n")
        print(await asyncio.to_thread(profile, rig))
    print("The cost of each layer per token:\n")
    for layer, cost_us in await layers.measure():
        print(f"  {cost_us:6.2f} us  {layer}")
    print(f"\n{choice.origin}, Python {sys.version.split()[0]}, {time.monotonic() - began_s:.0f} s")
    text = figures.PERFORMANCE.read_text()
    figures.PERFORMANCE.write_text(TABLE.sub(lambda match: match[1] + table(rows) + match[2], text))
    for guide in figures.GUIDES:
        guide.write_text(figures.agree(guide.read_text(), figures.measured(table(rows))))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
