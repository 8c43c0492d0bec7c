"""The page in a real browser: runs, cancels, errors, reloads, other tabs and API keys."""

import asyncio
import json
import re
import signal
import sys
from typing import Any

import aiohttp

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, ended, stat, until_models
from tests.browser.page_agents import WORDS
from tests.helpers import TIMEOUT_S
from tests.ports import free_port

WHOLE = "".join(WORDS).strip()
HALF = f"document.querySelector('.answer')?.textContent.includes('{WORDS[29].strip()}')"


async def shown_run(tab: Tab) -> str:
    """Return the run id in the URL fragment of the page."""
    return str(await tab.evaluate("location.hash")).removeprefix("#run=")


async def status(url: str, run_id: str) -> Any:
    """Return the status of a run from the API."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/chat/completions/{run_id}") as response:
        return (await response.json())["status"]


async def test_a_tool_run_shows_its_timeline(deployment: PageDeployment) -> None:
    """The page shows turns, inferences and tool calls with durations and results, and reasoning and usage."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "tools")
    await tab.until(ended("stop"))
    steps = await tab.texts(".step")
    assert [re.sub(r"\+[0-9.]+ m?s", "+", step) for step in steps if not step.startswith("Model")] == [
        "Turn herd +",
        'Tool count 1.50 s + Arguments{"animal": "cow"}Resulttwo cows',
        'Tool weigh failed after 500 ms + Arguments{"animal": "cow"}Errorno scales',
        "Results weigh failed, count ok +",
    ]
    assert re.fullmatch(r"Model cow-1 on test [0-9]+ ms · 7 in, 9 out · tool_calls \+[0-9.]+ m?s", steps[1])
    assert await tab.text(".thought") == "They want cows. I count them."
    assert await tab.texts(".answer strong, .answer em, .answer code") == ["Oslo", "Dagros", "Litago", "print('moo')"]
    assert await tab.texts(".answer a") == ["https://example.org/cows"]
    assert await tab.evaluate(stat("tokens")) == "20 in, 30 out"
    assert re.fullmatch(r"[0-9.]+ m?s", await tab.evaluate(stat("first")))
    assert tab.complaints == []


async def test_escape_stops_a_run(deployment: PageDeployment) -> None:
    """Escape cancels the run on the server, and the page keeps the text so far."""
    await deployment.worker()
    url = await deployment.frontend()
    tab = await deployment.browser.tab(url)
    await ask(tab, "endless")
    await tab.until("document.querySelector('.answer')?.textContent.includes('on and on')")
    await tab.press("Escape")
    await tab.until(ended("stopped"))
    assert await status(url, await shown_run(tab)) == "cancelled"
    assert "on and on" in await tab.text(".answer")
    assert await tab.evaluate("document.activeElement.id") == "prompt"
    await ask(tab, "echo this")
    await tab.until(ended("stop") + " && document.querySelectorAll('.exchange').length === 2")
    assert await tab.text(".answer") == "3 echo this"
    assert tab.complaints == []


async def test_a_killed_worker_shows_an_error(deployment: PageDeployment) -> None:
    """The page shows that the worker was lost and does not treat the partial answer as complete."""
    doomed = await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "halves")
    await tab.until(HALF)
    await deployment.worker()
    doomed.kill()
    await tab.until(ended("with an error"))
    assert "worker_lost" in await tab.text(".failure")
    assert WORDS[29].strip() in await tab.text(".answer")
    assert not await tab.evaluate("document.querySelector('.failure').hidden")
    assert await tab.evaluate("document.querySelector('.failure').getAttribute('role')") == "alert"


async def test_a_reload_resumes_the_answer(deployment: PageDeployment) -> None:
    """After a reload during a run, the page shows the full text once, and later requests include it."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "halves")
    await tab.until(HALF)
    await tab.reload()
    await tab.until(HALF)
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE
    assert [step.split(" +")[0] for step in await tab.texts(".step")] == ["Tool look 250 ms", "Results look ok"]
    assert await tab.text(".question") == "halves"
    await tab.reload()
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE
    await ask(tab, "and now")
    await tab.until(ended("stop") + " && document.querySelectorAll('.exchange').length === 2")
    assert await tab.text(".answer") == "3 and now"
    assert tab.complaints == []


async def test_a_reload_resumes_after_the_last_received_frame(deployment: PageDeployment) -> None:
    """A reload requests only later frames; without session storage, the run id in the URL restores the whole run."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "halves")
    await tab.until(HALF)
    await tab.reload()
    await tab.until(HALF)
    urls = "performance.getEntriesByType('resource').map(({ name }) => name)"
    resumed = f"{urls}.find((name) => name.includes('stream=true'))"
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert re.search(r"[?&]starting_after=1-[0-9]+", await tab.evaluate(resumed))
    await tab.evaluate("addEventListener('pagehide', () => sessionStorage.clear())")
    await tab.reload()
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE


async def test_a_second_tab_shows_the_run_through_another_front_end(deployment: PageDeployment) -> None:
    """The link of a run shows the run live in another tab, through any front end, and that tab can stop it."""
    await deployment.worker()
    first = await deployment.page()
    other = await deployment.frontend()
    await ask(first, "halves")
    await first.until(HALF)
    second = await deployment.browser.tab(f"{other}/#run={await shown_run(first)}")
    await second.until(HALF)
    deployment.open_gate("rest")
    for tab in (first, second):
        await tab.until(ended("stop"))
        assert (await tab.text(".answer")).strip() == WHOLE
    assert await second.texts(".step") == ["Tool look 250 ms Arguments{}Resultseen", "Results look ok"]

    await first.show()
    await ask(first, "endless")
    await first.until("[...document.querySelectorAll('.answer')].at(-1).textContent.includes('on and on')")
    await second.show()
    await second.open(f"{other}/?again#run={await shown_run(first)}")
    await second.until("[...document.querySelectorAll('.answer')].at(-1)?.textContent.includes('on and on')")
    await second.click("#stop")
    await first.until(ended("stopped"))
    await second.until(ended("stopped"))


async def test_the_page_reconnects_to_a_restarted_front_end(deployment: PageDeployment) -> None:
    """When the front end is killed during a run, the page says so and continues when a new one has started."""
    await deployment.worker()
    port = str(free_port())
    doomed = await deployment.processes.start("frontend", AGENTSTREAM_PORT=port)
    url = (await doomed.until(r"serving on (http://\S+)"))[1]
    tab = await deployment.browser.tab(url)
    await ask(tab, "halves")
    await tab.until(HALF)
    doomed.kill()
    await tab.until("!document.querySelector('.reconnecting').hidden")
    again = await deployment.processes.start("frontend", AGENTSTREAM_PORT=port)
    await again.until("serving on")
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE
    assert await tab.evaluate("document.querySelector('.reconnecting').hidden")


async def test_a_link_to_an_unknown_run_shows_an_error(deployment: PageDeployment) -> None:
    """A link to a run that has expired, or with an invalid run id, shows an error."""
    await deployment.worker()
    url = await deployment.frontend()
    tab = await deployment.browser.tab(f"{url}/#run=chatcmpl-{'0' * 32}")
    await tab.until("document.querySelector('.failure:not([hidden])')")
    assert "no such run" in await tab.text(".failure .reason")
    assert "It may have expired" in await tab.text(".failure .problem")
    assert "still be working" not in await tab.text(".failure")
    tab = await deployment.browser.tab(f"{url}/#run=<b>")
    await tab.until("!document.querySelector('#notice').hidden")
    assert "no valid run id" in await tab.text("#notice")


async def test_the_page_asks_for_an_api_key(deployment: PageDeployment) -> None:
    """If the server requires an API key, the page asks for it, keeps it for this tab and never shows it."""
    await deployment.worker()
    url = await deployment.frontend(AGENTSTREAM_API_KEYS="sesame")
    tab = await deployment.browser.tab(url)
    await tab.until("document.querySelector('#access').open && document.activeElement.id === 'key'")
    assert "needs an API key" in await tab.text("#notice")
    await tab.type("#key", "sesame")
    await tab.press("Enter")
    await ask(tab, "halves")
    await tab.until(HALF)
    await tab.reload()
    deployment.open_gate("rest")
    await tab.until(ended("stop"))
    assert (await tab.text(".answer")).strip() == WHOLE
    assert "sesame" not in await tab.evaluate("document.documentElement.outerHTML")

    stranger = await deployment.browser.tab(await tab.evaluate("location.href"))
    await stranger.until("document.querySelector('#access').open")
    await stranger.type("#key", "sesame")
    await stranger.press("Tab")
    await stranger.until(ended("stop"))
    assert (await stranger.text(".answer")).strip() == WHOLE


async def test_opening_a_link_keeps_the_focus_on_the_key_field(deployment: PageDeployment) -> None:
    """While the page opens a link, the key field keeps the focus, so that no part of a key goes into the message."""
    await deployment.worker()
    url = await deployment.frontend(AGENTSTREAM_API_KEYS="sesame")
    tab = await deployment.browser.tab()
    note_focus = (
        "window.focused = []; addEventListener('focusin', (event) => window.focused.push(event.target.id), true)"
    )
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source=note_focus)
    await tab.open(f"{url}/#run=chatcmpl-{'0' * 32}")
    await tab.until("document.querySelector('.failure')?.textContent.includes('401')")
    focused = await tab.evaluate("window.focused")
    assert "prompt" not in focused[focused.index("key") :]
    assert await tab.evaluate("document.activeElement.id === 'key' && document.querySelector('#access').open")


async def test_a_request_can_be_copied_as_curl_and_as_python(deployment: PageDeployment) -> None:
    """The copied curl command and Python program run unchanged, send the same request and contain no key."""
    await deployment.worker("echo")
    tab = await deployment.page(AGENTSTREAM_API_KEYS="sesame")
    await tab.until("document.querySelector('#access').open")
    await tab.type("#key", "sesame")
    await tab.press("Enter")
    question = 'it\'s "quoted" $HOME `id` \\ !x 😀 \u202e \u2028 end'
    await ask(tab, question)
    await tab.until(ended("stop"))
    answer = await tab.text(".answer")
    await tab.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    for button, interpreter in ((".curl", ["sh", "-c"]), (".python", [sys.executable, "-c"])):
        await tab.click(button)
        copied = await tab.evaluate("window.copied")
        assert "sesame" not in copied
        output = await _run(interpreter, copied)
        frames = re.findall(r'"content":("(?:[^"\\]|\\.)*")', output)  # of curl's frames
        answered = output.removesuffix("\n") if button == ".python" else "".join(map(json.loads, frames))
        assert answered == f"1 {question}"
    assert answer.startswith("1 it's")
    await tab.evaluate("navigator.clipboard.writeText = async () => { throw new Error('not allowed'); }")
    await tab.click(".curl")
    await tab.until("document.querySelector('#copy-by-hand').open")
    assert (await tab.evaluate("document.querySelector('#copy-text').value")).startswith("curl -N 'http://127.0.0.1:")


async def _run(interpreter: list[str], program: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *interpreter, program, env={"OPENAI_API_KEY": "sesame", "PATH": "/usr/bin:/bin"}, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_an_unreachable_server_shows_an_error(deployment: PageDeployment) -> None:
    """If the server has stopped, the page shows an error and keeps the question."""
    await deployment.worker()
    frontend = await deployment.processes.start("frontend", AGENTSTREAM_PORT="0")
    tab = await deployment.browser.tab((await frontend.until(r"serving on (http://\S+)"))[1])
    await until_models(tab)
    frontend.send_signal(signal.SIGTERM)
    await frontend.ended()
    await tab.type("#prompt", "anyone?")
    await tab.press("Enter")
    await tab.until(ended("with an error"))
    assert "cannot be reached" in await tab.text(".failure")
    assert await tab.evaluate("document.querySelector('#prompt').value") == "anyone?"
