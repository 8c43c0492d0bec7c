"""Fixtures: a browser, and a deployment with real front ends and workers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser.chromium import NAMES, Chromium, find_chromium
from tests.browser.deployment import PageDeployment
from tests.processes import Processes


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Chromium]:
    """A browser with a new profile for each test."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"NO BROWSER: PATH has none of {', '.join(NAMES)}; on Debian, run: make browser")
    async with Chromium.started(executable, tmp_path / "profile") as started:
        yield started


@pytest.fixture
async def deployment(browser: Chromium, processes: Processes, tmp_path: Path) -> PageDeployment:
    """A deployment with a browser, before any process has started."""
    gates = tmp_path / "gates"
    gates.mkdir()
    return PageDeployment(browser, processes, gates)
