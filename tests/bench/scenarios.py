"""The scenarios of the benchmark. Each measures service and baselines in turn, several times; the median counts."""

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import Any, Final
from urllib.parse import urlsplit

from tests.bench.machine import MEASURED_CORE, OTHER_CORE, cpu_s, resident_bytes
from tests.bench.processes import Rig, Server, new_queue_name
from tests.bench.tokens import Load

TIMES: Final = 5
IDLE_STREAMS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the measured value, its baselines and whether it meets its target."""

    what: str
    ours: str
    baselines: str = ""
    target: str = ""
    met: bool | None = None


class Costs:
    """The CPU time of several processes per measured unit, in us: the median of several measurements."""

    def __init__(self, pids: dict[str, int]) -> None:
        """``pids`` maps the name of each process to its pid."""
        self._pids = pids
        self._spent_us: dict[str, list[float]] = {name: [] for name in pids}

    @contextlib.contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Measure the CPU time of the block, divided by ``count`` units."""
        before = {name: cpu_s(pid) for name, pid in self._pids.items()}
        yield
        for name, pid in self._pids.items():
            self._spent_us[name].append((cpu_s(pid) - before[name]) / count * 1e6)

    def __str__(self) -> str:
        """Return the cost of each process."""
        return ", ".join(f"{name} {median(values):,.0f}" for name, values in self._spent_us.items())


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which ``share`` of all values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(slots=True)
class Chunks:
    """The CPU time per chunk of a server, for each measurement, and the highest CPU share of the load generator."""

    us: list[float] = field(default_factory=list)
    kernel_us: list[float] = field(default_factory=list)
    loadgen_share: float = 0.0

    @property
    def per_s(self) -> float:
        """Chunks per second per core: the median."""
        return 1e6 / median(self.us)

    def times(self, other: "Chunks") -> float:
        """Return the throughput relative to another server: the median of the paired measurements."""
        return median(theirs / ours for ours, theirs in zip(self.us, other.us, strict=True))

    def __str__(self) -> str:
        """Return the CPU time per chunk, and the part of the kernel."""
        return f"{median(self.us):.1f} ({mean(self.kernel_us):.1f})"

    def measure(self, server: Server, count: int, write: Callable[[], None]) -> None:
        """Measure ``write``, which writes ``count`` chunks."""
        busy_s, kernel_s = server.cpu_s(), server.kernel_s()
        server.loadgen.ask("count", expected=count)
        write()
        share = server.loadgen.answer()["cpu_share"]
        self.us.append((server.cpu_s() - busy_s) / count * 1e6)
        self.kernel_us.append((server.kernel_s() - kernel_s) / count * 1e6)
        self.loadgen_share = max(share, self.loadgen_share)


def throughput(rig: Rig, streams: int, burst: int, rounds: int) -> dict[str, Chunks]:
    """Return the cost of chunks for each system."""
    load, queue, count = Load(rounds=rounds, burst=burst), new_queue_name(), streams * rounds * burst
    measured = {name: Chunks() for name in ("seed", "floor", "raw", "ours")}
    with (
        rig.baseline("seed") as seed,
        rig.baseline("floor") as floor,
        rig.frontend(queue) as ours,
        rig.driver(queue) as driver,
    ):
        for server in (seed, floor, ours):
            server.open(streams)
        driver.ask("claim", count=streams)
        for _ in range(TIMES):
            measured["seed"].measure(seed, count, lambda: seed.post("/go", **load.model_dump()))
            for name in ("floor", "raw"):
                values = load.model_dump() | {"raw": name == "raw"}
                floor.post("/prepare", **values)
                measured[name].measure(floor, count, partial(floor.post, "/go", **values))
            measured["ours"].measure(ours, count, partial(driver.send, "write", **load.model_dump()))
            driver.answer()
    return measured


def chunks(rig: Rig) -> Iterator[Row]:
    """Measure the chunks per second of one front-end core."""
    one = throughput(rig, 1000, 1, 40)
    ours, seed, floor = one["ours"], one["seed"], one["floor"]
    of_seed, of_floor = ours.times(seed), ours.times(floor)
    yield Row(
        "chunks/s per core, 1,000 streams, 1 token per message",
        f"{ours.per_s:,.0f} ({of_seed:.1f}x seed, {of_floor:.2f}x floor)",
        f"seed {seed.per_s:,.0f}, floor {floor.per_s:,.0f} ({floor.times(seed):.1f}x seed), "
        f"raw {one['raw'].per_s:,.0f}; "
        f"us per chunk (part of the kernel): {', '.join(f'{name} {costs}' for name, costs in one.items())}; "
        f"load generator {_busiest(one):.0%}",
        ">= 3x seed, >= 0.85x floor",
        of_seed >= 3 and of_floor >= 0.85,
    )
    many = throughput(rig, 100, 8, 60)
    ours, seed, floor = many["ours"], many["seed"], many["floor"]
    of_seed = ours.times(seed)
    yield Row(
        "chunks/s per core, 100 streams, 8 tokens per message",
        f"{ours.per_s:,.0f} ({of_seed:.1f}x seed)",
        f"seed {seed.per_s:,.0f}, floor {floor.per_s:,.0f}; load generator {_busiest(many):.0%}",
        ">= 8x seed",
        of_seed >= 8,
    )


def _busiest(measured: dict[str, Chunks]) -> float:
    return max(chunks.loadgen_share for chunks in measured.values())


def broker(rig: Rig) -> Iterator[Row]:
    """Measure the CPU time of the broker per token."""
    queue, streams = new_queue_name(), 1000
    spent: dict[str, list[float]] = {"1": [], "4": [], "publish": []}
    with rig.frontend(queue) as ours, rig.driver(queue) as driver:
        ours.open(streams)
        driver.ask("claim", count=streams)
        for _ in range(TIMES):
            for name, command, load in (
                ("1", "write", Load(rounds=30)),
                ("4", "write", Load(rounds=15, burst=4)),
                ("publish", "publish", Load(rounds=30)),
            ):
                busy_s = rig.broker_cpu_s()
                driver.ask(command, **load.model_dump())
                spent[name].append((rig.broker_cpu_s() - busy_s) / (streams * load.rounds * load.burst) * 1e6)
    one, four, publish = (median(spent[name]) for name in ("1", "4", "publish"))
    yield Row(
        "broker CPU per token, 1,000 streams", f"{one:.1f} us", f"only PUBLISH {publish:.1f} us", "<= 5 us", one <= 5
    )
    yield Row("the same, 4 tokens per message", f"{four:.1f} us", "", "<= 1.5 us", four <= 1.5)


def latencies(rig: Rig) -> Iterator[Row]:
    """Measure the time from ``run.write`` in an agent until the client receives the token."""
    queue, streams = new_queue_name(), 100
    quiet, loud = Load(rounds=10, per_s=1000, stamped=True), Load(rounds=50, per_s=50_000, stamped=True)
    tokens = streams * quiet.rounds
    measured: dict[str, list[dict[str, float]]] = {"floor": [], "relay": [], "quiet": [], "loud": []}
    with (
        rig.baseline("floor") as floor,
        rig.relay() as (relay, relay_agent),
        rig.frontend(queue) as ours,
        rig.worker(queue, "together") as worker,
    ):
        costs = Costs({"worker": worker.pid, "broker": rig.broker_pid, "front end": ours.child.pid})
        relay.open(1, "tokens")
        for _ in range(TIMES):
            floor.open(streams)
            floor.loadgen.ask("latencies", expected=tokens)
            floor.post("/go", **quiet.model_dump())
            measured["floor"].append(_percentiles(floor.loadgen.answer()["latencies_us"]))
            floor.close()
            floor.post("/forget")
            relay.loadgen.ask("latencies", expected=tokens)
            relay_agent.ask("write", load=quiet.model_dump(), tokens=tokens)
            measured["relay"].append(_percentiles(relay.loadgen.answer()["latencies_us"]))
            for name, count, load in (("quiet", streams, quiet), ("loud", 1000, loud)):
                ours.open(count, f"{count} {load.model_dump_json()}")
                ours.loadgen.ask("latencies", expected=count * load.rounds)
                with costs.of(tokens) if load is quiet else contextlib.nullcontext():
                    answer = ours.loadgen.answer()
                measured[name].append(_percentiles(answer["latencies_us"]))
                ours.close()
                time.sleep(0.2)  # until the closed streams' runs are cancelled

    def middle(name: str, what: str) -> float:
        return median(values[what] for values in measured[name])

    floor_p50, p50, p99 = middle("floor", "p50"), middle("quiet", "p50"), middle("quiet", "p99")
    yield Row(
        "time from run.write to client, 100 streams, 1,000 tokens/s: p50, p99",
        f"{p50:,.0f}, {p99:,.0f} us ({p50 / floor_p50:.1f}x floor)",
        f"floor {floor_p50:,.0f}, {middle('floor', 'p99'):,.0f} us; relay {middle('relay', 'p50'):,.0f}, "
        f"{middle('relay', 'p99'):,.0f} us; CPU us per token: {costs}",
        "p50 <= 3x floor, p99 < 1 ms",
        p50 <= 3 * floor_p50 and p99 < 1000,
    )
    p50, p99, late = middle("loud", "p50"), middle("loud", "p99"), middle("loud", "late_p50")
    yield Row(
        "the same, 1,000 streams, 50,000 tokens/s",
        f"{p50:,.0f}, {p99:,.0f} us",
        f"p50 of the second half {late:,.0f} us",
        "p99 <= 5x p50, no growing backlog",
        p99 <= 5 * p50 and late <= 2 * p50,
    )


def _percentiles(values: list[float]) -> dict[str, float]:
    half = values[len(values) // 2 :]
    return {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "late_p50": percentile(half, 0.5)}


def first_event(rig: Rig) -> Iterator[Row]:
    """Measure the time from a request to the first event of its run, on an idle machine."""
    queue, count = new_queue_name(), 100
    took: dict[str, list[float]] = {"no bus": [], "relay": [], "ours": [], "ping": []}
    with (
        rig.baseline("nobus") as nobus,
        rig.relay() as (relay, relay_agent),
        rig.frontend(queue) as ours,
        rig.worker(queue, "event") as worker,
        rig.driver(new_queue_name()) as driver,
    ):
        costs = Costs({"front end": ours.child.pid, "broker": rig.broker_pid, "worker": worker.pid})
        for _ in range(TIMES):
            relay_agent.ask("work", count=count)
            for name, server in (("no bus", nobus), ("relay", relay), ("ours", ours)):
                with costs.of(count) if server is ours else contextlib.nullcontext():
                    answer = server.loadgen.ask("first_events", url=server.url, count=count, question="x")
                took[name].append(percentile(answer["took_us"], 0.5))
            took["ping"].append(percentile(driver.ask("ping", count=count)["took_us"], 0.5))
    p50, base, relay_p50 = median(took["ours"]), median(took["no bus"]), median(took["relay"])
    yield Row(
        "time from request to first named event, idle: p50",
        f"{p50:,.0f} us ({p50 / base:.1f}x no bus)",
        f"no bus {base:,.0f} us; relay {relay_p50:,.0f} us (sum of both: {(base + relay_p50) / base:.1f}x no bus); "
        f"PING {median(took['ping']):,.0f} us; "
        f"CPU us per run: {costs}",
        "<= 2.5x no bus, < 1 ms",
        p50 <= 2.5 * base and p50 < 1000,
    )


def idle_streams(rig: Rig) -> Iterator[Row]:
    """Measure the memory of 10,000 open streams, and the time until they recover from a lost bus connection."""
    queue, kib = new_queue_name(), {}
    for name in ("seed", "floor"):
        with rig.baseline(name) as server:
            kib[name] = _memory_per_stream_kib(server)
    with rig.frontend(queue, AGENTSTREAM_QUEUE_TIMEOUT_S="600") as ours, rig.driver(queue) as driver:
        connections = rig.connections()
        kib["ours"] = _memory_per_stream_kib(ours, lambda: driver.ask("claim", count=IDLE_STREAMS))
        more = rig.connections() - connections
        yield Row(
            "10,000 idle streams on one front end: memory per stream",
            f"{kib['ours']:.1f} KiB, {more} additional connections to Redis",
            f"seed {kib['seed']:.1f}, floor {kib['floor']:.1f} KiB",
            "<= 16 KiB, no additional connections",
            kib["ours"] <= 16 and more == 0,
        )
        took_s = []
        for _ in range(TIMES):
            ours.loadgen.ask("count", expected=IDLE_STREAMS)
            rig.cut("agentstream-frontend")
            driver.send("write", **Load(rounds=1).model_dump())
            took_s.append(ours.loadgen.answer()["took_s"])
            driver.answer()
        yield Row(
            "bus connection lost: time until a new token is on all 10,000 streams",
            f"{median(took_s):.2f} s",
            "",
            "< 0.6 s",
            median(took_s) < 0.6,
        )


def _memory_per_stream_kib(server: Server, begin: Any = None) -> float:
    server.open(100)
    before = resident_bytes(server.child.pid)
    server.open(IDLE_STREAMS - 100)
    if begin is not None:
        begin()
    return (resident_bytes(server.child.pid) - before) / (IDLE_STREAMS - 100) / 1024


def worker(rig: Rig) -> Iterator[Row]:
    """Measure the tokens per second that one worker publishes for 200 agents, and two workers for 400."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(TIMES):
        for processes, values in rates.items():
            values.append(_published_a_second(rig, processes))
    one, two = median(rates[1]), median(rates[2])
    yield Row("tokens/s published, one worker, 200 agents", f"{one:,.0f}", "", ">= 60,000", one >= 60_000)
    yield Row("the same, two workers on two cores (the broker uses one of them)", f"{two:,.0f} ({two / one:.2f}x)")


def _published_a_second(rig: Rig, processes: int, agents: int = 200, tokens: int = 1000) -> float:
    queue = new_queue_name()
    cores = [MEASURED_CORE, OTHER_CORE][:processes]
    with rig.frontend(queue, core=OTHER_CORE) as frontend, contextlib.ExitStack() as stack:
        per_worker = {"AGENTSTREAM_CONCURRENCY": str(agents)}
        workers = [stack.enter_context(rig.worker(queue, "busy", core=core, **per_worker)) for core in cores]
        for _ in range(agents * processes):
            _post_in_background(frontend.url, f"{agents} {tokens}")
        began_s = min(float(child.until(r"begun (\S+)")[1]) for child in workers)
        while rig.outstanding(queue):
            time.sleep(0.005)
        return agents * processes * tokens / (time.monotonic() - began_s)


def _post_in_background(url: str, question: str) -> None:
    body = {"model": "agentstream", "background": True, "messages": [{"role": "user", "content": question}]}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    connection.close()


def pipeline(rig: Rig) -> Iterator[Row]:
    """Measure the runs per second, each with an answer of 20 words, and their CPU time per process."""
    queue, count = new_queue_name(), 500
    rates: list[float] = []
    with rig.frontend(queue) as ours, rig.worker(queue, "answer", AGENTSTREAM_CONCURRENCY="64") as child:
        costs = Costs(
            {
                "front end": ours.child.pid,
                "worker": child.pid,
                "broker": rig.broker_pid,
                "load generator": ours.loadgen.pid,
            }
        )
        for _ in range(TIMES):
            with costs.of(count):
                took = ours.loadgen.ask("runs", url=ours.url, connections=32, count=count, question="x")
            rates.append(count / took["took_s"])
    yield Row(
        "runs/s, answers of 20 words, one front end, one worker", f"{median(rates):,.0f}", f"CPU us per run: {costs}"
    )


def scaling(rig: Rig) -> Iterator[Row]:
    """Measure the replays of a finished run per second, with one front-end process and with two on one port."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    queue, count = new_queue_name(), 400
    with rig.worker(queue, "answer", core=OTHER_CORE):
        for processes, values in rates.items():
            with rig.frontend(queue, core=None, AGENTSTREAM_PROCESSES=str(processes)) as ours:
                run_id = ours.answer("x")
                for _ in range(TIMES):
                    took = ours.loadgen.ask("runs", url=ours.url, connections=32, count=count, again=run_id)
                    values.append(count / took["took_s"])
    one, two = median(rates[1]), median(rates[2])
    yield Row("replayed answers/s: --processes 1, 2", f"{one:,.0f}, {two:,.0f} ({two / one:.2f}x)")
