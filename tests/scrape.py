"""Reads the metrics of a process as Prometheus does."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import aiohttp
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import TIMEOUT_S
from tests.ports import free_port

_POLL_S = 0.05

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Scrape:
    """One scrape of one process."""

    families: list[Metric]

    def of(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels; for a histogram, the sum of its counts."""
        wanted = labels.items()
        return sum(
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name in {name, f"{name}_count"} and wanted <= sample.labels.items()
        )

    def series(self) -> set[Series]:
        """Return all series of the scrape."""
        return {
            (sample.name, frozenset(sample.labels.items())) for family in self.families for sample in family.samples
        }


class Scraper:
    """Reads metrics from one port."""

    def __init__(self, url: str) -> None:
        self._url = url

    @classmethod
    def of_port(cls, port: int) -> Self:
        return cls(f"http://127.0.0.1:{port}")

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body over a new connection. If processes share the port, any of them may answer."""
        async with aiohttp.ClientSession() as session, session.get(self._url + path) as response:
            return response.status, await response.text()

    async def scrape(self) -> Scrape:
        """Return the current metrics."""
        status, text = await self.get("/metrics")
        assert status == 200, text
        return Scrape(list(text_string_to_metric_families(text)))

    async def until(self, holds: Callable[[Scrape], bool], timeout_s: float = TIMEOUT_S) -> Scrape:
        """Return the first scrape for which ``holds`` is true; fail with the values of the last scrape."""
        scrape = await self.scrape()
        try:
            async with asyncio.timeout(timeout_s):
                while not holds(scrape):
                    await asyncio.sleep(_POLL_S)
                    scrape = await self.scrape()
        except TimeoutError:
            values = {sample.name: sample.value for family in scrape.families for sample in family.samples}
            message = f"the condition did not hold within {timeout_s:g} s; the last values were {values}"
            raise AssertionError(message) from None
        return scrape

    async def reaches(self, name: str, value: float = 1, timeout_s: float = TIMEOUT_S, **labels: str) -> Scrape:
        """Return the first scrape in which a metric is at least ``value``."""
        return await self.until(lambda scrape: scrape.of(name, **labels) >= value, timeout_s)


def metrics_port() -> tuple[int, dict[str, str]]:
    """Return a free port for a worker's metrics, and the setting that makes the worker listen on it."""
    port = free_port()
    return port, {"AGENTSTREAM_METRICS_PORT": str(port)}
