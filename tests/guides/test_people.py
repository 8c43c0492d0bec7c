"""The guide on people in the loop: its agents, commands and programs are run as they stand."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.documents import PYTHON, Document, as_run_here, output, serving, url_of, user
from tests.helpers import TIMEOUT_S, decode, texts

PEOPLE = Document("deploy/guides/people.md")
ANN, BOB = "key-of-ann", "key-of-bob"

one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of the server of the guide."""
    folder = tmp_path_factory.mktemp("people")
    (agents,), (command,) = PEOPLE.blocks("agents"), PEOPLE.blocks("server")
    (folder / "people.py").write_text(agents, encoding="utf-8")
    async with serving(command, folder) as process:
        yield url_of(process)


async def curl(mark: str, url: str, folder: Path, run_id: str = "", key: str = ANN) -> Any:
    """Return the answer to the curl command of the guide, sent with this key."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH")
    (command,) = PEOPLE.blocks(mark)
    command = re.sub(r"\bRUN\b", run_id, command).replace(f"Bearer {ANN}", f"Bearer {key}")
    return json.loads(await output(re.sub(r"(?m)^curl ", "curl -sS ", as_run_here(command, url)), folder))


async def ask(url: str, model: str, **more: Any) -> Any:
    """Return the answer of an agent of the guide."""
    body = {"model": model, "messages": [user("please")]} | more
    return await send("POST", f"{url}/v1/chat/completions", body)


async def send(method: str, url: str, body: Any = None) -> Any:
    """Send a request with Ann's key, and return the answer."""
    headers = {"Authorization": f"Bearer {ANN}"}
    async with aiohttp.ClientSession() as session, session.request(method, url, json=body, headers=headers) as response:
        return await response.json()


def text_of(completion: Any) -> str:
    """Return the text of a completion."""
    return str(completion["choices"][0]["message"]["content"])


@one_loop
async def test_an_approval_is_asked_and_given(url: str, tmp_path: Path) -> None:
    """The first command shows the question, the second approves it."""
    asked = await curl("approval", url, tmp_path)
    assert (asked["status"], asked["interrupts"][0]["id"]) == ("requires_action", "approval-1")
    assert text_of(asked) == 'Waiting for approval: may I run send_mail with {"to": "bob"}?'
    assert text_of(await curl("approve", url, tmp_path, asked["id"])) == "Sent."


@one_loop
async def test_the_responses_api_answers(url: str, tmp_path: Path) -> None:
    """The program with OpenAI's client shows the tool, and denies it."""
    (program,) = PEOPLE.blocks("responses")
    (tmp_path / "sample.py").write_text(as_run_here(program, url), encoding="utf-8")
    printed = await output(f"{PYTHON} sample.py", tmp_path)
    assert printed.splitlines() == ['mcp_approval_request send_mail {"to": "bob"}', "Not sent."]


@one_loop
async def test_a_form_is_filled_in(url: str, tmp_path: Path) -> None:
    """A wrong answer is refused; that of the command fits."""
    asked = await ask(url, "trip")
    resume = f"{url}/v1/chat/completions/{asked['id']}/resume"
    refused = await send("POST", resume, {"answers": {"form-1": {"city": "O"}}})
    assert "does not fit" in refused["error"]["message"]
    assert text_of(await curl("form", url, tmp_path, asked["id"])) == "A trip to Oslo, 2 days."


@one_loop
async def test_a_second_person_answers(url: str, tmp_path: Path) -> None:
    """Bob answers the run that lists his key, and no other."""
    other, listed = await ask(url, "mail"), await curl("second", url, tmp_path)
    assert (await curl("approve", url, tmp_path, other["id"], BOB))["error"]["code"] == "not_found"
    assert text_of(await curl("approve", url, tmp_path, listed["id"], BOB)) == "Sent."


@one_loop
async def test_nobody_answers(url: str) -> None:
    """The agent goes on by itself, and a late answer is told so."""
    run = f"{url}/v1/chat/completions/{(await ask(url, 'lunch'))['id']}"
    async with asyncio.timeout(TIMEOUT_S):
        while (answer := await send("GET", run))["status"] != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert text_of(answer) == "I order soup."
    late = await send("POST", f"{run}/resume", {"answers": {"question-1": "pizza"}})
    assert late["error"]["code"] == "interrupt_expired"


@one_loop
async def test_a_message_is_taken_between_two_steps(url: str, tmp_path: Path) -> None:
    """The message of the command is written by the agent, and readers see where it was taken."""
    run_id = (await ask(url, "report", background=True))["id"]
    run = f"{url}/v1/chat/completions/{run_id}"
    async with asyncio.timeout(TIMEOUT_S):
        while "a page" not in text_of(await send("GET", run)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await curl("input", url, tmp_path, run_id))["inputs"] == ["input-1"]
    headers = {"Authorization": f"Bearer {ANN}"}
    async with aiohttp.ClientSession() as session, session.get(f"{run}?stream=true", headers=headers) as response:
        messages = decode(await response.read())
    taken = [name for name, _ in messages].index("input_applied")
    assert "a page about prices. " in texts(messages[taken:])
    assert "about prices" not in "".join(texts(messages[:taken]))
