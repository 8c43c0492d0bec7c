"""Tracing with a collector that is unavailable or never answers, and with wrong settings."""

import asyncio
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentstream.telemetry.otel import FLUSH_TIMEOUT_S
from tests.ports import free_port
from tests.processes import Process
from tests.telemetry.conftest import Deployment


@contextmanager
def black_hole() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def stopped(process: Process) -> float:
    """Stop a process. Return how long it took to end, in seconds."""
    begun_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert await process.ended() == 0
    return time.monotonic() - begun_s


async def runs_and_ends(deployment: Deployment, endpoint: str) -> list[Process]:
    """Serve many runs while no spans can be sent, and stop. Return the processes."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "16"}
    settings |= {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    await deployment.frontend(**settings)
    await deployment.worker("on_the_loop", **settings)
    for _ in range(30):
        assert (await deployment.ask("anything"))["choices"]
    await asyncio.gather(*(stopped(process) for process in deployment.processes.started))
    return deployment.processes.started


async def test_an_unavailable_collector_costs_only_spans_and_a_log_line(deployment: Deployment) -> None:
    """Without a collector, runs go on, processes end in time, and each message of the SDK is logged once a minute."""
    processes = await runs_and_ends(deployment, f"http://127.0.0.1:{free_port()}")
    for process in processes:
        warnings = [re.sub(r"[\d.]+s\b|0x\w+", "", line[24:]) for line in process.output.splitlines() if "otel" in line]
        assert any("not repeated" in line for line in warnings), process.output
        assert len(warnings) < 10, process.output
        assert "Traceback" not in process.output


async def test_a_hanging_collector_does_not_keep_a_process_from_ending(deployment: Deployment) -> None:
    """A process whose collector hangs ends after the time for its last spans, and logs that they are lost."""
    with black_hole() as endpoint:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        await deployment.frontend(**settings)
        await deployment.worker("on_the_loop", **settings)
        assert (await deployment.ask("anything"))["choices"]
        worker = deployment.processes.started[-1]
        begun_s = asyncio.get_running_loop().time()
        await stopped(worker)
        assert asyncio.get_running_loop().time() - begun_s < 20
        assert f"could not be sent in {FLUSH_TIMEOUT_S:g} s" in worker.output


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"OTEL_TRACES_EXPORTER": "nonesuch"}, "traces are off: no exporter 'nonesuch' is installed"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "traces are off: max_queue_size must be"),
    ],
)
async def test_wrong_settings_only_switch_traces_off(
    deployment: Deployment, settings: dict[str, str], warning: str
) -> None:
    """A wrong OpenTelemetry variable is logged, and runs go on without traces."""
    await deployment.frontend(**settings)
    await deployment.worker("on_the_loop", **settings)
    answer = await deployment.ask("anything")
    assert answer["choices"][0]["message"]["content"] == f"none {answer['id']}"
    for process in deployment.processes.started:
        await process.until(warning)
