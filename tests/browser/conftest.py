"""A browser, and the page in front of real front ends and workers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser.chromium import NAMES, Chromium, find_chromium
from tests.browser.deployment import PageDeployment
from tests.processes import Processes


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Chromium]:
    """A browser with a profile of the test's own."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"NO BROWSER: none of {', '.join(NAMES)} is in PATH; on Debian `make browser` installs chromium")
    async with Chromium.started(executable, tmp_path / "profile") as started:
        yield started


@pytest.fixture
async def deployment(browser: Chromium, processes: Processes, tmp_path: Path) -> PageDeployment:
    """A browser and no process yet."""
    gates = tmp_path / "gates"
    gates.mkdir()
    return PageDeployment(browser, processes, gates)
