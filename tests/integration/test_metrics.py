"""The metrics of real processes: each reports all metrics of its table, and processes that share a port report sums."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentstream.telemetry import names as metric_names
from agentstream.telemetry.names import Metric
from tests.helpers import TIMEOUT_S
from tests.integration.conftest import Client
from tests.ports import free_port
from tests.processes import Process, Processes, linux_only
from tests.scrape import Scraper, metrics_port

START_S = 3 * TIMEOUT_S  # several processes start at the same time, on a machine that may have only two cores


async def assert_reports(scraper: Scraper, table: Sequence[Metric]) -> None:
    """Assert that a process reports exactly the metrics of the table, with their types, help texts and labels."""
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in (await scraper.scrape()).families
    }
    assert set(families) == {metric.name for metric in table}
    for metric in table:
        family = families[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help_text)
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            assert set(labels) == set(metric.labels or {}), metric.name
            for label, value in labels.items():
                allowed = (metric.labels or {})[label]
                assert not allowed or value in allowed, (metric.name, label, value)


async def test_each_process_reports_its_whole_table(processes: Processes, client: Client) -> None:
    """The front end and the worker report exactly the metrics of their tables."""
    url = await processes.frontend()
    port, serving = metrics_port()
    await processes.worker("numbered", **serving)
    await client.stream(url, "go")
    await assert_reports(Scraper(url), metric_names.FRONTEND_METRICS)
    await assert_reports(Scraper.of_port(port), metric_names.WORKER_METRICS)


@linux_only  # on other systems the kernel may not spread connections
async def test_front_ends_on_one_port_report_sums(processes: Processes, client: Client) -> None:
    """Every front end of a port reports all metrics, with the counters and histograms of all these front ends."""
    parent = await processes.start("frontend", "--processes", "2", AGENTSTREAM_PORT="0")
    url = (await parent.until(r"serving on (http://\S+)", START_S))[1]
    await parent.until(rf"(?s)(serving on {url}\n.*){{2}}", START_S)
    await processes.worker("numbered")
    runs = 12
    await asyncio.gather(*(client.stream(url, f"{number}") for number in range(runs)))
    tokens = 41 * runs  # 40 words, and the empty line between the texts of two turns
    for _ in range(6):
        front = await Scraper(url).reaches(metric_names.TOKENS, tokens)
        for histogram in (metric_names.DISPATCH_SECONDS, metric_names.FIRST_TOKEN_SECONDS):
            assert front.of(histogram) == runs
        assert front.of(metric_names.TOKENS) == tokens
    await Scraper(url).reaches(metric_names.BUS_LATENCY_SECONDS)
    await assert_reports(Scraper(url), metric_names.FRONTEND_METRICS)


def children_of(parent: Process) -> list[int]:
    """Return the process ids of the workers that the parent has printed, in order."""
    return [int(pid) for pid in re.findall(r"(?m)^worker \d+ +pid (\d+)", parent.output)]


@linux_only
async def test_workers_of_one_parent_share_a_port_and_keep_count(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    """Two workers report sums on one port; when one is stopped, its counts stay and its slots are no longer counted."""
    url = await processes.frontend()
    port, serving = metrics_port()
    flags = ("--processes", "2", "--concurrency", "1", "--drain-timeout-s", "0", "--lease-s", "1")
    parent = await processes.start(
        "worker", *flags, AGENTSTREAM_AGENT="agents:gated", GATE=str(gate := tmp_path / "gate"), **serving
    )
    await parent.until(r"(?s)(takes jobs of queue.*){2}", START_S)
    scraper = Scraper.of_port(port)
    numbers = await scraper.reaches(metric_names.WORKER_SLOTS, 2)
    assert numbers.of(metric_names.WORKER_SLOTS) == 2
    stream = asyncio.create_task(client.stream(url, "go"))
    busy = int((await parent.until(r"gated run in (\d+)"))[1])
    await scraper.reaches(metric_names.WORKER_ACTIVE_RUNS, 1)
    os.kill(busy, signal.SIGTERM)
    await parent.until(rf"\(pid {busy}\) ended with code 0")
    numbers = await scraper.reaches(metric_names.WORKER_RUNS, outcome="handed_back")
    await parent.until(r"(?s)gated run in \d+.*gated run in \d+", START_S)
    gate.touch()
    await stream
    await scraper.reaches(metric_names.WORKER_RUNS, outcome="completed")
    for _ in range(6):
        numbers = await scraper.scrape()
        assert numbers.of(metric_names.WORKER_RUNS) == 2
        assert numbers.of(metric_names.WORKER_CLAIMS, kind="reclaimed") == numbers.of(metric_names.WORKER_RETRIES) == 1
    await parent.until(r"(?s)(takes jobs of queue.*){3}", START_S)
    await scraper.until(lambda numbers: numbers.of(metric_names.WORKER_SLOTS) == 2)
    await assert_reports(scraper, metric_names.WORKER_METRICS)
    assert len(children_of(parent)) == 3


async def test_a_worker_reports_whether_it_takes_jobs(processes: Processes, client: Client, tmp_path: Path) -> None:
    """A worker is live while it runs, but it is not ready before Redis is reachable or while it drains."""
    port, serving = metrics_port()
    scraper = Scraper.of_port(port)
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    early = await processes.start("worker", REDIS_URL=nowhere, **serving)
    await early.until(r"metrics and health on")
    assert [(await scraper.get(f"/health/{kind}"))[0] for kind in ("live", "ready")] == [200, 503]
    await early.stop()
    url = await processes.frontend()
    worker = await processes.worker("gated", GATE=str(gate := tmp_path / "gate"), **serving)
    assert await scraper.get("/health/ready") == (200, '{"status": "ok", "redis": "ok"}')
    stream = asyncio.create_task(client.stream(url, "go"))
    await worker.until("gated run")
    worker.send_signal(signal.SIGTERM)
    await worker.until("draining")
    assert await scraper.get("/health/ready") == (503, '{"status": "draining"}')
    assert (await scraper.get("/health/live"))[0] == 200
    assert (await scraper.get("/elsewhere"))[0] == 404
    gate.touch()
    await stream
    assert await worker.ended() == 0


@pytest.mark.parametrize("count", ["1", "2"])
async def test_a_taken_port_is_refused(processes: Processes, count: str) -> None:
    """Workers whose metrics port is taken exit with code 2 and an error that names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        process = await processes.start("worker", "--processes", count, AGENTSTREAM_METRICS_PORT=port)
        assert await process.ended(START_S) == 2
    assert f"cannot listen on 127.0.0.1:{port} (AGENTSTREAM_METRICS_PORT)" in process.output
    assert "Traceback" not in process.output


@linux_only
async def test_up_reports_the_metrics_of_its_workers(processes: Processes) -> None:
    """With a metrics port, ``up`` reports the sums of its workers on this port."""
    port, serving = metrics_port()
    process = await processes.start("up", AGENTSTREAM_PORT="0", AGENTSTREAM_WORKERS="2", **serving)
    await process.until(r"serving +http://", START_S)
    numbers = await Scraper.of_port(port).reaches(metric_names.WORKER_SLOTS, 64)
    assert numbers.of(metric_names.WORKER_SLOTS) == 64
