"""Any program as an agent, by JSON lines.

In a module of your own::

    from agentstream.adapters.command import CommandAgent

    agent = CommandAgent("node", "my_agent.mjs")  # AGENTSTREAM_AGENT=my_module:agent

The program is started for each run. It reads one line on standard input, then its end::

    {"version": 1, "run_id": "chatcmpl-...", "request": {<the chat completion request>}}

and writes lines to standard output, each flushed, at most 1 MiB::

    {"type": "text", "text": "It is "}                        a piece of the answer
    {"type": "tool_call_start", "tool": ..., ...}             an event: its type, and beside it its fields
    {"type": "error", "message": "..."}                       it has failed; nothing may follow
    {"type": "result", "content": "", "finish_reason": "stop", "usage": {...}}   it is done; nothing may follow

``content`` is the answer if no text was written; all fields of a result may be left out. The program must end with
its result and exit with 0: anything else is a failed run. What it writes to standard error goes to the worker's log.
Where traces are on, its environment holds their context: ``TRACEPARENT`` (and ``TRACESTATE``), as W3C's header has it.
A cancelled run, or one that is out of time, gets SIGTERM, and SIGKILL 2 s later, its child processes too. Newer
versions of this protocol only add types and fields; ``version`` changes if that is not enough.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.errors import AgentError, InvalidAgentOutput
from agentstream.processes.launcher import die_with_parent
from agentstream.protocol.events import MAX_EVENT_BYTES
from agentstream.protocol.openai import Usage
from agentstream.telemetry import tracing

PROTOCOL_VERSION: Final = 1
TERM_TIMEOUT_S: Final = 2.0  # from SIGTERM to SIGKILL; less than a worker gives a cancelled agent
# From the program's end to that of its output, which a process it left behind may hold open.
EOF_TIMEOUT_S: Final = 1.0
# Of standard error: a program that shouts must not fill the log, nor a line memory.
MAX_LOG_LINES: Final = 200
MAX_LOG_CHARS: Final = 1000
_SHOWN_BYTES: Final = 200  # of a line that is not understood
_LINE_BYTES: Final = MAX_EVENT_BYTES

log = logging.getLogger(__name__)


class CommandAgent:
    """An agent: ``await agent(run)`` runs the program once, as a process group of its own."""

    def __init__(self, program: str, *arguments: str) -> None:
        """Take the program, looked for on PATH, and its arguments. Raises FileNotFoundError if it is not there."""
        found = shutil.which(program)
        if found is None:
            message = f"no program {program!r} to run as an agent: not on PATH, or not executable"
            raise FileNotFoundError(message)
        self._command = [os.path.abspath(found), *arguments]  # noqa: PTH100 -- a link is started by its own name

    async def __call__(self, run: Run) -> AgentResult:
        """Run the program; raises AgentError if it fails, says so, or breaks the protocol."""
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(*self._command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LINE_BYTES,
            env=_environment(),
        )
        session = _Session(run, process)
        try:
            async with asyncio.TaskGroup() as group:
                for part in (session.write_request(), session.log_stderr(), session.kill_remaining_processes()):
                    group.create_task(part, name=f"command {run.id}")
                await session.read_lines()
        except BaseExceptionGroup as failures:  # one reason is enough, and the worker knows it by its class
            raise failures.exceptions[0] from failures
        finally:
            await _end(process)
        return session.conclude()


class _Session:
    """One run of the program."""

    def __init__(self, run: Run, process: asyncio.subprocess.Process) -> None:
        self._run = run
        self._process = process
        self._last_error_line = ""
        self._tool_results: list[ToolResult] = []
        self._result: dict[str, Any] | None = None
        self._failure: str | None = None
        if process.stdin is None or process.stdout is None or process.stderr is None:
            message = "the program was started without pipes"
            raise AgentError(message)
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr

    async def write_request(self) -> None:
        """Give the program its line; one that does not read it has its reasons."""
        request = self._run.request.model_dump(exclude_unset=True)
        line = orjson.dumps({"version": PROTOCOL_VERSION, "run_id": self._run.id, "request": request})
        with contextlib.suppress(ConnectionError):
            self._stdin.write(line + b"\n")
            await self._stdin.drain()
        self._stdin.close()
        with contextlib.suppress(ConnectionError):
            await self._stdin.wait_closed()

    async def log_stderr(self) -> None:
        """Log standard error, bounded in lines and in their length; keep the last line."""
        lines = 0
        async for chunk in _lines(self._stderr):
            text = chunk.decode(errors="replace").strip()[:MAX_LOG_CHARS]
            if text:
                self._last_error_line = text
                lines += 1
                if lines <= MAX_LOG_LINES:
                    log.info("%s", text)
        if lines > MAX_LOG_LINES:
            log.warning("%d more lines of standard error", lines - MAX_LOG_LINES)

    async def read_lines(self) -> None:
        """Take what the program says, at the pace at which it can be passed on."""
        async for line in _lines(self._stdout):
            if len(line) >= _LINE_BYTES:
                message = f"the program wrote a line over {_LINE_BYTES} bytes"
                raise InvalidAgentOutput(message)
            if line.strip():
                self._handle_line(line)
                await self._run.drain()

    async def kill_remaining_processes(self) -> None:
        """End the processes that outlive the program: they may hold its output open."""
        while self._process.returncode is None:  # noqa: ASYNC110 -- wait() may wait for the end of the output, too
            await asyncio.sleep(EOF_TIMEOUT_S / 10)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EOF_TIMEOUT_S):
                while not (self._stdout.at_eof() and self._stderr.at_eof()):  # noqa: ASYNC110 -- tells its reader alone
                    await asyncio.sleep(EOF_TIMEOUT_S / 10)
        _signal_group(self._process, signal.SIGKILL)

    def _handle_line(self, line: bytes) -> None:
        shown = line[:_SHOWN_BYTES].decode(errors="replace").strip()
        if self._result is not None or self._failure is not None:
            message = f"the program wrote on after its end: {shown}"
            raise InvalidAgentOutput(message)
        try:
            fields = orjson.loads(line)
            kind = fields.pop("type")
        except (ValueError, AttributeError, KeyError, TypeError) as exc:
            message = f"the program wrote what is no JSON object with a type: {shown}"
            raise InvalidAgentOutput(message) from exc
        if kind == "text":
            self._run.write(fields.get("text"))
        elif kind == "result":
            self._result = fields
        elif kind == "error":
            self._failure = str(fields.get("message") or "the program gave no reason")
        else:
            self._run.emit(kind, fields)
            if kind == "tool_call_end":
                self._tool_results.append(_tool_result(fields))

    def conclude(self) -> AgentResult:
        """Return the result; raises AgentError if there is none, or the program failed."""
        code = self._process.returncode
        if self._failure is not None:
            raise AgentError(self._failure)
        if code:
            ending = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            raise AgentError(f"the program {ending}: {self._last_error_line}".rstrip(": "))
        if self._result is None:
            message = "the program ended without a result line"
            raise AgentError(message)
        content, usage = self._result.get("content", ""), self._result.get("usage")
        try:
            metadata = Usage.model_validate(usage).model_dump() if usage else {}
        except ValueError as exc:
            message = f"the program's usage is unusable: {usage!r:.200}"
            raise InvalidAgentOutput(message) from exc
        return AgentResult(content, self._tool_results, metadata, self._result.get("finish_reason", "stop"))


def _environment() -> dict[str, str] | None:
    """Return ours and, inside a trace, its context as OpenTelemetry names it there; None if ours will do."""
    carrier = {name.upper(): value for name, value in tracing.carrier().items()}
    return os.environ | carrier if carrier else None


def _tool_result(fields: dict[str, Any]) -> ToolResult:
    latency_s = fields.get("latency")
    return ToolResult(
        str(fields.get("tool", "")),
        str(fields.get("result", "")),
        bool(fields.get("success", True)),
        latency_s if isinstance(latency_s, int | float) else 0.0,
    )


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines; one over the stream's limit comes in pieces, the first as long as the limit."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            line = exc.partial
        except asyncio.LimitOverrunError as exc:
            line = await stream.read(max(exc.consumed, 1))
        if not line:
            return
        yield line


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the program's process group, what it left behind included; SIGKILL comes even if the wait is broken off."""
    try:
        if process.returncode is None:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), TERM_TIMEOUT_S)
    finally:
        _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS says so of zombies, too
        os.killpg(process.pid, number)
