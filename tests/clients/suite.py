"""The client suite. It runs each stock client in its own environment against a real front end and worker."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.clients import scenarios
from tests.clients.scenarios import AFTER, ANSWER_JSON, BEFORE, FAILURE, SILENCE_S, TEXT, USAGE, WAITS
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Process

HERE: Final = Path(__file__).parent
INSTALLED: Final = ROOT / ".clients"
# Importing a client needs up to 8 s of CPU time. After that, it mostly waits.
STARTING_AT_ONCE: Final = 2
DRIVER_S: Final = SILENCE_S + 4 * TIMEOUT_S
NO_ENVIRONMENT: Final = ""
# The lines of a driver's report. Clients may print other lines.
REPORT_PREFIXES: Final = ('{"version"', '{"mode"', '{"done"')

WITH_TOOL: Final = f"{BEFORE}\n\n{AFTER}"
TEXTS: Final = {
    "loop": TEXT,
    "safe": TEXT,
    "helper": TEXT,
    "whole": TEXT,
    "tools": WITH_TOOL,
    "waits": f"{BEFORE}\n\n{WAITS}",
    "error": f"{BEFORE}\n\nSorry, an error occurred: {FAILURE}",
    "silent": WITH_TOOL,
    "client tools": "It is sunny in Paris.",
    "responses": WITH_TOOL,
    "completions": TEXT,
}
MODES: Final = (*TEXTS, "cancel")


@dataclass(frozen=True, slots=True)
class Client:
    """One release of a client. ``package`` is its name in its environment. curl comes from the machine."""

    name: str
    environment: str
    driver: str
    package: str
    structured: bool = False

    def command(self, url: str, features: Iterable[str]) -> list[str | Path]:
        """Return the command that runs its driver."""
        if self.environment == "node":
            node = INSTALLED / "node"
            # The environment links to the drivers. Node must search packages next to the link, not next to its target.
            flags = "--preserve-symlinks", "--preserve-symlinks-main"
            return [node / "bin/node", *flags, node / "drivers" / self.driver, url, self.package, *features]
        python = INSTALLED / self.environment / "bin/python" if self.environment else sys.executable
        return [python, HERE / "drivers" / self.driver, url, *features]


CLIENTS: Final = (
    Client("openai-python", "current", "openai_sdk.py", "openai"),
    Client("openai-python", "openai-2", "openai_sdk.py", "openai"),
    Client("openai-python", "openai-1.97", "openai_sdk.py", "openai"),
    Client("openai-python", "openai-1.40", "openai_sdk.py", "openai"),
    Client("openai-node", "node", "openai_sdk.mjs", "openai"),
    Client("openai-node", "node", "openai_sdk.mjs", "openai-4"),
    Client("@ai-sdk/openai-compatible, AI SDK 7", "node", "ai_sdk.mjs", "ai-sdk-openai-compatible-7"),
    Client("@ai-sdk/openai-compatible, AI SDK 6", "node", "ai_sdk.mjs", "ai-sdk-openai-compatible-6"),
    Client("@ai-sdk/openai-compatible, AI SDK 5", "node", "ai_sdk.mjs", "ai-sdk-openai-compatible-5"),
    Client("@ai-sdk/openai, AI SDK 7", "node", "ai_sdk.mjs", "ai-sdk-openai-7"),
    Client("@ai-sdk/openai, AI SDK 6", "node", "ai_sdk.mjs", "ai-sdk-openai-6"),
    Client("@ai-sdk/openai, AI SDK 5", "node", "ai_sdk.mjs", "ai-sdk-openai-5"),
    Client("langchain-openai", "current", "langchain_sdk.py", "langchain-openai"),
    Client("@langchain/openai", "node", "langchain_sdk.mjs", "@langchain/openai"),
    Client("litellm", "current", "litellm_sdk.py", "litellm"),
    Client("pydantic-ai", "current", "pydantic_ai_sdk.py", "pydantic-ai-slim"),
    Client("openai-agents", "current", "openai_agents_sdk.py", "openai-agents"),
    Client("llama-index OpenAILike", "openai-2", "llama_index_sdk.py", "llama-index-llms-openai-like"),
    Client("instructor", "openai-2", "instructor_sdk.py", "instructor", structured=True),
    Client("httpx-sse", "current", "httpx_sse_sdk.py", "httpx-sse"),
    Client("eventsource-parser", "node", "eventsource_parser_sdk.mjs", "eventsource-parser"),
    Client("curl", NO_ENVIRONMENT, "curl.py", "curl"),
)


def absent_environments() -> list[str]:
    """Return the environments that are not installed by `make clients`."""
    stamps = {client.environment: ".installed" for client in CLIENTS if client.environment} | {"node": ".packages"}
    return sorted(name for name, stamp in stamps.items() if not (INSTALLED / name / stamp).is_file())


def pinned_version(client: Client) -> str:
    """Return the pinned release of a client; "any" for a program of the machine."""
    if client.environment == NO_ENVIRONMENT:
        return "any"
    if client.environment == "node":
        wanted = json.loads((HERE / "package.json").read_text())["dependencies"][client.package]
        return str(wanted.rpartition("@")[2])
    pins = (HERE / "pins" / f"{client.environment}.txt").read_text().splitlines()
    [pin] = (line for line in pins if line.startswith(f"{client.package}=="))
    return pin.removesuffix(" \\").partition("==")[2]


@dataclass
class Report:
    """The observations of one client by mode, and the complaints about them."""

    client: Client
    version: str = ""
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    complaints: dict[str, list[str]] = field(default_factory=dict)

    def complain(self, mode: str, complaint: str) -> None:
        self.complaints.setdefault(mode, []).append(complaint)


def find_errors(client: Client, mode: str, seen: dict[str, Any]) -> list[str]:
    """Return the differences between an observation and the agent's output. Ignores the text of cancelled runs."""
    if "absent" in seen:
        return []
    if seen["raised"]:
        return [f"raised {seen['raised']}"]
    if mode == "cancel":
        return [] if seen["text"].startswith("chatcmpl-") else [f"no run id in {seen['text']!r}"]
    wrong = []
    expected = ANSWER_JSON if client.structured else TEXTS.get(mode)
    if seen["text"] != expected:
        wrong.append(f"text {seen['text']!r}, not {expected!r}")
    if mode == "loop" and seen["pieces"] < 2 and not client.structured:
        wrong.append("the text arrived in one piece")
    if seen.get("finish", "stop") not in finish_reasons(client, mode):
        wrong.append(f"finish reason {seen['finish']!r}")
    if mode == "client tools" and not client.structured and seen.get("call") != ["weather", {"city": "Paris"}]:
        wrong.append(f"tool call {seen.get('call')!r}")
    if mode != "error" and "usage" in seen:
        # The usage of a run that waits is an estimate, so only its sum is known.
        once = seen["usage"] if mode == "waits" and _adds_up(seen["usage"]) else list(USAGE.values())
        # A client that runs its tools itself sends two requests and may report the usage of both.
        right = [once, [2 * count for count in once]] if mode == "client tools" else [once]
        if seen["usage"] not in right or seen["usages"] > len(right):
            wrong.append(f"usage {seen['usage']!r}, reported {seen.get('usages', 0)} times")
    return wrong


def _adds_up(usage: list[int] | None) -> bool:
    return usage is not None and min(usage) > 0 and usage[0] + usage[1] == usage[2]


def finish_reasons(client: Client, mode: str) -> set[str]:
    """Return the allowed finish reasons. A structured answer may be a tool call."""
    return {"stop", "tool_calls"} if client.structured and mode == "client tools" else {"stop"}


async def run_suite(url: str, home: Path, clients: Iterable[Client] = CLIENTS) -> list[Report]:
    """Run the drivers of the clients concurrently against a front end whose worker plays ``scenarios``.

    ``home`` is an empty home folder, so that no client reads the user's settings.
    """
    gate = asyncio.Semaphore(STARTING_AT_ONCE)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
        features = await features_of(session, url)
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(_run_client(client, url, features, home, gate, session), name=client.name)
                for client in clients
            ]
    return [task.result() for task in running]


async def features_of(session: aiohttp.ClientSession, url: str) -> list[str]:
    """Return the features of the service beyond plain chat."""
    features = []
    for feature, path, body in (
        ("completions", "/v1/completions", {"model": "m1", "prompt": "replayed"}),
        ("responses", "/v1/responses", {"model": "m1", "input": "replayed"}),
        ("tools", "/v1/chat/completions", WITH_CLIENT_TOOL),
    ):
        async with session.post(f"{url}{path}", json=body) as response:
            if response.status == 200:
                features.append(feature)
    return features


WITH_CLIENT_TOOL: Final = {
    "model": "m1",
    "messages": [{"role": "user", "content": "weather"}],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
}


async def _run_client(
    client: Client,
    url: str,
    features: list[str],
    home: Path,
    gate: asyncio.Semaphore,
    session: aiohttp.ClientSession,
) -> Report:
    report = Report(client)
    async with AsyncExitStack() as stack:
        async with gate:
            process = await stack.enter_async_context(_driver(client, url, features, home))
            await _imported(process)
        try:
            if complaint := await _not_cancelled(session, url, await _line_of(process, "cancel")):
                report.complain("cancel", complaint)
            code = await process.ended(DRIVER_S)
            if code != 0:
                report.complain("driver", f"ended with code {code}")
        except (AssertionError, TimeoutError) as exc:
            report.complain("driver", f"hung or ended early: {exc}")
        output = process.output
    lines = [json.loads(line) for line in output.split("\n") if line.startswith(REPORT_PREFIXES)]
    report.version = next((line["version"] for line in lines if "version" in line), "unknown")
    report.seen = {line["mode"]: line for line in lines if "mode" in line}
    if {"done": len(report.seen)} not in lines:
        report.complain("driver", f"did not report all of its modes; its output:\n{output}")
    if report.version != pinned_version(client):
        report.complain(
            "driver", f"is release {report.version}, but {pinned_version(client)} is pinned: run make clients"
        )
    for mode, seen in report.seen.items():
        for complaint in find_errors(client, mode, seen):
            report.complain(mode, complaint)
    return report


@asynccontextmanager
async def _driver(client: Client, url: str, features: list[str], home: Path) -> AsyncIterator[Process]:
    """Start a driver. Stop it at the end if it still runs."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise its import downloads a price list
        "OPENAI_AGENTS_DISABLE_TRACING": "1",  # otherwise it sends traces to OpenAI
    }
    process = Process(
        await asyncio.create_subprocess_exec(
            *client.command(url, features),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    )
    try:
        yield process
    finally:
        await process.stop()


async def _imported(process: Process) -> None:
    """Wait until a driver has imported its client or has ended."""
    with suppress(AssertionError):
        await process.until('"version"', DRIVER_S)


async def _line_of(process: Process, mode: str) -> dict[str, Any] | None:
    """Wait for the report of a mode and return it; None if the driver does not have this mode."""
    match = await process.until(rf'(?m)^\{{"mode": ?"{mode}".*$|^\{{"done".*$', DRIVER_S)
    line: dict[str, Any] = json.loads(match[0])
    return line if "mode" in line else None


async def _not_cancelled(session: aiohttp.ClientSession, url: str, seen: dict[str, Any] | None) -> str | None:
    """Wait for the end of a run that its client has stopped. Return a complaint unless its status is cancelled."""
    if seen is None or not seen["text"]:
        return None
    run_id = seen["text"].partition(" ")[0]
    run = f"{url}/v1/chat/completions/{run_id}"
    try:
        async with session.get(f"{run}?stream=true") as response:
            await response.read()
    except TimeoutError:
        return f"{run_id} still ran {TIMEOUT_S} s after its client had stopped"
    async with session.get(run) as response:
        status = (await response.json()).get("status")
    return None if status == "cancelled" else f"{run_id} is {status}, not cancelled"


AGENT: Final = f"{scenarios.__name__}:play"
