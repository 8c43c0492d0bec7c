"""Takes the screenshots of the documentation: ``python -m tests.browser.screenshots FOLDER``."""

import asyncio
import sys
import tempfile
from pathlib import Path

from agentstream.processes.broker import EmbeddedBroker, usable_servers
from tests.browser.chromium import Chromium, Tab, find_chromium
from tests.browser.deployment import PageDeployment, ask, ended, until_models
from tests.browser.page_agents import WORDS
from tests.processes import Processes

HALF = f"[...document.querySelectorAll('.answer')].at(-1)?.textContent.includes('{WORDS[29].strip()}')"

Pictures = dict[str, bytes]  # file name without suffix -> PNG


async def screenshot_of_top(tab: Tab) -> bytes:
    """Return a screenshot of the top of the page."""
    await tab.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    return await tab.screenshot()


async def pictures(folder: Path) -> Pictures:
    """Start a deployment and take all screenshots. ``folder`` is for temporary files."""
    executable = find_chromium()
    if executable is None:
        sys.exit("Chromium is not installed; on Debian, run: make browser")
    broker = EmbeddedBroker(next(choice for choice in usable_servers() if choice.executable))
    await broker.start()
    try:
        async with (
            Processes(broker.url, folder) as processes,
            Chromium.started(executable, folder / "profile") as browser,
        ):
            return await _take(PageDeployment(browser, processes, folder))
    finally:
        await broker.stop()


async def _take(deployment: PageDeployment) -> Pictures:
    taken: Pictures = {}
    worker = await deployment.worker("shown")
    url = await deployment.frontend(AGENTSTREAM_MODELS="herd-1,herd-mini")
    tab = await deployment.browser.tab(url)
    await tab.call("Emulation.setScrollbarsHidden", hidden=True)
    await tab.set_viewport(width=760, height=720)
    await until_models(tab)
    taken["welcome"] = await tab.screenshot()
    await ask(tab, "Which cows are in Oslo?")
    await tab.until("document.querySelector('.state')?.textContent.startsWith('Running')")
    taken["running"] = await screenshot_of_top(tab)
    await tab.until(ended("stop"))
    taken["answer"] = await screenshot_of_top(tab)
    await tab.set_viewport(width=760, height=720, dark=True)
    taken["dark"] = await screenshot_of_top(tab)
    await tab.set_viewport(width=390, height=844)
    taken["phone"] = await screenshot_of_top(tab)
    await tab.set_viewport(width=390, height=844, dark=True)
    taken["phone-dark"] = await screenshot_of_top(tab)
    await tab.set_viewport(width=760, height=900)
    await tab.click(".activity > summary")
    taken["tool-run"] = await screenshot_of_top(tab)
    await tab.set_viewport(width=760, height=720)
    await tab.click("#restart")
    await ask(tab, "Count to 59, slowly")
    await tab.until(HALF)
    await tab.reload()
    await tab.until(HALF)
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    taken["resumed"] = await screenshot_of_top(tab)
    await tab.click("#restart")
    deployment.close_gate("rest")
    await ask(tab, "Count to 59, slowly")
    await tab.until(HALF)
    worker.kill()
    await deployment.worker("shown")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    await tab.click(".activity > summary")
    taken["killed-worker"] = await screenshot_of_top(tab)
    await tab.click("#restart")
    await ask(tab, "Mail Ada how much milk the two cows give")
    await tab.until("document.querySelector('.activity')?.dataset.state === 'waiting'")
    await tab.click(".activity > summary")
    taken["question"] = await screenshot_of_top(tab)
    return taken


def main(folder: Path) -> None:
    """Write the screenshots to ``folder``."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, png in asyncio.run(pictures(Path(temporary))).items():
            (folder / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
