"""A browser, and the page in front of real front ends and workers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser.chromium import NAMES, Chromium, find
from tests.browser.scene import PageScene
from tests.processes import Processes


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Chromium]:
    """A browser with a profile of the test's own."""
    executable = find()
    if executable is None:
        pytest.skip(f"NO BROWSER: none of {', '.join(NAMES)} is in PATH; on Debian `make browser` installs chromium")
    async with Chromium.started(executable, tmp_path / "profile") as started:
        yield started


@pytest.fixture
async def scene(browser: Chromium, processes: Processes, tmp_path: Path) -> PageScene:
    """A browser and no process yet."""
    gates = tmp_path / "gates"
    gates.mkdir()
    return PageScene(browser, processes, gates)
