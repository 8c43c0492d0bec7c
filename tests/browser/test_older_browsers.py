"""The page in browsers of the last three years, on plain http, on phones, and where storage is blocked or full."""

import pytest

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, choose_other, ended, until_models

# Interfaces that Safari 17.0, Firefox 119 and Chrome 119 (autumn 2023) lack, or that browsers offer only in secure
# contexts.
REMOVE_NEWER_API = """
    for (const [owner, names] of [
        [AbortSignal, ['any', 'timeout']],
        [URL, ['canParse', 'parse']],
        [String.prototype, ['at', 'toWellFormed', 'isWellFormed']],
        [Array, ['fromAsync']],
        [Array.prototype, ['at', 'findLast', 'findLastIndex', 'toSorted', 'toReversed', 'toSpliced', 'with']],
        [Object, ['groupBy', 'hasOwn']],
        [Map, ['groupBy']],
        [Set.prototype, ['union', 'intersection', 'difference', 'isSubsetOf']],
        [Promise, ['withResolvers', 'try', 'any']],
        [ReadableStream, ['from']],
        [ReadableStream.prototype, [Symbol.asyncIterator, 'values']],
        [Iterator.prototype, ['map', 'filter', 'toArray', 'flatMap', 'take', 'some', 'find']],
        [Element.prototype, ['checkVisibility', 'setHTML', 'moveBefore', 'togglePopover', 'requestFullscreen']],
        [HTMLElement.prototype, ['showPopover', 'hidePopover', 'togglePopover']],
        [HTMLFormElement.prototype, ['requestSubmit']],
        [HTMLDialogElement.prototype, ['showModal']],
        [Document.prototype, ['startViewTransition']],
        [Crypto.prototype, ['randomUUID']],
        [Response.prototype, ['bytes']],
        [window, ['structuredClone', 'requestIdleCallback', 'scheduler', 'trustedTypes', 'queueMicrotask']],
    ]) for (const name of names) delete owner[name];
    CSS.supports = () => false;
    Object.defineProperty(window, 'visualViewport', { value: undefined });
    Object.defineProperty(navigator, 'clipboard', { value: undefined });
    Object.defineProperty(navigator, 'userAgentData', { value: undefined });
"""
BLOCK_STORAGE = """
    for (const name of ['sessionStorage', 'localStorage']) {
        Object.defineProperty(window, name, { get() { throw new DOMException('denied', 'SecurityError'); } });
    }
"""
NO_STORAGE = "Object.defineProperty(window, 'sessionStorage', { value: null })"
FILL_STORAGE = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"


async def opened(deployment: PageDeployment, script: str, **settings: str) -> Tab:
    """Open the page in a browser that a script has changed."""
    url = await deployment.frontend(**settings)
    tab = await deployment.browser.tab()
    await tab.before_load(script)
    await tab.open(url)
    return tab


async def test_it_needs_no_newer_api(deployment: PageDeployment) -> None:
    """Without the interfaces that browsers of the last three years lack, a chat works, and a reload restores it."""
    await deployment.worker()
    tab = await opened(deployment, REMOVE_NEWER_API)
    await ask(tab, "tools")
    await tab.until("document.querySelector('[data-stat=ended]')?.textContent === 'stop'")
    await choose_other(tab, "another")
    await ask(tab, "endless")
    await tab.until("document.querySelectorAll('.answer')[1]?.textContent.includes('on and on')")
    await tab.press("Escape")
    await tab.until("document.querySelectorAll('[data-stat=ended]')[1].textContent === 'stopped'")
    for button, name in ((".copy", "The answer"), (".curl", "The curl command"), (".python", "The Python program")):
        await tab.evaluate(f"document.querySelector('{button}').click()")  # tab.click needs Array.at
        await tab.until(f"document.querySelector('#status').textContent === '{name} was copied.'")
    await tab.reload()
    await tab.until("document.querySelectorAll('[data-stat=ended]')[1]?.textContent === 'stopped'")
    assert await tab.texts(".question") == ["tools", "endless"]
    assert tab.complaints == []


@pytest.mark.parametrize("script", [BLOCK_STORAGE, NO_STORAGE, FILL_STORAGE], ids=["blocked", "missing", "full"])
async def test_it_works_without_storage(deployment: PageDeployment, script: str) -> None:
    """If storage is blocked, missing or full, the key and the chat live in the page, and the URL restores the run."""
    await deployment.worker()
    tab = await opened(deployment, script, AGENTSTREAM_API_KEYS="sesame")
    await tab.until("document.querySelector('#access').open")
    await tab.type("#key", "sesame")
    await tab.press("Enter")
    await ask(tab, "echo this")
    await tab.until(ended("stop"))
    await ask(tab, "and this")
    await tab.until(ended("stop") + " && document.querySelectorAll('.exchange').length === 2")
    assert await tab.text(".answer") == "3 and this"
    await tab.reload()
    await tab.until("document.querySelector('#access').open")
    await tab.type("#key", "sesame")
    await tab.press("Enter")
    await tab.until(ended("stop"))
    assert await tab.text(".answer") == "3 and this"


async def test_copying_works_on_plain_http(deployment: PageDeployment) -> None:
    """On plain http, where browsers have no clipboard API, a click on Copy still copies the answer."""
    await deployment.worker()
    url = await deployment.frontend(AGENTSTREAM_ALLOW_OPEN="true")
    tab = await deployment.browser.tab(url.replace("127.0.0.1", "page.test"))
    assert await tab.evaluate("[window.isSecureContext, navigator.clipboard ?? null]") == [False, None]
    await ask(tab, "copy me")
    await tab.until(ended("stop"))
    await tab.evaluate(
        "addEventListener('copy', () => { window.copied = document.activeElement.value; }, { capture: true })"
    )
    await tab.show()
    await tab.tap(".copy")
    await tab.until("document.querySelector('#toast').textContent === 'The answer was copied.'")
    assert await tab.evaluate("window.copied") == "1 copy me"
    assert await tab.texts("textarea.visually-hidden") == []
    assert [complaint for complaint in tab.complaints if "Cross-Origin-Opener-Policy" not in complaint] == []


async def test_the_composer_stays_above_the_keyboard_of_a_phone(deployment: PageDeployment) -> None:
    """If the keyboard covers the page, as in Safari, the message field moves above it, and back afterwards."""
    await deployment.worker()
    tab = await deployment.page()
    await tab.set_viewport(width=390, height=800)
    bottom = "Math.round(document.querySelector('#composer').getBoundingClientRect().bottom)"
    for height in (500, 800):
        await tab.evaluate(
            f"""(() => {{
                Object.defineProperty(visualViewport, 'height', {{ value: {height}, configurable: true }});
                visualViewport.dispatchEvent(new Event('resize'));
            }})()"""
        )
        assert await tab.evaluate(bottom) == height


async def test_answers_that_end_by_an_error_of_the_browser_are_resumed(deployment: PageDeployment) -> None:
    """A stream that breaks with the error of any browser, such as Safari's "Load failed", is resumed."""
    await deployment.worker()
    broken = """
        const read = ReadableStreamDefaultReader.prototype.read;
        let reads = 0;
        ReadableStreamDefaultReader.prototype.read = function () {
            reads += 1;
            return reads === 3 ? Promise.reject(new TypeError('Load failed')) : read.call(this);
        };
    """
    tab = await opened(deployment, broken)
    await until_models(tab)
    await ask(tab, "slow tool")
    await tab.until("document.querySelector('.step')")
    deployment.open_gate("tool")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert "That is all." in await tab.text(".answer")


async def test_restoring_a_long_chat_does_not_change_the_url(deployment: PageDeployment) -> None:
    """A reload of a chat changes the URL for no restored run: Safari refuses more than 100 changes in 30 s."""
    await deployment.worker()
    counted = """
        const replace = history.replaceState;
        window.changes = 0;
        history.replaceState = function (...its) { window.changes += 1; return replace.apply(this, its); };
    """
    tab = await opened(deployment, counted)
    for number in (1, 2):
        await ask(tab, f"question {number}")
        await tab.until(ended("stop") + f" && document.querySelectorAll('.exchange').length === {number}")
    assert await tab.evaluate("window.changes") == 2
    await tab.reload()
    await tab.until("document.querySelectorAll('.exchange').length === 2")
    await until_models(tab)
    assert await tab.evaluate("window.changes") == 0
    assert (await tab.evaluate("location.hash")).startswith("#run=chatcmpl-")
