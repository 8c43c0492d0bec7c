"""The settings of containers that all get the same file of variables, as compose.yaml gives them ``.env``."""

import os
import signal

import aiohttp
import pytest

from agentstream.config import Settings, env_name, unset_empty_variables
from tests.helpers import TIMEOUT_S
from tests.processes import Processes

BY_THE_TEST = {"REDIS_URL", "AGENTSTREAM_QUEUE", "AGENTSTREAM_PORT", "AGENTSTREAM_AGENT"}
LIBRARIES = (
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_TRACES_SAMPLER"),
    *("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
)
VARIABLES = {*map(env_name, Settings.model_fields), "REPLAY_WORD_DELAY_MS", "AGENTSTREAM_NO_SETTING", *LIBRARIES}
BLANK = dict.fromkeys(VARIABLES - BY_THE_TEST, " ")  # the tests' processes get no empty variables
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
# Settings of workers, of front ends and of Compose itself, in one file.
SHARED = {
    "AGENTSTREAM_HOST": "0.0.0.0",  # noqa: S104 -- a worker does not listen there, so it needs no key for it
    "AGENTSTREAM_CONCURRENCY": "3",
    "AGENTSTREAM_MAX_REQUESTS_PER_MINUTE": "100",
    "AGENTSTREAM_AGENT_START_TIMEOUT_S": "5",
    "AGENTSTREAM_PROT": "1",
    "AGENT_DIR": "./my_agents",
    "COMPOSE_PROFILES": "observability",
}
NOWHERE = {"AGENTSTREAM_AGENT": "nowhere:agent"}


@pytest.mark.parametrize(
    "empty", ["", " ", '""', "''", "\r"], ids=["nothing", "blank", "quotes", "single quotes", "line end"]
)
def test_empty_variables_are_removed(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    """A variable of a setting or of a library that is empty, or holds only blanks or quotes, is removed."""
    for name in (*VARIABLES, "SOMEONES_VARIABLE"):
        monkeypatch.setenv(name, empty)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    unset_empty_variables()
    assert VARIABLES & set(os.environ) == set()
    assert (os.environ["SOMEONES_VARIABLE"], os.environ["OTEL_SERVICE_NAME"]) == (empty, "mine")


async def test_empty_variables_are_not_set(processes: Processes) -> None:
    """With every variable empty, a front end and a worker start without a warning, and agents see none of them."""
    url = await processes.frontend(**BLANK)
    await processes.worker("container_agents:reads_environment", **BLANK | {"OTEL_TRACES_EXPORTER": "console"})
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.request("POST", f"{url}/v1/chat/completions", json=BODY, timeout=timeout) as response:
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == "empty: none"
    for process in processes.started:
        await process.stop()
        assert " WARNING " not in process.output


@pytest.mark.parametrize("count", ["1", "2"])
async def test_one_file_serves_front_ends_and_workers(processes: Processes, count: str) -> None:
    """Settings of the other process and variables of Compose give no warning, and a wrong name gives one warning."""
    await processes.frontend(**SHARED, AGENTSTREAM_ALLOW_OPEN="true", AGENTSTREAM_PROCESSES=count)
    await processes.worker(**SHARED, AGENTSTREAM_PROCESSES=count)
    for process in processes.started:
        await process.stop()
        (warning,) = [line for line in process.output.splitlines() if " WARNING " in line]
        assert "AGENTSTREAM_PROT is not a setting; did you mean AGENTSTREAM_PORT?" in warning


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "settings",
    [NOWHERE, NOWHERE | {"AGENTSTREAM_PROCESSES": "2"}, {"AGENTSTREAM_LEASE_S": "x"}],
    ids=["agent", "agent of two processes", "setting"],
)
async def test_a_failed_start_waits_before_the_exit(
    processes: Processes, settings: dict[str, str], number: signal.Signals
) -> None:
    """With AGENTSTREAM_FAILED_START_DELAY_S a wrong worker says why, then waits; a signal ends the wait with code 2."""
    worker = await processes.start("worker", **settings, AGENTSTREAM_FAILED_START_DELAY_S="1h")
    await worker.until(r"exits in 3600 s \(AGENTSTREAM_FAILED_START_DELAY_S\)")
    assert "nowhere:agent" in worker.output or "AGENTSTREAM_LEASE_S='x'" in worker.output
    worker.send_signal(number)
    assert await worker.ended() == 2
    assert worker.output.count("exits in") == 1


async def test_a_failed_start_exits_after_the_delay(processes: Processes) -> None:
    """The process exits with code 2 by itself when the delay is over; without a delay it exits at once."""
    for delay_s, waits in (("0.1", 1), ("", 0), ("x", 0)):
        front_end = await processes.start("frontend", AGENTSTREAM_PORT="x", AGENTSTREAM_FAILED_START_DELAY_S=delay_s)
        assert await front_end.ended() == 2
        assert front_end.output.count("exits in 0.1 s") == waits
