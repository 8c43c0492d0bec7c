"""Writing, sending and editing messages: input methods, the model, copying, and trying again."""

import json

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, choose_other, ended, until_models

SHIFT = 8
TO_INPUT_METHOD = 229  # the key code of a key that goes to an input method
CLIPBOARD = "navigator.clipboard.writeText = async (text) => { window.copied = text; }"


async def value_of(tab: Tab, selector: str) -> str:
    """Return the value of a field."""
    return str(await tab.evaluate(f"document.querySelector({json.dumps(selector)}).value"))


async def test_enter_of_an_input_method_does_not_send(deployment: PageDeployment) -> None:
    """Enter that ends a composition sends nothing, also as Safari reports it: key code 229 after the composition."""
    await deployment.worker()
    tab = await deployment.page()
    await until_models(tab)
    await tab.evaluate("document.querySelector('#prompt').focus()")
    await tab.call("Input.imeSetComposition", text="にほん", selectionStart=3, selectionEnd=3)
    await tab.press("Enter", key_code=TO_INPUT_METHOD)
    await tab.call("Input.insertText", text="日本")
    await tab.press("Enter", key_code=TO_INPUT_METHOD)  # as Safari: not composing any more
    composing = "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true })"
    await tab.evaluate(f"document.querySelector('#prompt').dispatchEvent({composing})")
    assert await tab.texts(".question") == []
    await tab.press("Enter")
    await tab.until(ended("stop"))
    assert await tab.texts(".question") == ["日本"]


async def test_escape_of_an_input_method_does_not_stop_the_run(deployment: PageDeployment) -> None:
    """Escape that cancels a composition does not stop the run, and does not close the editor of a question."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "slow tool")
    await tab.until("document.querySelector('.step')")
    await tab.press("Escape", key_code=TO_INPUT_METHOD)
    deployment.open_gate("tool")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    await tab.click(".edit")
    await tab.type(".editing textarea", " and more")
    await tab.press("Escape", key_code=TO_INPUT_METHOD)
    await tab.press("Enter", key_code=TO_INPUT_METHOD)
    assert await value_of(tab, ".editing textarea") == "slow tool and more"
    await tab.press("Escape")
    assert await tab.texts(".editing") == []
    assert await tab.text(".question") == "slow tool"


async def test_the_field_grows_with_its_lines(deployment: PageDeployment) -> None:
    """Shift + Enter adds a line and the field grows, with and without field-sizing; sending makes it one line again."""
    await deployment.worker()
    for supported in (True, False):
        tab = await deployment.page()
        if not supported:
            await tab.before_load("CSS.supports = () => false")
            await tab.reload()
        await until_models(tab)
        height = "document.querySelector('#prompt').offsetHeight"
        one_line = await tab.evaluate(height)
        await tab.type("#prompt", "one")
        for _ in range(4):
            await tab.press("Enter", modifiers=SHIFT)
        await tab.type("#prompt", "five")
        assert await value_of(tab, "#prompt") == "one\n\n\n\nfive"
        assert await tab.evaluate(height) > 3 * one_line
        await tab.press("Enter")
        await tab.until(ended("stop"))
        assert await tab.evaluate(height) == one_line


async def test_the_composer_is_one_row(deployment: PageDeployment) -> None:
    """On a phone, the message and Send are in one row at the bottom, and the page is not wider than the screen."""
    await deployment.worker()
    tab = await deployment.page()
    await tab.set_viewport(width=360, height=740)
    rows = "['#prompt', '#send'].map((name) => document.querySelector(name).getBoundingClientRect())"
    prompt, send = await tab.evaluate(f"{rows}.map(({{ top, bottom, right }}) => ({{ top, bottom, right }}))")
    assert abs((prompt["top"] + prompt["bottom"]) - (send["top"] + send["bottom"])) <= 2
    assert await tab.evaluate("document.querySelector('#composer').offsetHeight") < 80
    assert await tab.evaluate("document.documentElement.scrollWidth") == 360
    for name in ("#prompt", "#model"):
        size = await tab.evaluate(f"parseFloat(getComputedStyle(document.querySelector('{name}')).fontSize)")
        assert size >= 16, "Safari on phones zooms in when a smaller field gets the focus"


async def test_the_chosen_model_is_kept(deployment: PageDeployment) -> None:
    """A reload keeps the chosen model, also one that is not listed."""
    await deployment.worker()
    tab = await deployment.page(AGENTSTREAM_MODELS="cow,goat")
    await until_models(tab)
    assert await tab.texts("#model option") == ["cow", "goat", "Another model …"]
    await tab.click("#agents li:last-child button")
    assert await value_of(tab, "#model") == "goat"
    await tab.reload()
    await until_models(tab)
    assert await value_of(tab, "#model") == "goat"
    assert await tab.texts(".agent[aria-pressed=true]") == ["goat"]
    await choose_other(tab, "org/sheep 1")
    await tab.reload()
    await until_models(tab)
    assert await value_of(tab, "#model") == "org/sheep 1"
    await ask(tab, "hello")
    await tab.until(ended("stop"))
    assert await tab.text("[data-stat=model]") == "org/sheep 1"
    assert tab.complaints == []


async def test_a_worker_that_starts_later_appears(deployment: PageDeployment) -> None:
    """A page that was opened before the first worker says so, and lists the agents once there is a worker."""
    tab = await deployment.page(AGENTSTREAM_MODELS="cow")
    await tab.until("document.querySelector('#notice').textContent.includes('No agent is running')")
    await deployment.worker()
    await until_models(tab)
    assert await tab.evaluate("document.querySelector('#notice').hidden")
    assert await tab.texts("#agents button") == ["cow"]


async def test_an_example_is_asked(deployment: PageDeployment) -> None:
    """The empty page shows examples; a click on one asks it, and a new chat shows them again."""
    await deployment.worker()
    tab = await deployment.page()
    await until_models(tab)
    example = (await tab.texts("#examples button"))[0]
    await tab.tap("#examples button")
    await tab.until(ended("stop"))
    assert await tab.text(".answer") == f"1 {example}"
    assert await tab.evaluate("document.querySelector('#welcome').hidden")
    await tab.click("#restart")
    assert not await tab.evaluate("document.querySelector('#welcome').hidden")


async def test_a_failed_run_is_tried_again_in_its_place(deployment: PageDeployment) -> None:
    """An error is said in words for people, with the server's reason; Retry asks again and replaces the failure."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "flaky")
    await tab.until(ended("with an error"))
    assert await tab.text(".problem") == "The agent failed."
    assert "agent_error" in await tab.text(".reason")
    assert (await tab.text(".state")).startswith("Failed after ")
    await tab.tap(".failure .retry")
    await tab.until("document.querySelectorAll('.exchange').length === 1 && " + ended("with an error"))
    deployment.open_gate("works")
    await tab.tap(".failure .retry")
    await tab.until(ended("stop"))
    assert await tab.texts(".answer") == ["The herd is back."]
    assert await tab.evaluate("document.querySelector('.failure').hidden")
    assert await value_of(tab, "#prompt") == ""
    await ask(tab, "count")
    await tab.until(ended("stop") + " && document.querySelectorAll('.exchange').length === 2")
    assert await tab.text(".answer") == "3 count"


async def test_an_interrupted_run_is_followed_again(deployment: PageDeployment) -> None:
    """Retry on a run that the page could not follow continues this run, instead of asking the question again."""
    await deployment.worker()
    tab = await deployment.page(AGENTSTREAM_API_KEYS="sesame")
    await tab.evaluate("sessionStorage.setItem('agentstream.key', 'sesame')")
    await tab.reload()
    await ask(tab, "slow tool")
    await tab.until("document.querySelector('.step')")
    run = await tab.evaluate("location.hash")
    await tab.evaluate("sessionStorage.setItem('agentstream.key', 'wrong')")
    await tab.reload()
    await tab.until("document.querySelector('.state')?.textContent === 'Disconnected'")
    assert "The agent may still be working." in await tab.text(".problem")
    await tab.evaluate("sessionStorage.setItem('agentstream.key', 'sesame')")
    deployment.open_gate("tool")
    deployment.open_gate("rest")
    await tab.click(".retry")
    await tab.until(ended("stop"))
    assert await tab.evaluate("location.hash") == run
    assert await tab.texts(".question") == ["slow tool"]
    assert "That is all." in await tab.text(".answer")


async def test_a_question_is_edited(deployment: PageDeployment) -> None:
    """Editing a question asks the new one in its place, and removes the exchanges after it, as the editor says."""
    await deployment.worker()
    tab = await deployment.page()
    for number, question in enumerate(("first", "second"), 1):
        await ask(tab, question)
        await tab.until(ended("stop") + f" && document.querySelectorAll('.exchange').length === {number}")
    await tab.evaluate("document.querySelector('.edit').click()")
    assert not await tab.evaluate("document.querySelector('.editing .warning').hidden")
    assert await value_of(tab, ".editing textarea") == "first"
    await tab.type(".editing textarea", " again")
    await tab.press("Enter")
    await tab.until(ended("stop") + " && document.querySelectorAll('.exchange').length === 1")
    assert await tab.texts(".question") == ["first again"]
    assert await tab.texts(".answer") == ["1 first again"]
    await tab.reload()
    await tab.until(ended("stop"))
    assert await tab.texts(".question") == ["first again"]
    assert tab.complaints == []


async def test_the_answer_and_its_code_are_copied(deployment: PageDeployment) -> None:
    """Copy gives the answer as Markdown, and the button of a code block gives the code."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "tools")
    await tab.until(ended("stop"))
    await tab.evaluate(CLIPBOARD)
    await tab.click(".copy")
    assert "1. *Dagros*\n2. `Litago`\n\n```python\n" in await tab.evaluate("window.copied")
    await tab.click(".copy-code")
    assert await tab.evaluate("window.copied") == "print('moo')"
    assert await tab.text("#toast") == "The code was copied."
