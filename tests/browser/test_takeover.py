"""The page when another worker continues a run: the answer goes on, and the timeline has a short note."""

import re

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, ended
from tests.browser.page_agents import WORDS

WHOLE = "".join(WORDS).strip()
HALF = f"document.querySelector('.answer')?.textContent.includes('{WORDS[29].strip()}')"
NOTED = "document.querySelector('.step[data-kind=worker]')"


async def note(tab: Tab) -> str:
    """Return the text of the only note about another worker, without its time in the timeline."""
    (found,) = await tab.texts(".step[data-kind=worker]")
    return re.sub(r" \+[0-9.]+ m?s$", "", found)


async def test_the_answer_goes_on_after_its_worker_is_killed(deployment: PageDeployment) -> None:
    """The whole answer is there once, and the timeline says that another worker continues it, after which pause."""
    doomed = await deployment.worker("steady")
    tab = await deployment.page()
    await ask(tab, "count")
    await tab.until(HALF)
    doomed.kill()
    await deployment.worker("steady")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE
    assert re.fullmatch(r"Worker Another worker continues this answer after a pause of [0-9.]+ m?s", await note(tab))
    assert re.fullmatch(r"Answered in [0-9.]+ s · 3 steps · continued by another worker", await tab.text(".state"))
    states = await tab.evaluate(
        "[...document.querySelectorAll('.step')].map(({ dataset }) => [dataset.kind, dataset.state])"
    )
    assert ["inference", "unfinished"] in states
    assert ["worker", "note"] in states
    assert await tab.evaluate("document.querySelector('.failure').hidden")
    noted = await note(tab)
    await tab.reload()
    await tab.until(ended("stop"))
    assert await note(tab) == noted
    assert tab.complaints == []


async def test_a_takeover_during_a_reload_is_noted(deployment: PageDeployment) -> None:
    """If the page is reloaded while no worker runs the agent, it resumes, and the note has no pause."""
    doomed = await deployment.worker("steady")
    tab = await deployment.page()
    await ask(tab, "count")
    await tab.until(HALF)
    doomed.kill()
    await tab.reload()
    await tab.until(HALF)
    await deployment.worker("steady")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE
    assert (await note(tab)).startswith("Worker Another worker continues this answer")


async def test_another_tab_sees_the_takeover_of_an_ended_run(deployment: PageDeployment) -> None:
    """A tab that opens the link of the run replays it with the note; it does not know the pause."""
    doomed = await deployment.worker("steady")
    tab = await deployment.page()
    await ask(tab, "count")
    await tab.until(HALF)
    doomed.kill()
    await deployment.worker("steady")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    other = await deployment.browser.tab(await tab.evaluate("location.href"))
    await other.until(ended("stop"))
    assert (await other.text(".answer")).strip() == WHOLE
    assert await note(other) == "Worker Another worker continues this answer"


async def test_a_run_that_ends_with_its_worker_has_no_note(deployment: PageDeployment) -> None:
    """If the other worker only ends the run, because its agent cannot continue, the page shows the error alone."""
    doomed = await deployment.worker("halves")
    tab = await deployment.page()
    await ask(tab, "count")
    await tab.until(HALF)
    doomed.kill()
    await deployment.worker("halves")
    await tab.until(ended("with an error"))
    assert await tab.evaluate(f"{NOTED} === null")
    assert "another worker" not in await tab.text(".state")
