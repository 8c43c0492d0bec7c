"""The README and the guides: their code blocks and links, and how to run a command as a reader does."""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.helpers import TIMEOUT_S, decode
from tests.processes import ROOT, Process

ADDRESS: Final = "http://127.0.0.1:8000"
START_S: Final = 3 * TIMEOUT_S
FREE_PORT: Final = {"AGENTSTREAM_PORT": "0"}
PYTHON: Final = shlex.quote(sys.executable)

# The languages of the blocks that a reader runs. All other blocks show output, formats or files.
RUN_BY_READERS: Final = {"sh", "python", "js", "html"}

_BLOCK: Final = re.compile(
    r"(?m)^(?:<!-- test: (?P<mark>\w+) -->\n)?^```(?P<language>\w*)\n(?P<text>(?:(?!```).*\n)*)```$"
)
_LINK: Final = re.compile(r"(?:\]\(|<img src=\")(?!\w+:)([^)\"#]*)(?:#([^)\"]*))?")
_HEADING: Final = re.compile(r"(?m)^#+ (.*)$")
_COMMAND: Final = re.compile(
    r"(?:\.venv/bin/)?\bagentstream (?=up|frontend|worker|chat|ps|tail|answer|cancel|doctor|config|--help)"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block. ``mark`` names the test that runs it, "" if it has none."""

    mark: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """The first line, by which an exception names the block."""
        return self.text.partition("\n")[0]


class Document:
    """A Markdown file of this repository."""

    def __init__(self, path: str) -> None:
        """Read the file at ``path``, relative to the repository."""
        self.path = path
        self.folder = (ROOT / path).parent
        self.text = (ROOT / path).read_text(encoding="utf-8")

    @property
    def all_blocks(self) -> list[Block]:
        """Every code block, in order."""
        return [Block(match["mark"] or "", match["language"], match["text"]) for match in _BLOCK.finditer(self.text)]

    def blocks(self, mark: str) -> list[str]:
        """Return the text of the blocks that follow ``<!-- test: mark -->``; fails if there is none."""
        found = [block.text for block in self.all_blocks if block.mark == mark]
        assert found, f"{self.path} has no block marked {mark!r}"
        return found

    def section(self, heading: str) -> str:
        """Return the text from a heading of level 2 to the next one; fails if there is no such heading."""
        _, found, after = self.text.partition(f"\n## {heading}\n")
        assert found, f"{self.path} has no section {heading!r}"
        return after.partition("\n## ")[0]

    def links(self) -> list[tuple[str, str]]:
        """Return (path, fragment) of each relative link outside code blocks, each once."""
        prose = _BLOCK.sub("", self.text)
        return sorted({(match[1], match[2] or "") for match in _LINK.finditer(prose)})

    def anchors(self) -> set[str]:
        """Return the fragments of the headings, as GitHub makes them."""
        prose = _BLOCK.sub("", self.text)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose)}


def broken_links(document: Document) -> list[str]:
    """Return the relative links of a document that lead to no file, or to no heading of a Markdown file."""
    broken = []
    for path, fragment in document.links():
        target = (document.folder / path).resolve() if path else ROOT / document.path
        there = target.exists()
        if there and fragment and target.suffix == ".md":
            there = fragment in Document(target.relative_to(ROOT).as_posix()).anchors()
        if not there:
            broken.append(f"{path}#{fragment}" if fragment else path)
    return broken


def as_run_here(command: str, url: str = ADDRESS) -> str:
    """Return a command or program with the real address, and with this interpreter for the installed script."""
    return _COMMAND.sub(lambda _: f"{PYTHON} -m agentstream ", command.strip().replace(ADDRESS, url))


def environment(**settings: str) -> dict[str, str]:
    """Return the caller's environment with these settings and no others of agentstream."""
    ours = ("AGENTSTREAM_", "OPENAI_", "OTEL_", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **settings}


async def shell(command: str, folder: Path, **settings: str) -> Process:
    """Start a command as a reader does, in ``folder``."""
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
    """Return what a command prints; fails unless it exits with 0."""
    process = await shell(command, folder, **settings)
    code = await process.ended(START_S)
    assert code == 0, process.output
    return process.output


async def interrupt(process: Process) -> None:
    """Press ctrl-C and wait until all its processes have ended."""
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGINT)
    await process.ended(START_S)


async def terminate(process: Process) -> None:
    """Send SIGTERM to a command and to all that it has started in the background; wait until all have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    await process.ended(START_S)


@contextlib.asynccontextmanager
async def serving(command: str, folder: Path, **settings: str) -> AsyncIterator[Process]:
    """Run a command that starts ``agentstream up``, on a free port. Yields when it serves, and ends it afterwards."""
    process = await shell(as_run_here(command), folder, **FREE_PORT, **settings)
    try:
        await process.until(r"serving +http://\S+", START_S)
        yield process
    finally:
        await interrupt(process)


def url_of(up: Process) -> str:
    """Return the address that ``agentstream up`` has printed."""
    match = re.search(r"serving +(http://\S+)", up.output)
    assert match is not None
    return match[1]


def user(text: str) -> dict[str, Any]:
    """Return a message of the user."""
    return {"role": "user", "content": text}


async def answer(url: str, model: str, *messages: dict[str, Any]) -> list[tuple[str | None, Any]]:
    """Return a streamed answer as (event name or None, data) of each frame."""
    body = {"model": model, "stream": True, "messages": list(messages)}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        return decode(await response.read())
