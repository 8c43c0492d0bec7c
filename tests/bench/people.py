"""The pace of people's reading: many streams of 20 tokens a second, and short runs at 10 a second.

At this pace almost no two tokens share a message, and each one wakes the worker, the broker and the front end. The
processes are not bound to cores, because here the sum of their CPU time counts.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import mean, median
from typing import Final

from tests.bench.machine import cpu_s, kernel_s
from tests.bench.processes import Rig, Server, new_queue_name
from tests.bench.scenarios import Row, percentile
from tests.bench.tokens import PACE_PER_S, Pace

TIMES: Final = 3
STREAMS: Final = (200, 400, 1000)
TOKENS: Final = PACE_PER_S  # of each stream: 1 s
RUNS_PER_S: Final = 10
IDLE_RUNS: Final = 15
LOADED_RUNS: Final = 200
CONNECTIONS: Final = 32
# By the number of streams: the largest CPU time a token, as a multiple of the seed's.
TARGETS: Final = {200: 1.0, 1000: 0.9}


class Spent:
    """The CPU time of some processes for each token or run, in us: the medians of several measurements."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """``pids`` maps the name of each process to its pid."""
        self._pids = pids
        self._us: dict[str, list[float]] = {name: [] for name in pids}
        self._kernel_us: dict[str, list[float]] = {name: [] for name in pids}

    @contextlib.contextmanager
    def on(self, count: int) -> Iterator[None]:
        """Measure a block that handles ``count`` tokens or runs."""
        before = {name: (cpu_s(pid), kernel_s(pid)) for name, pid in self._pids.items()}
        yield
        for name, pid in self._pids.items():
            busy_s, in_kernel_s = before[name]
            self._us[name].append((cpu_s(pid) - busy_s) / count * 1e6)
            self._kernel_us[name].append((kernel_s(pid) - in_kernel_s) / count * 1e6)

    @property
    def sums(self) -> list[float]:
        """The CPU time of all processes, for each measurement."""
        return [sum(values) for values in zip(*self._us.values(), strict=True)]

    def times(self, other: "Spent") -> float:
        """Return the CPU time relative to that of ``other``: the median of the paired measurements."""
        return median(ours / theirs for ours, theirs in zip(self.sums, other.sums, strict=True))

    def __str__(self) -> str:
        """Return the sum, and the part of the kernel, which is counted in steps of 10 ms."""
        return f"{median(self.sums):,.0f} ({sum(map(mean, self._kernel_us.values())):,.0f})"

    def by_process(self) -> str:
        """Return the same for each process."""
        return ", ".join(
            f"{name} {median(values):,.0f} ({mean(self._kernel_us[name]):,.0f})" for name, values in self._us.items()
        )


class Lateness:
    """The time from the scheduled write of a token until the client receives it."""

    def __init__(self) -> None:
        """Start without measurements."""
        self._us: list[list[float]] = []

    def add(self, values_us: list[float]) -> None:
        """Add the values of one measurement."""
        self._us.append(values_us)

    def ms(self, share: float) -> float:
        """Return a percentile, in ms: the median of the measurements."""
        return median(percentile(values, share) for values in self._us) / 1000

    def __str__(self) -> str:
        """Return p50 and p99."""
        return f"{self.ms(0.5):.1f}, {self.ms(0.99):.1f} ms"


def people(rig: Rig) -> Iterator[Row]:
    """Measure CPU time and lateness at the pace of people's reading, and the cost of short runs."""
    with rig.on_any_core():
        yield from _tokens(rig)
        yield from _runs(rig)


class System:
    """One system that writes tokens: how to let it write, its cost and its lateness."""

    def __init__(self, server: Server, write: Callable[[Pace], object], pids: Mapping[str, int] | None = None) -> None:
        """``pids`` are its processes, if the server is not the only one."""
        self._server = server
        self._write = write
        self._pids = pids or {"process": server.child.pid}
        self._opened = 0

    def open(self, count: int) -> None:
        """Open more streams, and begin to measure with all of them."""
        self._server.open(count)
        self._opened += count
        self.spent, self.late = Spent(self._pids), Lateness()

    def write(self, pace: Pace) -> list[float]:
        """Write at a pace, and return how late each token arrived, in us."""
        self._server.loadgen.ask("latencies", expected=pace.streams * pace.tokens)
        self._write(pace)
        return list(self._server.loadgen.answer()["latencies_us"])

    def warm_up(self) -> None:
        """Write one token to each stream."""
        self.write(Pace(streams=self._opened, tokens=1))

    def measure(self, pace: Pace) -> None:
        """Write at a pace and measure."""
        with self.spent.on(pace.streams * pace.tokens):
            self.late.add(self.write(pace))


def _tokens(rig: Rig) -> Iterator[Row]:
    queue = new_queue_name()
    with (
        rig.baseline("seed") as seed,
        rig.baseline("floor") as floor,
        rig.child("tests.bench.timers") as timers,
        rig.frontend(queue) as frontend,
        rig.worker(queue, "at_pace") as worker,
    ):
        systems = {
            "seed": System(seed, lambda pace: seed.post("/pace", **pace.model_dump())),
            "floor": System(floor, lambda pace: floor.post("/pace", **pace.model_dump())),
            "ours": System(
                frontend,
                lambda pace: frontend.answer(pace.model_dump_json()),
                {"worker": worker.pid, "broker": rig.broker_pid, "front end": frontend.child.pid},
            ),
        }
        opened = 0
        for streams in STREAMS:
            pace, alone = Pace(streams=streams, tokens=TOKENS), Spent({"process": timers.pid})
            for system in systems.values():
                system.open(streams - opened)
                system.warm_up()
            opened = streams
            with alone.on(streams * TOKENS):
                timers.ask("pace", **pace.model_dump())
            for _ in range(TIMES):
                for system in systems.values():
                    system.measure(pace)
            yield _row(streams, systems, alone)


def _row(streams: int, systems: Mapping[str, System], alone: Spent) -> Row:
    ours, seed, floor = systems["ours"], systems["seed"], systems["floor"]
    of_seed, target, met = ours.spent.times(seed.spent), "", None
    if streams in TARGETS:
        target, met = f"<= {TARGETS[streams]:.1f}x seed", of_seed <= TARGETS[streams]
    if streams == STREAMS[-1]:
        target += ", p50 < 3 ms, p99 < 20 ms"
        met = bool(met) and ours.late.ms(0.5) < 3 and ours.late.ms(0.99) < 20
    return Row(
        f"{streams:,} streams of 20 tokens/s: CPU us a token (part of the kernel); lateness p50, p99",
        f"{ours.spent} ({of_seed:.2f}x seed): {ours.spent.by_process()}; {ours.late}",
        f"seed {seed.spent}; {seed.late}; `floor` {floor.spent}; {floor.late}; timers {alone}",
        target,
        met,
    )


def _runs(rig: Rig) -> Iterator[Row]:
    queue = new_queue_name()
    with (
        rig.baseline("seed") as seed,
        rig.frontend(queue) as frontend,
        rig.worker(queue, "short", AGENTSTREAM_CONCURRENCY="64") as worker,
    ):
        own = {"worker": worker.pid, "broker": rig.broker_pid, "front end": frontend.child.pid}
        pids = {frontend: own, seed: {"process": seed.child.pid}}
        idle = {server: Spent(pids[server]) for server in pids}
        loaded = {server: Spent(pids[server]) for server in pids}
        with_pauses = Spent(pids[seed])  # the seed, as it was
        took_us: dict[Server, list[float]] = {server: [] for server in pids}
        for _ in range(TIMES):
            for server in pids:
                ask = partial(server.loadgen.ask, url=server.url)
                with idle[server].on(IDLE_RUNS):
                    answer = ask("first_events", count=IDLE_RUNS, question="x", pause_s=1 / RUNS_PER_S)
                took_us[server].append(percentile(answer["took_us"], 0.5))
                with loaded[server].on(LOADED_RUNS):
                    ask("runs", connections=CONNECTIONS, count=LOADED_RUNS, question="x")
            with with_pauses.on(LOADED_RUNS):
                seed.loadgen.ask(
                    "runs", url=seed.url, connections=CONNECTIONS, count=LOADED_RUNS, question="with pauses"
                )
    first_us, seed_us = median(took_us[frontend]), median(took_us[seed])
    yield Row(
        "10 short runs/s: time from request to first event, p50; CPU us a run (part of the kernel)",
        f"{first_us:,.0f} us ({first_us / seed_us:.1f}x seed); {idle[frontend]}: {idle[frontend].by_process()}",
        f"seed {seed_us:,.0f} us; {idle[seed]}",
        "first event <= 1.5x seed",
        first_us <= 1.5 * seed_us,
    )
    ours = loaded[frontend]
    yield Row(
        "short runs, 32 at a time: CPU us a run (part of the kernel)",
        f"{ours} ({ours.times(loaded[seed]):.2f}x seed, {ours.times(with_pauses):.2f}x the original with its pauses): "
        f"{ours.by_process()}",
        f"seed {loaded[seed]}; with the original's pause of 12 ms after each word {with_pauses}",
        "<= 0.8x seed",
        ours.times(loaded[seed]) <= 0.8,
    )
