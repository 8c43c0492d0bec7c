"""Runs any program as an agent. The program reads and writes JSON lines.

In your own module::

    from agentstream.adapters.command import CommandAgent

    agent = CommandAgent("node", "my_agent.mjs")  # AGENTSTREAM_AGENT=my_module:agent

The worker starts the program once for each run. The program reads one line from standard input, which is then closed,
unless the program declares that it reads more::

    {"version": 1, "run_id": "chatcmpl-...", "request": {<the chat completion request>},
     "caller": {"key_hash": "...", "request_id": "...", "headers": {"x-user-id": "..."}}, "restored": null}

It writes lines to standard output. A line has at most 1 MiB; flush after each line::

    {"type": "text", "text": "It is "}                        a piece of the answer
    {"type": "tool_call_start", "tool": ..., ...}             an event: its type and its fields
    {"type": "checkpoint", "state": ...}                      the state from which another attempt can continue
    {"type": "error", "message": "..."}                       the run has failed; this is the last line
    {"type": "result", "content": "", "finish_reason": "stop", "usage": {...}}   the result; this is the last line

All fields of ``result`` except ``type`` are optional. ``content`` is the answer if the program wrote no text. The
program must write a result and exit with code 0; otherwise the run fails. Lines on standard error go to the worker's
log.

With ``CommandAgent(..., resumable=True)`` another worker starts the program again if this worker is lost. The program
then finds in ``restored`` the state of its last checkpoint, and everything that clients have seen since; it must not
write that again::

    {"state": ..., "text": "It is ", "reasoning": "", "events": [{"type": "tool_call_start", "tool": ..., ...}],
     "tool_calls": [{"index": 0, "id": "...", "name": "...", "arguments": "..."}]}

The program gets no answer to a ``checkpoint`` line and may go on at once: the lines after it are read when the state is
stored, so clients never see text that is later than a checkpoint which was lost.

With ``CommandAgent(..., asks=True)`` standard input stays open, and the program can ask people, also several questions
at once. It reads a line for each answer, or a line with ``"timed_out": true`` if nobody answers in time::

    {"type": "interrupt", "id": "mail", "kind": "approval", "payload": {"tool": ..., "arguments": ...}}    it writes
    {"type": "answer", "id": "mail", "answer": {"approve": true}}                                          it reads

``schema`` and ``timeout_s`` are optional, as in ``run.interrupt``. A resumable program is ended while it waits. It is
started again with ``restored``, must ask again, and then reads the answer at once. Make a checkpoint before the
question. Other programs wait. With ``CommandAgent(..., takes_inputs=True)`` people can send messages to the run. The
program asks for them and reads one line, often without messages::

    {"type": "take_inputs"}                                                                                it writes
    {"type": "input", "messages": [{"role": "user", "content": "..."}]}                                    it reads

If tracing is on, the environment variables ``TRACEPARENT`` and ``TRACESTATE`` hold the trace context, in the format of
W3C's headers. If the run is cancelled or times out, the program and its child processes get SIGTERM, and SIGKILL 2 s
later. New versions of this protocol add types and fields; any other change increases ``version``.
"""

import asyncio
import codecs
import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from agentstream.adapters.program_input import ProgramInput
from agentstream.adapters.resuming import kept
from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.errors import AgentError, InvalidAgentOutput
from agentstream.processes.launcher import die_with_parent
from agentstream.protocol.events import MAX_EVENT_BYTES, TOOL_CALL_END
from agentstream.protocol.openai import Usage
from agentstream.protocol.plain_json import json_text
from agentstream.telemetry import tracing
from agentstream.telemetry.masking import mask_error

PROTOCOL_VERSION: Final = 1
ADAPTER: Final = "command"
TERM_TIMEOUT_S: Final = 2.0  # from SIGTERM to SIGKILL; shorter than the worker's cleanup time for a cancelled agent
# From the end of the program to the end of its output. A child process that still runs may keep the output open.
EOF_TIMEOUT_S: Final = 1.0
# Limits for standard error, so that a program cannot fill the log or the memory.
MAX_LOG_LINES: Final = 200
MAX_LOG_CHARS: Final = 1000
_SHOWN_CHARS: Final = 200  # an error quotes this much of an invalid line
_LINE_BYTES: Final = MAX_EVENT_BYTES

log = logging.getLogger(__name__)


class CommandAgent:
    """An agent: ``await agent(run)`` runs the program once, in its own process group."""

    def __init__(
        self, program: str, *arguments: str, resumable: bool = False, asks: bool = False, takes_inputs: bool = False
    ) -> None:
        """Find the program on PATH. Raises FileNotFoundError if it is not there or not executable.

        ``resumable`` declares that the program reads ``restored``, ``asks`` that it asks people and reads their
        answers, and ``takes_inputs`` that it takes the messages that people send to the run.
        """
        found = shutil.which(program)
        if found is None:
            message = f"the agent's program {program!r} was not found: it is not on PATH or not executable"
            raise FileNotFoundError(message)
        self.resumable = resumable
        self.takes_inputs = takes_inputs
        self._reads_on = asks or takes_inputs
        self._command = [os.path.abspath(found), *arguments]  # noqa: PTH100 -- a program may depend on its link's name

    async def __call__(self, run: Run) -> AgentResult:
        """Run the program once and return its result.

        Raises AgentError if the program fails or reports an error, and InvalidAgentOutput if it violates the protocol.
        A cancel ends the program and its child processes.
        """
        saved = kept(run, ADAPTER)
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(*self._command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LINE_BYTES,
            env=_environment(),
        )
        session = _Session(run, process, saved, reads_on=self._reads_on)
        try:
            async with asyncio.TaskGroup() as group:
                for part in (session.write_request(), session.log_stderr(), session.kill_remaining_processes()):
                    group.create_task(part, name=f"command {run.id}")
                await session.read_lines(group)
        except BaseExceptionGroup as failures:  # the worker handles a single error, by its class
            raise failures.exceptions[0] from failures
        finally:
            await _end(process)
        return session.conclude()


class _Session:
    """One execution of the program."""

    def __init__(
        self, run: Run, process: asyncio.subprocess.Process, saved: dict[str, Any] | None, *, reads_on: bool
    ) -> None:
        self._run = run
        self._restored = _restored(run, saved)
        self._process = process
        self._last_error_line = ""
        self._tool_results = [ToolResult(*each) for each in saved["tool_results"]] if saved else []
        if run.restored is not None:
            ended = (event.data for event in run.restored.events if event.type == TOOL_CALL_END)
            self._tool_results += map(_tool_result, ended)
        self._result: dict[str, Any] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._failure: str | None = None
        if process.stdin is None or process.stdout is None or process.stderr is None:
            message = "the program was started without pipes"
            raise AgentError(message)
        self._stdout, self._stderr = process.stdout, process.stderr
        self._input = ProgramInput(run, process.stdin, stays_open=reads_on)
        self._questions: set[asyncio.Task[None]] = set()  # that people have not answered

    async def write_request(self) -> None:
        """Write the request to standard input."""
        request = self._run.request.model_dump(exclude_unset=True)
        caller = self._run.caller
        sender = {"key_hash": caller.key_hash, "request_id": caller.request_id, "headers": dict(caller.headers)}
        job = {
            "version": PROTOCOL_VERSION,
            "run_id": self._run.id,
            "request": request,
            "caller": sender,
            "restored": self._restored,
        }
        await self._input.write_request(job)

    async def log_stderr(self) -> None:
        """Log the lines of standard error, up to a number of lines and characters, and remember the last line."""
        lines = 0
        async for chunk in _lines(self._stderr):
            text = mask_error(chunk.decode(errors="replace").strip())[:MAX_LOG_CHARS]
            if text:
                self._last_error_line = text
                lines += 1
                if lines <= MAX_LOG_LINES:
                    log.info("%s", text)
        if lines > MAX_LOG_LINES:
            log.warning("%d more lines of standard error were not logged", lines - MAX_LOG_LINES)

    async def read_lines(self, group: asyncio.TaskGroup) -> None:
        """Handle the lines of standard output. It reads only as fast as the run can publish them.

        ``group`` gets a task for each question to people.
        """
        async for line in _lines(self._stdout):
            if len(line) >= _LINE_BYTES:
                message = f"the program wrote a line of more than {_LINE_BYTES} bytes"
                raise InvalidAgentOutput(message)
            if line.strip():
                await self._handle_line(line, group)
                await self._run.drain()
        for question in list(self._questions):
            question.cancel()
        await self._input.close()

    async def kill_remaining_processes(self) -> None:
        """Kill the child processes that outlive the program, because they may keep its output open."""
        while self._process.returncode is None:  # noqa: ASYNC110 -- wait() may also wait for the end of the output
            await asyncio.sleep(EOF_TIMEOUT_S / 10)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EOF_TIMEOUT_S):
                while not (self._stdout.at_eof() and self._stderr.at_eof()):  # noqa: ASYNC110 -- no event to wait for
                    await asyncio.sleep(EOF_TIMEOUT_S / 10)
        _signal_group(self._process, signal.SIGKILL)

    async def _handle_line(self, line: bytes, group: asyncio.TaskGroup) -> None:
        if self._result is not None or self._failure is not None:
            message = f"the program wrote a line after its result or error: {_shown(line)}"
            raise InvalidAgentOutput(message)
        try:
            fields, cut = _parse(line)
            kind = fields.pop("type")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as exc:
            message = f'the program wrote a line that is not a JSON object with a "type": {_shown(line)}'
            raise InvalidAgentOutput(message) from exc
        if kind == "text":
            self._run.write(self._joined(fields.get("text"), cut=cut))
        elif kind == "result":
            self._result = fields
        elif kind == "checkpoint":
            await self._make_checkpoint(fields, line)
        elif kind == "interrupt":
            question = group.create_task(self._input.ask(fields), name=f"question {self._run.id}")
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)
        elif kind == "take_inputs":
            await self._input.take_inputs()
        elif kind == "error":
            self._failure = str(fields.get("message") or "the program reported an error without a message")
        else:
            self._run.emit(kind, fields)
            if kind == TOOL_CALL_END:
                self._tool_results.append(_tool_result(fields))

    async def _make_checkpoint(self, fields: dict[str, Any], line: bytes) -> None:
        """Store the program's state, with the results of its tools, which the result of the run needs."""
        if "state" not in fields:
            message = f'the program wrote a checkpoint without a "state": {_shown(line)}'
            raise InvalidAgentOutput(message)
        if self._run.agent_path:  # a sub-agent, whose state is not the run's
            return
        results = [[each.tool_name, each.content, each.success, each.latency_seconds] for each in self._tool_results]
        await self._run.checkpoint({"adapter": ADAPTER, "state": fields["state"], "tool_results": results})

    def _joined(self, text: Any, *, cut: bool) -> Any:  # noqa: ANN401 -- JSON; ``Run.write`` checks it
        """Return the text with characters joined whose UTF-8 bytes the program cut between two lines.

        ``cut`` is whether the line was no valid UTF-8. ``Run.write`` joins the halves of surrogate pairs.
        """
        if isinstance(text, str) and (cut or self._decoder.getstate()[0]):
            with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair
                return self._decoder.decode(text.encode(errors="surrogateescape"))
        return text

    def conclude(self) -> AgentResult:
        """Return the program's result. Raises AgentError if the program failed or wrote no result."""
        code = self._process.returncode
        if self._failure is not None:
            raise AgentError(self._failure)
        if rest := self._decoder.decode(b"", final=True):
            self._run.write(rest)
        if code:
            ending = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            raise AgentError(f"the program {ending}: {self._last_error_line}".rstrip(": "))
        if self._result is None:
            message = "the program ended without a result line"
            raise AgentError(message)
        content, usage = self._result.get("content", ""), self._result.get("usage")
        try:
            metadata = Usage.model_validate(usage).model_dump() if usage else {}
        except ValueError as exc:
            message = f"the usage in the program's result is invalid: {usage!r:.200}"
            raise InvalidAgentOutput(message) from exc
        return AgentResult(content, self._tool_results, metadata, self._result.get("finish_reason", "stop"))


def _restored(run: Run, saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what earlier attempts at the run left, for the program; None in the first attempt."""
    if run.restored is None:
        return None
    calls = run.restored.tool_calls
    return {
        "state": saved and saved["state"],
        "text": run.restored.text,
        "reasoning": run.restored.reasoning,
        "events": [{**event.data, "type": event.type} for event in run.restored.events],
        "tool_calls": [
            {"index": call.index, "id": call.id, "name": call.name, "arguments": call.arguments} for call in calls
        ],
    }


def _parse(line: bytes) -> tuple[Any, bool]:
    """Return the JSON of a line, and whether the line is no valid UTF-8 because a character was cut in two.

    A character may also be cut into two surrogates, which orjson refuses.
    """
    try:
        return orjson.loads(line), False
    except ValueError:
        text = line.decode(errors="surrogateescape")
        return json.loads(text), not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)


def _environment() -> dict[str, str] | None:
    """Return the worker's environment with the trace context added, or None (inherit it) if there is no trace."""
    carrier = {name.upper(): value for name, value in tracing.carrier().items()}
    return os.environ | carrier if carrier else None


def _tool_result(fields: dict[str, Any]) -> ToolResult:
    latency_s = fields.get("latency")
    return ToolResult(
        str(fields.get("tool", "")),
        json_text(fields.get("result", "")),
        bool(fields.get("success", True)),
        latency_s if isinstance(latency_s, int | float) else 0.0,
    )


def _shown(line: bytes) -> str:
    """Return the beginning of a wrong line for an error, without secrets."""
    return mask_error(line.decode(errors="replace").strip())[:_SHOWN_CHARS]


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines. A line over the stream's limit is yielded in pieces; the first piece is as long as the limit."""
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
    """End the program and its child processes: SIGTERM, then SIGKILL, which is sent even if this task is cancelled."""
    try:
        if process.returncode is None:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), TERM_TIMEOUT_S)
    finally:
        _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # already ended; macOS raises the latter for zombies
        os.killpg(process.pid, number)
