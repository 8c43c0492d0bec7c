"""The shipped rules and the dashboard in a real Prometheus that reads real processes (Debian: package prometheus)."""

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

from agentstream.processes.runtime import free_port
from tests.deploy.proxies import find_executable
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Process, Processes

FOLDER = ROOT / "deploy/observability"
# Prometheus starts, scrapes and evaluates once a second here; a lost worker is known after 10 s at most.
PROMETHEUS_S = 2 * TIMEOUT_S
_POLL_S = 0.2
NAME = re.compile(r"\bagentstream_\w+")


class Prometheus:
    """A running server's HTTP API."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, targets: dict[str, str], folder: Path) -> AsyncIterator[Self]:
        """Run it with the shipped configuration; only where it finds its targets, and how often, is another."""
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / "alerts.yaml")]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        arguments = [
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
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
        """Return the data of an answer; fails if there is an error or a warning in it."""
        async with self._session.get(f"{self._url}/{path}", params=query) as response:
            answer = await response.json()
        assert answer["status"] == "success", (query, answer)
        assert not answer.get("warnings"), (query, answer)
        return answer["data"]

    async def until(self, holds: Callable[[Any], bool], path: str, **query: str) -> Any:
        """Return the first answer for which this holds; fails with the last one."""
        data = await self.ask(path, **query)
        try:
            async with asyncio.timeout(PROMETHEUS_S):
                while not holds(data):
                    await asyncio.sleep(_POLL_S)
                    data = await self.ask(path, **query)
        except TimeoutError:
            message = f"never so; the last answer was {data}"
            raise AssertionError(message) from None
        return data


def panel_expressions() -> list[str]:
    """Return the dashboard's expressions as Grafana sends them, with every queue chosen."""
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
    """Return the alerts that fire, or will if it goes on, and their queues."""
    return {(alert["labels"]["alertname"], alert["labels"].get("queue", "")) for alert in data["alerts"]}


async def test_real_prometheus_reads_real_processes(processes: Processes, tmp_path: Path) -> None:
    """Targets are up, rules and panels name what is there and have no error, and a queue without workers alerts."""
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
            if "> 0" not in expression:  # else it shows nothing as long as nothing happens
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
    """Prometheus's own tool takes configuration and rules, and each alert fires when it shall, and only then."""
    command = [find_executable("promtool"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_would_find_one(tmp_path: Path) -> None:
    """A rule whose threshold is another fails the cases: they see more than that the rules can be read."""
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
