"""The guide on clients: its commands and programs are run as they stand, against the demo."""

import json
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.browser.chromium import NAMES, Chromium, Tab, find_chromium
from tests.clients.suite import INSTALLED
from tests.documents import PYTHON, Document, answer, as_run_here, output, serving, url_of, user
from tests.helpers import decode, texts

CLIENTS = Document("deploy/guides/clients.md")
NODE = INSTALLED / "node"
# Under which names `make clients` installs the packages that the programs import.
PACKAGES = {"openai": "openai", "ai": "ai-7", "@ai-sdk/openai-compatible": "ai-sdk-openai-compatible-7"}

# Tests that share a front end share its event loop too.
one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of the demo."""
    async with serving("agentstream up", tmp_path_factory.mktemp("up")) as process:
        yield url_of(process)


async def curl(mark: str, url: str, folder: Path, **values: str) -> str:
    """Return what the curl command of the guide prints, with these values for the words in capitals."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH")
    (command,) = CLIENTS.blocks(mark)
    for name, value in values.items():
        command = re.sub(rf"\b{name}\b", value, command)
    return await output(re.sub(r"^curl ", "curl -sS ", as_run_here(command, url)), folder)


async def python(mark: str, url: str, folder: Path) -> str:
    """Return what the Python program of the guide prints."""
    (program,) = CLIENTS.blocks(mark)
    (folder / "sample.py").write_text(as_run_here(program, url), encoding="utf-8")
    return await output(f"{PYTHON} sample.py", folder)


async def background_run(url: str, folder: Path) -> str:
    """Start the background run of the guide, and return its id."""
    queued = json.loads(await curl("background", url, folder))
    assert queued["status"] == "queued"
    run_id: str = queued["id"]
    return run_id


# curl


@one_loop
async def test_curl_shows_every_frame(url: str, tmp_path: Path) -> None:
    """The stream is what the guide says: the role, events by name, results, words, the final chunk and [DONE]."""
    messages = decode((await curl("curl", url, tmp_path)).encode())
    names = [name for name, _ in messages if name]
    assert messages[0][1]["choices"][0]["delta"] == {"role": "assistant"}
    assert names[:8] == [
        "agent_turn_start",
        "inference_start",
        "inference_end",
        "tool_call_start",
        "tool_call_start",
        "tool_call_end",
        "tool_call_end",
        "inference_start",
    ]
    assert {data["tool"] for name, data in messages if name == "tool_call_start"} == {"calculator", "current_time"}
    results = next(index for index, (name, _) in enumerate(messages) if name == "tool_results")
    assert [result["success"] for result in messages[results][1]["results"]] == [True, True]
    assert texts(messages[:results]) == []
    words = texts(messages[results:])
    assert len(words) > 5
    assert "17*23 = 391." in "".join(words)
    final = messages[-2][1]
    assert final["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert final["usage"]["total_tokens"] > 0
    assert messages[-1] == (None, "[DONE]")


@one_loop
async def test_curl_gets_one_object(url: str, tmp_path: Path) -> None:
    """Without streaming the answer is one completion."""
    completion = json.loads(await curl("whole", url, tmp_path))
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["content"] == "17*23 = 391."


@one_loop
async def test_the_format_of_events_is_chosen(url: str, tmp_path: Path) -> None:
    """With the format of the command, events come without a name, in the field that the table names."""
    messages = decode((await curl("formats", url, tmp_path)).encode())
    assert not [name for name, _ in messages if name]
    events = [data["agent_event"]["type"] for _, data in messages if "agent_event" in data]
    assert {"tool_call_start", "tool_results"} <= set(events)


@one_loop
async def test_more_events_are_asked_for(url: str, tmp_path: Path) -> None:
    """With the types of the command, the stream has an event that it does not have without them."""
    asked, plain = [decode((await curl(name, url, tmp_path)).encode()) for name in ("event_types", "curl")]
    assert "agent_turn_end" in [name for name, _ in asked]
    assert "agent_turn_end" not in [name for name, _ in plain]
    assert " agent_turn_end\n" in await python("openai_event_types", url, tmp_path)


@one_loop
async def test_a_run_is_resumed_by_its_id(url: str, tmp_path: Path) -> None:
    """After a cursor the command gets the rest of the stream, which ends as the whole does."""
    run_id = await background_run(url, tmp_path)
    whole = await curl("resume", url, tmp_path, RUN=run_id, LAST="0-0")
    assert texts(decode(whole.encode())) == ["1", " 2", " 3", " 4", " 5"]
    last = re.findall(r"(?m)^id: (.*)$", whole)[-3]
    rest = await curl("resume", url, tmp_path, RUN=run_id, LAST=last)
    assert rest
    assert whole.endswith(rest)
    assert whole != rest


@one_loop
async def test_a_background_run_is_retrieved(url: str, tmp_path: Path) -> None:
    """The run is answered at once, and found by its id until it has completed."""
    run_id = await background_run(url, tmp_path)
    await curl("resume", url, tmp_path, RUN=run_id, LAST="0-0")  # returns at the end of the run
    completion = json.loads(await curl("retrieve", url, tmp_path, RUN=run_id))
    assert completion["status"] == "completed"
    assert completion["choices"][0]["message"]["content"] == "1 2 3 4 5"


@one_loop
async def test_a_run_is_cancelled_by_a_request(url: str, tmp_path: Path) -> None:
    """The command returns when the run has ended, with its status."""
    body = {"model": "m", "background": True, "messages": [user("count to 5000")]}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=body) as response:
        run_id = (await response.json())["id"]
    assert json.loads(await curl("cancel", url, tmp_path, RUN=run_id))["status"] == "cancelled"


@one_loop
async def test_a_repeated_request_gets_the_same_run(url: str, tmp_path: Path) -> None:
    """The command sent twice runs the agent once, and the key with another body is refused."""
    first, second = [json.loads(await curl("idempotency", url, tmp_path)) for _ in range(2)]
    assert first["id"] == second["id"]
    headers = {"Idempotency-Key": "order-17"}
    body = {"model": "agentstream", "messages": [user("another question")]}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 409


@one_loop
async def test_the_completions_api_answers(url: str, tmp_path: Path) -> None:
    """The older API returns one text."""
    assert json.loads(await curl("completions", url, tmp_path))["choices"][0]["text"] == "1 2 3 4 5"


# Python


@one_loop
async def test_the_openai_client_shows_events(url: str, tmp_path: Path) -> None:
    """The program prints each event and the answer."""
    shown = await python("openai_events", url, tmp_path)
    assert "tool_call_start calculator\n" in shown
    assert "17*23 = 391." in shown


@one_loop
async def test_the_openai_client_runs_its_own_tool(url: str, tmp_path: Path) -> None:
    """The program is asked to call its tool, and gets an answer made of the result."""
    assert await python("openai_tools", url, tmp_path) == "called get_weather\nThe tool get_weather returned: sunny\n"


@one_loop
async def test_httpx_streams(url: str, tmp_path: Path) -> None:
    """The program prints the answer."""
    assert await python("httpx", url, tmp_path) == "1 2 3 4 5"


@one_loop
async def test_the_responses_api_continues_a_conversation(url: str, tmp_path: Path) -> None:
    """The program gets two responses, the second as a stream."""
    assert await python("responses", url, tmp_path) == "1 2 3\n17*23 = 391."


# JavaScript


@one_loop
@pytest.mark.parametrize("mark", ["openai_node", "ai_sdk"])
async def test_a_program_in_javascript_prints_the_answer(mark: str, url: str, tmp_path: Path) -> None:
    """The program prints the answer, with the package that it imports."""
    if not (NODE / ".packages").is_file():
        pytest.skip("the stock clients are not installed: run make clients")
    for name, package in PACKAGES.items():
        link = tmp_path / "node_modules" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(NODE / "node_modules" / package)
    (program,) = CLIENTS.blocks(mark)
    (tmp_path / "sample.mjs").write_text(as_run_here(program, url), encoding="utf-8")
    assert await output(f"{shlex.quote(str(NODE / 'bin/node'))} sample.mjs", tmp_path) == "1 2 3 4 5"


@pytest_asyncio.fixture(loop_scope="module")
async def tab(url: str, tmp_path: Path) -> AsyncIterator[Tab]:
    """A tab of Chromium with a page of the front end's own origin."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"NO BROWSER: none of {', '.join(NAMES)} is in PATH; on Debian `make browser` installs chromium")
    async with Chromium.started(executable, tmp_path / "profile") as browser:
        yield await browser.tab(url)


@one_loop
async def test_a_page_reads_a_stream_with_fetch(tab: Tab, url: str) -> None:
    """The program collects the answer."""
    (program,) = CLIENTS.blocks("fetch")
    assert await tab.evaluate(f"(async () => {{ {as_run_here(program, url)}\nreturn answer; }})()") == "1 2 3 4 5"


@one_loop
async def test_a_page_shows_a_run_with_event_source(tab: Tab, url: str) -> None:
    """The function shows a run that exists, and closes its connection at the end."""
    run_id = (await answer(url, "agentstream", user("count to 5")))[0][1]["id"]
    (program,) = CLIENTS.blocks("event_source")
    shown = await tab.evaluate(
        f"""new Promise((resolve) => {{
            let shown = "";
            class EventSource extends window.EventSource {{ close() {{ super.close(); resolve(shown); }} }}
            {as_run_here(program, url)}
            show({json.dumps(run_id)}, (text) => {{ shown += text; }});
        }})"""
    )
    assert shown == "1 2 3 4 5"


@one_loop
async def test_the_pages_of_an_origin_may_call(tmp_path: Path) -> None:
    """With the setting that the guide names, a page of its origin may send a key, and a page of another may not."""
    assert "AGENTSTREAM_CORS_ORIGINS" in CLIENTS.section("Browsers")
    (origin,) = re.findall(r"`(https://[^`]*)`", CLIENTS.section("Browsers"))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with (
        serving("agentstream up", tmp_path, AGENTSTREAM_CORS_ORIGINS=origin) as process,
        aiohttp.ClientSession() as session,
    ):

        async def allowed(origin: str) -> str | None:
            path = f"{url_of(process)}/v1/chat/completions"
            async with session.options(path, headers={**asked, "Origin": origin}) as response:
                return response.headers.get("Access-Control-Allow-Origin")

        assert await allowed(origin) == origin
        assert await allowed("https://other.example.com") is None
