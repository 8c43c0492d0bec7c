"""Takes the README's pictures: ``python -m tests.browser.screenshots FOLDER``."""

import asyncio
import sys
import tempfile
from pathlib import Path

from agentstream.processes.broker import EmbeddedBroker, usable_servers
from tests.browser.chromium import Chromium, Tab, find_chromium
from tests.browser.deployment import PageDeployment, ask, ended
from tests.browser.page_agents import WORDS
from tests.processes import Processes

HALF = f"[...document.querySelectorAll('.answer')].at(-1)?.textContent.includes('{WORDS[29].strip()}')"


Pictures = dict[str, bytes]


async def seen(tab: Tab) -> bytes:
    """Return a picture of what is seen from the page's top."""
    await tab.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    return await tab.screenshot()


async def pictures(made: Path) -> Pictures:
    """Play what the pictures show."""
    executable = find_chromium()
    if executable is None:
        sys.exit("no Chromium is installed; `make browser` installs it on Debian")
    broker = EmbeddedBroker(next(choice for choice in usable_servers() if choice.executable))
    await broker.start()
    try:
        async with (
            Processes(broker.url, made) as processes,
            Chromium.started(executable, made / "profile") as browser,
        ):
            return await _take(PageDeployment(browser, processes, made))
    finally:
        await broker.stop()


async def _take(deployment: PageDeployment) -> Pictures:
    taken: Pictures = {}
    worker = await deployment.worker("shown")
    url = await deployment.frontend(AGENTSTREAM_MODELS="herd-1")
    tab = await deployment.browser.tab(url)
    await tab.call("Emulation.setScrollbarsHidden", hidden=True)
    await tab.set_viewport(width=560, height=900)
    await ask(tab, "Which cows are in Oslo?")
    await tab.until(ended("stop"))
    taken["tool-run"] = await seen(tab)
    await tab.set_viewport(width=560, height=900, dark=True)
    taken["dark"] = await seen(tab)
    await tab.set_viewport(width=390, height=844)
    taken["phone"] = await seen(tab)
    await tab.set_viewport(width=600, height=720)
    await tab.click("#restart")
    await ask(tab, "Count to 59, slowly")
    await tab.until(HALF)
    await tab.reload()
    await tab.until(HALF)
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    taken["resumed"] = await seen(tab)
    await tab.click("#restart")
    deployment.close_gate("rest")
    await ask(tab, "Count to 59, slowly")
    await tab.until(HALF)
    worker.kill()
    await deployment.worker("shown")
    await tab.until(ended("with an error"))
    taken["killed-worker"] = await seen(tab)
    return taken


def main(folder: Path) -> None:
    """Write the pictures into a folder."""
    with tempfile.TemporaryDirectory() as made:
        for name, png in asyncio.run(pictures(Path(made))).items():
            (folder / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
