"""The README keeps its word: its commands are run as they stand, its settings and links are looked up."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from agentstream.__main__ import main
from agentstream.config import Settings, env_name
from tests.helpers import TIMEOUT_S, decode, parse_data, texts
from tests.processes import ROOT, Process

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
COMMAND = ".venv/bin/agentstream"
START_S = 3 * TIMEOUT_S

# All tests that ask the README's `up` share it, and so its event loop.
one_loop = pytest.mark.asyncio(loop_scope="module")


def blocks(mark: str) -> list[str]:
    """Return the code blocks that follow ``<!-- test: mark -->``, in order."""
    found = re.findall(rf"<!-- test: {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block marked {mark!r}"
    return found


def as_run_here(command: str, url: str) -> str:
    """Return a command with the real address, and this interpreter for the installed script."""
    return command.strip().replace(ADDRESS, url).replace(COMMAND, f"{shlex.quote(sys.executable)} -m agentstream")


def environment(**settings: str) -> dict[str, str]:
    """Return the caller's environment without settings of its own."""
    ours = ("AGENTSTREAM_", "OPENAI_", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **settings}


async def shell(command: str, folder: Path, **settings: str) -> Process:
    """Begin to run a command as a reader of the README would."""
    return Process(
        await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command,
            cwd=folder,
            env=environment(**settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    )


async def output(command: str, folder: Path, **settings: str) -> str:
    """Return what a command prints; it must succeed."""
    process = await shell(command, folder, **settings)
    code = await process.ended(START_S)
    assert code == 0, process.output
    return process.output


async def interrupt(process: Process) -> None:
    """Press ctrl-C and wait until everything has ended."""
    os.killpg(process.pid, signal.SIGINT)
    await process.ended(START_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """What `make run` starts, on a free port."""
    process = await shell(
        f"{shlex.quote(sys.executable)} -m agentstream up", tmp_path_factory.mktemp("up"), **FREE_PORT
    )
    try:
        await process.until(r"serving +http://\S+", START_S)
        yield process
    finally:
        await interrupt(process)


FREE_PORT = {"AGENTSTREAM_PORT": "0"}


def url_of(up: Process) -> str:
    """Return the printed address."""
    match = re.search(r"serving +(http://\S+)", up.output)
    assert match is not None
    return match[1]


def without_clock(text: str) -> str:
    """Return an answer without what changes from second to second."""
    return re.sub(r"\d\d:\d\d:\d\d|\d+ \w+ 20\d\d|[A-Z][a-z]+day", "…", text)


# Run it


@one_loop
async def test_it_prints_what_is_shown(up: Process) -> None:
    """Each line of the sample output is printed, but for the numbers."""
    sample = re.search(r"```\n(broker .*?)```", README, re.DOTALL)
    assert sample is not None
    for line in sample[1].splitlines():
        pattern = re.sub(r"\d+", r"\\d+", re.escape(line)).replace("…", r"\S+")
        await up.until(rf"(?m)^{pattern}$")


@one_loop
async def test_chat_prints_the_answer(up: Process, tmp_path: Path) -> None:
    """The first command a newcomer types prints what the tools do and the answer."""
    (command,) = blocks("chat")
    # The address is not in the command but its default.
    said = await output(f"{as_run_here(command, '')} --url {url_of(up)}", tmp_path)
    assert "calculator -> 391" in said
    assert "17*23 = 391." in said
    assert re.search(r"The time in Tokyo: .*\d\d:\d\d:\d\d", said)


async def by_client(command: str) -> bytes:
    """Send what a curl command would, with another HTTP client."""
    words = shlex.split(command)
    assert words[:2] == ["curl", "-N"]
    headers = dict(words[index + 1].split(": ", 1) for index, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1]
    async with aiohttp.ClientSession() as session, session.post(words[2], data=body, headers=headers) as response:
        assert response.status == 200
        return await response.read()


def assert_stream_is_as_told(stream: bytes) -> None:
    """Check a stream against the README's sentence about it."""
    messages = decode(stream)
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
async def test_curl_shows_every_frame(up: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stream is what the text below the command says: events by name, results, words, usage and [DONE]."""
    (command,) = blocks("curl")
    command = as_run_here(command, url_of(up))
    assert_stream_is_as_told(await by_client(command))
    if shutil.which("curl"):
        printed = await output(command.replace("curl -N", "curl -sS -N", 1), tmp_path)  # without a progress meter
        assert_stream_is_as_told(printed.encode())
    else:
        with capsys.disabled():
            print("\ncurl is not on PATH: its request was sent by another HTTP client only")  # noqa: T201 -- for whoever runs the tests


@one_loop
async def test_openai_client_prints_the_same(up: Process, tmp_path: Path) -> None:
    """The Python sample prints the answer that chat prints, and not streamed it is the same text."""
    (program,) = blocks("openai")
    (tmp_path / "sample.py").write_text(as_run_here(program, url_of(up)))
    said = await output(f"{shlex.quote(sys.executable)} sample.py", tmp_path)
    (chat,) = blocks("chat")
    chat_said = await output(f"{as_run_here(chat, '')} --url {url_of(up)} 2>/dev/null", tmp_path)
    assert "17*23 = 391." in said
    assert without_clock(said) == without_clock(chat_said)
    question = json.loads(re.findall(r"'(\{.*\})'", blocks("curl")[0], re.DOTALL)[0])
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url_of(up)}/v1/chat/completions", json={**question, "stream": False}) as response,
    ):
        whole = (await response.json())["choices"][0]["message"]["content"]
    assert without_clock(f"{whole}\n") == without_clock(said)


# Watch nothing get lost


async def until_words(path: Path, count: int) -> None:
    """Return when a stream written to a file has that many content chunks."""

    def words() -> int:
        return path.read_bytes().count(b'"content"') if path.exists() else 0

    async with asyncio.timeout(START_S):
        while words() < count:  # noqa: ASYNC110 -- another process writes it
            await asyncio.sleep(0.02)


async def write_by_client(command: str, path: Path) -> None:
    """Do what a curl command with its output in a file does."""
    words = shlex.split(command)
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(words[2], data=words[words.index("-d") + 1], headers=headers) as response,
    ):
        with path.open("wb") as file:
            async for chunk in response.content.iter_any():
                file.write(chunk)
                file.flush()


async def get(url: str) -> bytes:
    """Return what is at a URL."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.read()


def frames(stream: bytes) -> list[bytes]:
    """Return a stream's whole frames, without keepalives."""
    return [frame.replace(b": keepalive\n", b"") for frame in stream.split(b"\n\n")[:-1]]


@one_loop
async def test_a_cut_background_run_is_resumed(up: Process, tmp_path: Path) -> None:
    """Cut halfway and resumed behind the last id, the two pieces are the whole, byte for byte."""
    (start,), (resume,) = blocks("background"), blocks("resume")
    first = tmp_path / "first.txt"
    start = as_run_here(start, url_of(up))
    if shutil.which("curl"):
        process = await shell(start, tmp_path)
        await until_words(first, 40)
        os.killpg(process.pid, signal.SIGINT)
        await process.ended(START_S)
    else:
        task = asyncio.create_task(write_by_client(start, first))
        await until_words(first, 40)
        task.cancel()
    resume = as_run_here(resume, url_of(up))
    variables, _, curl = resume.rpartition("\n")
    run, last = (await output(f'{variables}\necho "$RUN $LAST"', tmp_path)).split()
    url = shlex.split(curl)[2].replace("$RUN", run).replace("$LAST", last)
    second = frames(await get(url))
    whole = frames(await get(url.partition("&")[0]))
    begun = frames(first.read_bytes())
    assert 40 < len(begun) < len(whole)
    assert begun + second == whole
    if shutil.which("curl"):
        await output(resume.replace("curl -N", "curl -sS -N"), tmp_path)
        assert frames((tmp_path / "second.txt").read_bytes()) == second


@one_loop
async def test_a_killed_worker_leaves_no_stream_hanging(tmp_path: Path) -> None:
    """The workers killed while one streams, the stream ends within the lease with an error frame that says so."""
    (start,), (kill,) = blocks("background"), blocks("kill")
    up = await shell(f"{shlex.quote(sys.executable)} -m agentstream up", tmp_path, AGENTSTREAM_LEASE_S="2", **FREE_PORT)
    try:
        await up.until(r"serving +http://\S+", START_S)
        pids = re.findall(r"worker \d +pid (\d+)", up.output)
        stream = tmp_path / "first.txt"
        task = asyncio.create_task(write_by_client(as_run_here(start, url_of(up)), stream))
        await until_words(stream, 20)
        numbers = iter(pids)
        await output(re.sub(r"\b4\d{3}\b", lambda _: next(numbers), kill), tmp_path)
        async with asyncio.timeout(START_S):
            await task
    finally:
        await interrupt(up)
    messages = decode(stream.read_bytes())
    assert messages[-1] == (None, "[DONE]")
    assert messages[-2][1]["agent_error"]["code"] == "worker_lost"
    words = "".join(texts(messages[:-2])).split()
    assert words == [str(number) for number in range(1, len(words) + 1)]


# Bring your own agent


@one_loop
async def test_an_agent_of_ones_own_is_served(tmp_path: Path) -> None:
    """The sample agent, started with the sample command from its folder, streams its words as it writes them."""
    program, command = blocks("agent")
    name = re.match(r"# (\w+\.py)\n", program)
    assert name is not None
    (tmp_path / name[1]).write_text(program)
    process = await shell(as_run_here(command, ""), tmp_path, **FREE_PORT)
    try:
        await process.until(r"serving +http://\S+", START_S)
        body = {"model": "any", "stream": True, "messages": [{"role": "user", "content": "be heard, please"}]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url_of(process)}/v1/chat/completions", json=body) as response,
        ):
            messages = decode(await response.read())
    finally:
        await interrupt(process)
    assert "\nstopping\n" in process.output
    assert texts(messages) == ["BE ", "HEARD, ", "PLEASE "]
    assert [name for name, _ in messages if name] == ["tool_call_start", "tool_call_end", "tool_results"]
    assert parse_data(messages[1][1]["arguments"]) == {"text": "be heard, please"}


# What it states


def test_every_marked_block_is_run() -> None:
    """No block is marked as tested without a test that knows it."""
    assert sorted(re.findall(r"<!-- test: (\w+) -->", README)) == [
        "agent", "agent", "background", "chat", "curl", "kill", "openai", "resume",
    ]  # fmt: skip


def settings_table() -> list[tuple[str, str | None]]:
    """Return (variable, default as printed, None if told in words) for each variable of the settings table."""
    section = README.partition("## Settings")[2].partition("\n## ")[0]
    rows = []
    for line in section.splitlines():
        if line.startswith("| `"):
            names, printed = (cell.strip().split(", ") for cell in line.split("|")[1:3])
            literal = all(re.fullmatch(r"`[^`]*`", default) for default in printed)
            defaults = [default.strip("`") for default in printed] if literal else [None] * len(names)
            rows += list(zip([name.strip("`") for name in names], defaults, strict=True))
    return rows


@pytest.mark.parametrize(("variable", "default"), settings_table())
def test_a_setting_of_the_table_is_one(variable: str, default: str | None) -> None:
    """Each variable of the table is a setting, with the default the table gives, and has a flag."""
    field = {env_name(field): field for field in Settings.model_fields}[variable]
    actual = Settings.model_fields[field].default
    if default is None:  # told in words: what is done without the setting
        assert actual in {None, ()}
    else:
        assert default == (",".join(actual) if isinstance(actual, tuple) else str(actual).lower())
    flags = {option for parameter in main.commands["up"].params for option in parameter.opts}
    assert f"--{field.replace('_', '-')}" in flags


def test_the_table_is_found() -> None:
    """The settings above were really read from the table."""
    variables = [variable for variable, _ in settings_table()]
    assert len(variables) > 15
    assert {"REDIS_URL", "AGENTSTREAM_PORT", "OPENAI_API_KEY"} <= set(variables)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!\w+:)([^)#]+)", README))))
def test_links_lead_somewhere(target: str) -> None:
    """Each relative link is a file of this repository."""
    assert (ROOT / target).exists()


def test_the_map_is_of_this_place() -> None:
    """Each path of the folder map exists, and no part of the service is missing from it but single modules."""
    section = README.partition("## Where things are")[2].partition("\n## ")[0].partition("```")[2].partition("```")[0]
    paths = re.findall(r"(?m)(?:^|\s{2,})(service/[\w./]+|tests|deploy)(?=\s)", section)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = {f"service/agentstream/{path.parent.name}" for path in (ROOT / "service/agentstream").glob("*/__init__.py")}
    assert rooms <= set(paths)
