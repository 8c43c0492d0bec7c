"""The page when an agent asks people, and when people send messages to a run that is going on."""

import json

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, ended, until_models

OPEN = "document.querySelectorAll('.asking[data-state=open]').length"
STATE = "document.querySelector('.state')?.textContent"
PARKED = f"{STATE} === 'Waiting for your answer'"
NOTICE = "document.querySelector('#notice').textContent"


async def asked(tab: Tab, question: str, *, number: int = 1) -> None:
    """Ask, and wait until the run waits for people."""
    await ask(tab, question)
    await tab.until(f"{PARKED} && {OPEN} === {number}")


async def whole_answer(tab: Tab) -> str:
    """Return the text of all parts of the last answer."""
    return " ".join(await tab.texts(".answer"))


async def fill(tab: Tab, label: str, value: str) -> None:
    """Write into the field with this label."""
    script = f"""(() => {{
        const found = [...document.querySelectorAll('.asking[data-state=open] label')]
            .find((label) => label.textContent.startsWith({json.dumps(label)}));
        const field = document.getElementById(found.htmlFor);
        if (field.type === 'checkbox') field.click();
        else field.value = {json.dumps(value)};
    }})()"""
    await tab.evaluate(script)


async def test_an_approved_tool_runs(deployment: PageDeployment) -> None:
    """The page shows the tool and its arguments; after Approve the answer goes on behind the question."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "approval")
    assert await tab.text(".asks") == "May the agent run send_mail?"
    assert "ada@example.org" in await tab.text(".asking pre")
    assert "You can answer until" in await tab.text(".until")
    assert "Waiting for approval" not in await whole_answer(tab)
    assert await tab.evaluate("document.querySelector('.reply').getAttribute('aria-busy')") == "false"
    await tab.click(".approve")
    await tab.until(ended("stop"))
    assert await tab.text(".outcome") == "Approved"
    assert [text.strip() for text in await tab.texts(".answer")] == ["I have written the mail.", "It was sent."]
    assert await tab.evaluate(
        "document.querySelector('.asking').previousElementSibling.className === 'answer'"
        " && document.querySelector('.asking').nextElementSibling.className === 'answer'"
    )
    assert "another worker" not in await tab.text(".state")
    assert tab.complaints == []


async def test_a_denied_tool_does_not_run(deployment: PageDeployment) -> None:
    """Deny sends the reason with it, and the agent learns both."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "approval")
    await fill(tab, "Reason", "it is late")
    await tab.click(".deny")
    await tab.until(ended("stop"))
    assert await tab.text(".outcome") == "Denied: it is late"
    assert (await whole_answer(tab)).strip().endswith("It was not sent because it is late.")


async def test_a_question_survives_a_reload_and_new_processes(deployment: PageDeployment) -> None:
    """The question is there after a reload, also when all front ends and workers are new, and can be answered."""
    worker = await deployment.worker("asking")
    frontend = await deployment.processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://[^\s\"]+)"))[1]
    tab = await deployment.browser.tab(url)
    await asked(tab, "approval")
    worker.kill()
    frontend.kill()
    await worker.ended()
    await frontend.ended()
    again = await deployment.processes.start("frontend", AGENTSTREAM_PORT=url.rpartition(":")[2].strip("/"))
    await again.until(r"serving on")
    await deployment.worker("asking")
    await tab.reload()
    await tab.until(f"{PARKED} && {OPEN} === 1")
    await tab.click(".approve")
    await tab.until(ended("stop"))
    whole = await whole_answer(tab)
    assert whole.split() == ["I", "have", "written", "the", "mail.", "It", "was", "sent."]
    await tab.reload()
    await tab.until(ended("stop"))
    assert await whole_answer(tab) == whole
    assert await tab.text(".outcome") == "Approved"


async def test_a_form_has_a_field_for_each_property(deployment: PageDeployment) -> None:
    """A form refuses wrong values before it is sent, and sends each value with its type."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "form")
    assert await tab.text(".asking .message") == "Where do you want to go?"
    await fill(tab, "City", "Oslo")
    await fill(tab, "Days", "12")
    await tab.click(".reply-now")
    assert await tab.evaluate("document.querySelector('.asking :invalid:not(fieldset)').validity.rangeOverflow")
    await fill(tab, "Days", "3")
    await fill(tab, "class", "1")
    await fill(tab, "hotel", "")
    await tab.click(".reply-now")
    await tab.until(ended("stop"))
    assert json.loads(await whole_answer(tab)) == {"city": "Oslo", "days": 3, "class": "b", "hotel": True}


async def test_several_questions_are_answered_one_by_one(deployment: PageDeployment) -> None:
    """Two questions are open at once; the run goes on after the second answer, also if the page is reloaded between."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "both", number=2)
    await tab.type(".asking[data-state=open] textarea", "Dagros")
    await tab.press("Enter")
    await tab.until(f"{OPEN} === 1")
    await tab.reload()
    await tab.until(f"{PARKED} && {OPEN} === 1")
    await tab.type(".asking[data-state=open] textarea", "the green one")
    await tab.press("Enter")
    await tab.until(ended("stop"))
    assert (await whole_answer(tab)).strip() == "Dagros on the green one"
    assert await tab.texts(".outcome") == ["Answered: Dagros", "Answered: the green one"]


async def test_another_tab_sees_that_a_question_was_answered(deployment: PageDeployment) -> None:
    """A second tab with the same question goes on by itself when the first one has answered."""
    await deployment.worker("asking")
    first = await deployment.page()
    await asked(first, "approval")
    second = await deployment.browser.tab(await first.evaluate("location.href"))
    await second.until(f"{PARKED} && {OPEN} === 1")
    await first.show()
    await first.click(".approve")
    await first.until(ended("stop"))
    await second.show()
    await second.until(ended("stop"))
    assert await second.text(".outcome") == "This question was answered elsewhere."
    assert (await whole_answer(second)).split() == ["I", "have", "written", "the", "mail.", "It", "was", "sent."]


async def test_a_late_answer_says_that_it_is_late(deployment: PageDeployment) -> None:
    """If another tab has answered differently, the page says so and shows how the run went on."""
    await deployment.worker("waiting")
    first = await deployment.page()
    await ask(first, "both")
    await first.until(f"{OPEN} === 2")
    second = await deployment.browser.tab(await first.evaluate("location.href"))
    await second.until(f"{OPEN} === 2")
    await first.show()
    await first.type(".asking[data-state=open] textarea", "Dagros")
    await first.press("Enter")
    await first.until(f"{OPEN} === 1")
    await second.show()
    await second.type(".asking[data-state=open] textarea", "Litago")
    await second.press("Enter")
    await second.until(f"{OPEN} === 1")
    assert await second.text(".outcome:not([hidden])") == "Somebody else has answered this question."
    await second.type(".asking[data-state=open] textarea", "the green one")
    await second.press("Enter")
    for tab in (first, second):
        await tab.show()
        await tab.until(ended("stop"))
        assert (await whole_answer(tab)).strip() == "Dagros on the green one"


async def test_a_question_that_nobody_answers_expires(deployment: PageDeployment) -> None:
    """After the time limit the page says that nobody answered, and the answer goes on."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "briefly")
    await tab.until(ended("stop"))
    assert await tab.text(".outcome") == "Nobody answered in time. The agent goes on without an answer."
    assert (await whole_answer(tab)).strip() == "Nobody was there."


async def test_a_waiting_run_can_be_stopped_but_not_by_escape(deployment: PageDeployment) -> None:
    """Escape does not end a run that waits for people; the button Stop does."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "approval")
    await tab.press("Escape")
    assert await tab.evaluate(PARKED)
    await tab.click("#stop")
    await tab.until(ended("stopped"))
    assert await tab.text(".outcome") == "The run has ended without an answer."


async def test_a_waiting_chat_can_be_left(deployment: PageDeployment) -> None:
    """New chat leaves a run that waits for people; its link still asks the question."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "approval")
    link = await tab.evaluate("location.href")
    await tab.click("#restart")
    await tab.until("document.querySelectorAll('.exchange').length === 0")
    other = await deployment.browser.tab(link)
    await other.until(f"{PARKED} && {OPEN} === 1")
    await other.click(".approve")
    await other.until(ended("stop"))


async def test_a_message_to_a_running_agent_is_shown_where_it_was_read(deployment: PageDeployment) -> None:
    """A message to the run stands at its place in the answer, for each tab, and later requests contain it."""
    await deployment.worker("listening")
    tab = await deployment.page()
    await ask(tab, "listen")
    await tab.until("document.querySelector('.answer')?.textContent.includes('I listen.')")
    second = await deployment.browser.tab(await tab.evaluate("location.href"))
    await tab.show()
    await tab.type("#prompt", "moo")
    await tab.press("Enter")
    for each in (tab, second):
        await each.show()
        await each.until("[...document.querySelectorAll('.answer')].at(-1).textContent.includes('Heard moo.')")
        assert [text.strip() for text in await each.texts(".said .question")] == ["moo"]
        assert [text.strip() for text in await each.texts(".answer")] == ["I listen.", "Heard moo."]
    assert await tab.evaluate("document.querySelector('#prompt').value") == ""
    await tab.show()
    await tab.type("#prompt", "stop")
    await tab.press("Enter")
    for each in (tab, second):
        await each.show()
        await each.until(ended("stop"))
    await tab.reload()
    await tab.until(ended("stop"))
    assert [text.strip() for text in await tab.texts(".said .question")] == ["moo", "stop"]
    await ask(tab, "how many?")
    await tab.until("document.querySelectorAll('.exchange').length === 2 && " + ended("stop"))
    assert (await tab.texts(".answer"))[-1].strip() == "6 how many?"


async def test_a_message_that_was_not_read_is_offered_again(deployment: PageDeployment) -> None:
    """The page says at the end which message the agent did not read, and sends it as the next question on request."""
    await deployment.worker("deaf")
    tab = await deployment.page()
    await ask(tab, "ignore me")
    await tab.until("document.querySelector('.answer')?.textContent.includes('La la.')")
    await tab.type("#prompt", "hello?")
    await tab.press("Enter")
    await tab.until("document.querySelector('.pending .question')?.textContent === 'hello?'")
    await tab.reload()
    await tab.until("document.querySelector('.pending .question')?.textContent === 'hello?'")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert await tab.text(".unread-words") == "The agent did not read this message:"
    assert await tab.evaluate("document.querySelector('.pending').childElementCount") == 0
    await tab.click(".ask-unread")
    await tab.until("document.querySelectorAll('.exchange').length === 2 && " + ended("stop"))
    assert (await tab.texts(".answer"))[-1].strip() == "3 hello?"


async def test_an_agent_that_takes_no_messages_keeps_the_text(deployment: PageDeployment) -> None:
    """If the agent takes no messages, the page says so and the text stays in the field."""
    await deployment.worker("endless")
    tab = await deployment.page()
    await until_models(tab)
    await ask(tab, "go")
    await tab.until("document.querySelector('.answer')?.textContent.includes('on and')")
    await tab.type("#prompt", "listen!")
    await tab.press("Enter")
    await tab.until(f"{NOTICE}.startsWith('The agent takes no messages now.')")
    assert await tab.evaluate("document.querySelector('#prompt').value") == "listen!"
    await tab.click("#stop")
    await tab.until(ended("stopped"))
    assert await tab.evaluate(NOTICE) == ""


async def test_questions_work_with_screen_readers_and_the_keyboard(deployment: PageDeployment) -> None:
    """Each control of a question has a name, the question is announced, and the focus stays at it after the answer."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await asked(tab, "form")
    assert await tab.evaluate("document.querySelector('#status').textContent") == "The agent asks"
    nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
    named = {
        node["role"]["value"]: node.get("name", {}).get("value", "")
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in {"textbox", "spinbutton", "combobox", "checkbox", "heading"}
    }
    assert set(named) == {"textbox", "spinbutton", "combobox", "checkbox", "heading"}
    assert all(named.values())
    await fill(tab, "City", "Oslo")
    await fill(tab, "Days", "3")
    await tab.evaluate("document.querySelector('.reply-now').focus()")
    await tab.press("Enter")
    await tab.until(ended("stop"))
    assert await tab.evaluate("document.activeElement.className") == "outcome"


async def test_a_question_fits_on_a_phone(deployment: PageDeployment) -> None:
    """A form needs no sideways scrolling on a phone, and its buttons are large enough for a finger."""
    await deployment.worker("asking")
    tab = await deployment.page()
    await tab.set_viewport(width=320, height=640)
    await asked(tab, "form")
    assert await tab.evaluate("document.documentElement.scrollWidth") == 320
    assert await tab.evaluate("document.querySelector('.reply-now').getBoundingClientRect().height") >= 44
