"""The shipped rules and dashboard in a real Prometheus that scrapes real processes (Debian package prometheus)."""

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import yaml

from tests.deploy.proxies import find_executable
from tests.helpers import TIMEOUT_S
from tests.ports import free_port
from tests.processes import ROOT, Process, Processes

FOLDER = ROOT / "deploy/observability"
# In these tests Prometheus scrapes and evaluates once a second. A lost worker is known after 10 s at most.
PROMETHEUS_S = 2 * TIMEOUT_S
_POLL_S = 0.2
NAME = re.compile(r"\bagentstream_\w+")


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, targets: dict[str, str], folder: Path) -> AsyncIterator[Self]:
        """Run Prometheus with the shipped configuration and flags; only targets, intervals and folders differ."""
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / "alerts.yaml")]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        command = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["prometheus"]["command"]
        moved = {"/etc/prometheus/prometheus.yml": folder / "prometheus.yml", "/prometheus": folder / "data"}
        flags = (flag.partition("=") for flag in command)
        arguments = [f"{name}={moved.get(value, value)}" for name, _, value in flags]
        arguments.append(f"--web.listen-address=127.0.0.1:{port}")
        process = Process(
            await asyncio.create_subprocess_exec(
                find_executable("prometheus"),
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )
        try:
            await process.until("Server is ready to receive web requests", PROMETHEUS_S)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
                yield cls(f"http://127.0.0.1:{port}/api/v1", session)
        finally:
            await process.stop()

    async def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer. Fail if the answer has an error or a warning."""
        async with self._session.get(f"{self._url}/{path}", params=query) as response:
            answer = await response.json()
        assert answer["status"] == "success", (query, answer)
        assert not answer.get("warnings"), (query, answer)
        return answer["data"]

    async def until(self, holds: Callable[[Any], bool], path: str, **query: str) -> Any:
        """Return the first answer that satisfies ``holds``. After a timeout, fail with the last answer."""
        data = await self.ask(path, **query)
        try:
            async with asyncio.timeout(PROMETHEUS_S):
                while not holds(data):
                    await asyncio.sleep(_POLL_S)
                    data = await self.ask(path, **query)
        except TimeoutError:
            message = f"no answer of {path} satisfied the condition within {PROMETHEUS_S} s; the last was {data}"
            raise AssertionError(message) from None
        return data


def panel_expressions() -> list[str]:
    """Return the expressions of the dashboard as Grafana sends them when all queues are selected."""
    panels = json.loads((FOLDER / "grafana/dashboard.json").read_text())["panels"]
    written = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [expr.replace("$queue", ".*").replace("$__rate_interval", "1m") for expr in written]


def all_up(data: Any) -> bool:
    targets = data["activeTargets"]
    return len(targets) == 2 and all(target["health"] == "up" for target in targets)


def all_evaluated(data: Any) -> bool:
    return all(rule["health"] != "unknown" for group in data["groups"] for rule in group["rules"])


def has_result(data: Any) -> bool:
    return bool(data["result"])


def pending(data: Any) -> set[tuple[str, str]]:
    """Return the name and the queue of each alert that is pending or fires."""
    return {(alert["labels"]["alertname"], alert["labels"].get("queue", "")) for alert in data["alerts"]}


async def test_real_prometheus_reads_real_processes(processes: Processes, tmp_path: Path) -> None:
    """Targets are up, rules and panels use existing metrics without errors, and a queue without workers alerts."""
    find_executable("prometheus")
    url = await processes.frontend()
    port = free_port()
    worker = await processes.worker(AGENTSTREAM_METRICS_PORT=str(port))
    targets = {"agentstream-frontend": url.removeprefix("http://"), "agentstream-worker": f"127.0.0.1:{port}"}
    async with Prometheus.running(targets, tmp_path) as prometheus:
        await prometheus.until(all_up, "targets")
        body = {"model": "m", "messages": [{"role": "user", "content": "what is 17*23?"}], "stream": True}
        post = aiohttp.request("POST", f"{url}/v1/chat/completions", json=body)
        async with post as answer:
            assert b"391" in await answer.read()
        rules = await prometheus.until(all_evaluated, "rules")
        loaded = [rule for group in rules["groups"] for rule in group["rules"]]
        assert [rule.get("lastError") for rule in loaded if rule["health"] != "ok"] == []
        expressions = [*panel_expressions(), *(rule["query"] for rule in loaded)]
        named = set(NAME.findall(" ".join(expressions)))
        await prometheus.until(lambda names: named <= set(names), "label/__name__/values")
        for expression in expressions:
            await prometheus.ask("query", query=expression)
        for expression in panel_expressions():
            if "> 0" not in expression:  # such a panel is empty while there are no events
                await prometheus.until(has_result, "query", query=expression)
        await worker.stop()
        await prometheus.until(lambda data: pending(data) == {("AgentstreamNoWorkers", processes.queue)}, "alerts")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--syntax-only", "deploy/observability/prometheus.yml"],
        ["check", "rules", "deploy/observability/alerts.yaml"],
        ["test", "rules", "tests/deploy/alerts_cases.yaml"],
    ],
    ids=" ".join,
)
def test_promtool_finds_no_fault(arguments: list[str]) -> None:
    """The tool promtool accepts the configuration and the rules, and each alert fires when it must, and only then."""
    command = [find_executable("promtool"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_loads_the_whole_configuration(tmp_path: Path) -> None:
    """The configuration loads with its rules, where compose.yaml mounts them, and a misspelt key is a fault."""
    mounts = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["prometheus"]["volumes"]
    for source, target in (mount.split(":")[:2] for mount in mounts if mount.startswith("./")):
        here = tmp_path / target.strip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text((ROOT / source).read_text().replace("[/etc/prometheus/", f"[{tmp_path}/etc/prometheus/"))
    config = tmp_path / "etc/prometheus/prometheus.yml"

    def check() -> subprocess.CompletedProcess[str]:
        command = [find_executable("promtool"), "check", "config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)

    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"SUCCESS: \d+ rules found", done.stdout)
    config.write_text(config.read_text().replace("evaluation_interval", "evaluation_intervall"))
    assert "evaluation_intervall not found" in check().stderr


def test_promtool_finds_a_wrong_threshold(tmp_path: Path) -> None:
    """The cases fail for a rule with a changed threshold, so they check more than the syntax."""
    cases = (ROOT / "tests/deploy/alerts_cases.yaml").read_text()
    rules = (FOLDER / "alerts.yaml").read_text()
    assert "oldest_waiting_job_seconds) > 15" in rules
    changed = rules.replace("oldest_waiting_job_seconds) > 15", "oldest_waiting_job_seconds) > 25")
    (tmp_path / "alerts.yaml").write_text(changed)
    (tmp_path / "cases.yaml").write_text(cases.replace("../../deploy/observability/alerts.yaml", "alerts.yaml"))
    command = [find_executable("promtool"), "test", "rules", str(tmp_path / "cases.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert "AgentstreamJobsWait" in done.stdout + done.stderr
