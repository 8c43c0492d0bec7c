"""The table of failovers: streams of numbered words while a primary is lost, replaced or moved.

    python -m tests.faults.failover_table --streams 150

It starts a cluster of three primaries and three replicas, then a primary with two replicas and three sentinels, each
with two front ends and three workers. It prints a row for each fault, and exits with 1 if a row is wrong. With
``--break``, the processes have a fault in their connection, so the table must be wrong.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self

from agentstream.protocol.keys import Keys
from tests.brokers.cluster import ClusterServers
from tests.brokers.network import can_cut
from tests.brokers.sentinel import SentinelServers
from tests.brokers.servers import executables
from tests.faults import broker_faults
from tests.faults.broken_links import CHOICES, VARIABLE
from tests.faults.broker_faults import AnyServers
from tests.faults.chaos_agents import FOLDER_VARIABLE
from tests.faults.checking_client import client_session
from tests.faults.cluster_spread import Spread
from tests.faults.failover_streams import OpenStreams
from tests.helpers import TIME_SCALE
from tests.processes import Processes

FRONTENDS: Final = 2
WORKERS: Final = 3
FROZEN_S: Final = 8.0
SLOTS_MOVED: Final = 2000
# The time in which clients must be served again after the servers themselves have a primary again: the interval in
# which the links ask for it, a reconnect, and a margin for a loaded machine.
MARGIN_S: Final = 5 + 5 * TIME_SCALE
AFTER_S: Final = 1.0  # more load after a fault, because it may have consequences
SETTLE_S: Final = 45 * TIME_SCALE

Fault = Callable[[], Awaitable[float]]


@dataclass
class Row:
    """The result of one fault."""

    fault: str
    streams: int = 0
    failover_s: float = 0.0
    pause_s: float = 0.0
    new_requests: int = 0
    wait_s: float = 0.0
    refused: int = 0
    tokens: int = 0
    reconnects: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not +self.wrong

    @classmethod
    def of(cls, fault: str, streams: OpenStreams, failover_s: float) -> Self:
        """Return the row of streams that have ended, or hang."""
        row = cls(fault, len(streams.long), failover_s, new_requests=len(streams.new))
        row.pause_s = max(stream.pause_s for stream in streams.long)
        row.wait_s = max((stream.wait_s for stream in streams.new), default=0.0)
        row.refused = streams.refused.total()
        row.wrong["answers not ended"] = streams.unfinished
        for stream in (*streams.long, *streams.new):
            row.tokens += stream.words
            row.reconnects += max(0, stream.connections - 1)
            row.wrong.update(stream.wrong)
            if stream.outcome != "complete":
                row.wrong["answers not whole"] += 1
                row.details.append(f"{stream.run_id or 'a request without an answer'}: {stream.outcome or 'open'}")
        bound_s = failover_s + MARGIN_S
        if max(row.pause_s, row.wait_s) > bound_s:
            row.wrong["pauses that are too long"] += 1
            row.details.append(f"the longest pause or wait is above {bound_s:.1f} s")
        return row

    def cells(self) -> list[str]:
        """Return the cells of the row, as text."""
        wrong = self.wrong
        return [
            self.fault,
            f"{self.failover_s:.1f} s" if self.failover_s else "none",
            f"{self.pause_s:.1f} s",
            f"{self.wait_s:.1f} s",
            f"{self.refused} of {self.new_requests}",
            f"{self.tokens:,}",
            str(wrong["words lost"]),
            str(wrong["words doubled"]),
            str(wrong["words out of order"]),
            str(wrong["answers not whole"]),
        ]


HEADINGS: Final = (
    "fault",
    "servers without a primary",
    "worst pause of a stream",
    "longest wait of a new request",
    "refused requests, served later",
    "tokens",
    "lost",
    "doubled",
    "out of order",
    "answers not whole",
)


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, with what is wrong below."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row.cells() for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    wrong = [
        f"! {row.fault}: {', '.join(f'{name} {count}' for name, count in (+row.wrong).items())}\n"
        + "\n".join(f"    {detail}" for detail in row.details[:10])
        for row in rows
        if not row.clean
    ]
    return "\n".join((table, *wrong))


class Scene:
    """Front ends and workers on servers, and streams during faults."""

    def __init__(self, servers: AnyServers, processes: Processes, folder: Path) -> None:
        self.servers = servers
        self.processes = processes
        self.urls: list[str] = []
        self.spread: Spread | None = None  # of the streams without a fault, in a cluster
        self._folder = folder
        self._rounds = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, servers: AnyServers, folder: Path, broken: str = "") -> AsyncIterator[Self]:
        """Start the front ends and the workers. ``folder`` must exist."""
        async with Processes(servers.url, folder) as processes:
            if broken:
                processes.module = "tests.faults.broken_links"
            settings = {
                VARIABLE: broken,
                FOLDER_VARIABLE: str(folder),
                "AGENTSTREAM_CONCURRENCY": "120",
                "AGENTSTREAM_LOG_LEVEL": "info",
            }
            scene = cls(servers, processes, folder)
            started = [processes.worker("tests.faults.endless_agent:counting", **settings) for _ in range(WORKERS)]
            scene.urls = list(await asyncio.gather(*(processes.frontend(**settings) for _ in range(FRONTENDS))))
            await asyncio.gather(*started)
            yield scene

    async def row(self, name: str, fault: Fault, count: int, settle_s: float = SETTLE_S) -> Row:
        """Return the row of a fault that hits this many open streams."""
        self._rounds += 1
        async with client_session() as session:
            streams = OpenStreams(session, self.urls, self._folder, f"stop-{self._rounds}")
            try:
                await streams.start(count)
                failover_s = await fault()
                stuck = await streams.flow_on(settle_s)
                await broker_faults.repair(self.servers)
                await asyncio.sleep(AFTER_S)
                await streams.finish(settle_s)
                row = Row.of(name, streams, failover_s)
                row.wrong["streams that do not flow again"] = stuck
                return row
            finally:
                await streams.close()

    def faults(self, frozen_s: float = FROZEN_S) -> dict[str, Fault]:
        """Return the faults of this kind of servers by name. A frozen primary stays so for ``frozen_s``."""
        servers, queue = self.servers, Keys().jobs(self.processes.queue)

        async def on_queue(fault: Callable[..., Awaitable[float]], *arguments: float) -> float:
            """Hit the primary that has the queue: new requests need it, too."""
            return await fault(servers, await servers.primary_of(queue), *arguments)

        found: dict[str, Fault] = {
            "no fault": self.measure,
            "primary killed": partial(on_queue, broker_faults.lose),
            f"primary frozen for {frozen_s:g} s": partial(on_queue, broker_faults.freeze, frozen_s),
            "planned failover": partial(on_queue, broker_faults.hand_over),
        }
        if isinstance(servers, ClusterServers):
            found[f"{SLOTS_MOVED:,} slots moved"] = partial(_move_from_queue, servers, queue)
            found["node added and removed"] = partial(broker_faults.add_and_remove, servers, SLOTS_MOVED // 10)
        else:
            found["primary demoted behind the sentinels' back"] = partial(broker_faults.demote, servers)
        if can_cut():
            found["network cut between primary and replicas"] = partial(on_queue, broker_faults.cut_off_replicas, 4.0)
            found["primary cut off from all servers"] = partial(on_queue, broker_faults.isolate)
        return found

    async def measure(self) -> float:
        """Measure, instead of a fault, how a cluster shares the work."""
        if isinstance(self.servers, ClusterServers):
            self.spread = await Spread.measure(self.servers)
        return 0.0


async def _move_from_queue(servers: ClusterServers, queue: str) -> float:
    source = await servers.primary_of(queue)
    target = next(primary for primary in await servers.primaries() if primary is not source)
    return await broker_faults.move_slots(servers, SLOTS_MOVED, source, target)


async def _main(options: argparse.Namespace, folder: Path) -> list[Row]:
    rows: list[Row] = []
    names = executables()
    for kind in options.kind or ("cluster", "sentinel"):
        executable = names[options.server]
        (folder / kind).mkdir()
        servers = (
            ClusterServers(executable)
            if kind == "cluster"
            else SentinelServers(executable, settings=broker_faults.KEEPS_REPLICAS)
        )
        async with servers, Scene.open(servers, folder / kind, options.broken) as scene:
            for name, fault in scene.faults().items():
                if options.fault in name:
                    row = await scene.row(f"{kind}: {name}", fault, options.streams, options.settle)
                    sys.stderr.write(as_table([row]).split("\n", 2)[2] + "\n")
                    rows.append(row)
            if scene.spread is not None:
                sys.stderr.write(f"{scene.spread}\n")
            if options.output:
                for number, process in enumerate(scene.processes.started):
                    (options.output / f"{kind}-{number}.log").write_text(process.output)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=150)
    parser.add_argument("--kind", action="append", choices=("cluster", "sentinel"), help="only this kind of servers")
    parser.add_argument("--server", choices=tuple(executables()), default="valkey-server")
    parser.add_argument("--fault", default="", help="only the faults that have these words in their names")
    parser.add_argument("--break", dest="broken", choices=CHOICES, default="", help="break the processes on purpose")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="wait this long for the end of all streams (s)")
    parser.add_argument("--output", type=Path, help="write the logs of the processes into this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentstream-failover-") as folder:
        rows = asyncio.run(_main(options, Path(folder)))
    print(as_table(rows))  # noqa: T201 -- the table is the output of this command
    return 0 if all(row.clean for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
