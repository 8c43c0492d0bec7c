"""The page during a run: the state in words, the steps, the numbers, and a layout that does not jump."""

import re

from tests.browser.deployment import PageDeployment, ask, ended

NOTE_PLACES = """(() => {
    window.places = new Set();
    const look = () => {
        const first = document.querySelector('.answer')?.firstElementChild;
        if (first) window.places.add(first.getBoundingClientRect().top);
        requestAnimationFrame(look);
    };
    look();
})()"""


async def test_the_state_is_said_in_words(deployment: PageDeployment) -> None:
    """While a tool runs, the page says which and for how long; then it says that the agent writes, and the outcome."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "slow tool")
    await tab.until(r"/^Running sql_query · \d+\.\d s$/.test(document.querySelector('.state')?.textContent)")
    running = await tab.text(".state")
    await tab.until(f"document.querySelector('.state').textContent !== '{running}'")
    assert await tab.evaluate("document.querySelector('.activity').open")
    deployment.open_gate("tool")
    await tab.until(r"/^Writing · \d+\.\d s$/.test(document.querySelector('.state').textContent)")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert re.fullmatch(r"Answered in [0-9.]+ s · 2 steps", await tab.text(".state"))
    assert await tab.evaluate("document.querySelector('.activity').dataset.state") == "done"


async def test_steps_are_folded_when_the_answer_is_there(deployment: PageDeployment) -> None:
    """The steps are folded at the end, a click opens them, and they stay open when the reader opened them."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "tools")
    await tab.until(ended("stop"))
    assert not await tab.evaluate("document.querySelector('.activity').open")
    await tab.tap(".activity > summary")
    await tab.until("document.querySelector('.activity').open")
    await ask(tab, "slow tool")
    last = "[...document.querySelectorAll('.activity')].at(-1)"
    await tab.until(f"{last}.open && document.querySelectorAll('.activity').length === 2")
    await tab.click(".activity > summary")
    await tab.click(".activity > summary")  # closed and opened again by the reader
    deployment.open_gate("tool")
    deployment.open_gate("rest")
    await tab.until(ended("stop") + f" && {last}.dataset.state === 'done'")
    assert await tab.evaluate(f"{last}.open")


async def test_a_failed_step_is_never_shown_as_success(deployment: PageDeployment) -> None:
    """After a failed tool or run, the state says so, no step of it is marked as done, and nothing is green."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "tools")
    await tab.until(ended("stop"))
    assert re.fullmatch(r"Answered in [0-9.]+ s · 5 steps, 1 failed", await tab.text(".state"))
    assert await tab.evaluate("document.querySelector('.activity').dataset.state") == "troubled"
    states = await tab.evaluate("[...document.querySelectorAll('.step')].map((step) => step.dataset.state)")
    assert states == ["note", "done", "done", "failed", "note-failed"]
    await tab.click(".activity > summary")
    colours = await tab.evaluate(
        """[...document.querySelectorAll('.exchange *')].flatMap((element) => {
            const styles = ['', '::before', '::after'].map((part) => getComputedStyle(element, part));
            return styles.flatMap((style) => [style.color, style.backgroundColor, style.borderTopColor]);
        })"""
    )
    channels = [tuple(map(int, re.findall(r"\d+", colour)[:3])) for colour in set(colours)]
    assert [(red, green, blue) for red, green, blue in channels if green > red + 20 and green > blue + 20] == []
    await ask(tab, "flaky")
    await tab.until(ended("with an error"))
    assert (await tab.text(".state")).startswith("Failed after ")


async def test_statistics_are_behind_one_click(deployment: PageDeployment) -> None:
    """The numbers of a run are hidden until the reader clicks Details."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "echo")
    await tab.until(ended("stop"))
    shown = "document.querySelector('.stats').checkVisibility()"
    assert not await tab.evaluate(shown)
    await tab.tap(".more")
    assert await tab.evaluate(shown)
    assert await tab.evaluate("document.querySelector('.more').getAttribute('aria-expanded')") == "true"


async def test_the_answer_stays_in_its_place(deployment: PageDeployment) -> None:
    """From its first word to the end of the run, the beginning of the answer does not move on the screen."""
    await deployment.worker()
    tab = await deployment.page()
    await tab.show()
    await tab.evaluate(NOTE_PLACES)
    await ask(tab, "slow tool")
    await tab.until("document.querySelector('.step')")
    deployment.open_gate("tool")
    await tab.until("window.places.size > 0 || document.querySelector('.answer').textContent.includes('1.')")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    drawn = (
        "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(() => drawn([...window.places]))))"
    )
    places = await tab.evaluate(drawn)
    assert len(places) == 1


async def test_the_reader_keeps_the_place(deployment: PageDeployment) -> None:
    """If the reader has scrolled up, growth above and below the screen does not move the text on the screen."""
    await deployment.worker()
    tab = await deployment.page()
    await tab.set_viewport(width=600, height=500)
    question = "\n\n".join(f"paragraph {number}" for number in range(60))
    await tab.type("#prompt", question)
    await tab.press("Enter")
    await tab.until(ended("stop"))
    moved = await tab.evaluate(
        """import('/page/dom.js').then(({ keepingPlace }) => {
            const paragraphs = [...document.querySelectorAll('.answer p')];
            scrollTo(0, paragraphs[30].offsetTop);
            const seen = paragraphs.find((one) => one.getBoundingClientRect().top > 100);
            const before = seen.getBoundingClientRect().top;
            const block = (place) => {
                const grown = document.createElement('p');
                grown.style.height = '300px';
                place.before(grown);
            };
            keepingPlace(() => { block(paragraphs[0]); block(paragraphs[59]); });
            return seen.getBoundingClientRect().top - before;
        })"""
    )
    assert abs(moved) < 1


async def test_selected_text_survives_further_text(deployment: PageDeployment) -> None:
    """Text that the reader has selected in the growing paragraph stays selected while more text arrives."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "halves")
    await tab.until("document.querySelector('.answer')?.textContent.includes('word29')")
    await tab.evaluate(
        "getSelection().setBaseAndExtent(document.querySelector('.answer p').firstChild, 0, "
        "document.querySelector('.answer p').firstChild, 5)"
    )
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert await tab.evaluate("getSelection().toString()") == "word0"
