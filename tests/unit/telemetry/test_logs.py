"""Log lines: their format, their subject, and the texts that they must not contain."""

import asyncio
import contextvars
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from agentstream.errors import BrokerUnavailable, RunFailed
from agentstream.frontend.request_log import Throttle
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.telemetry.log_context import AGENT_ERROR, LogContext, bind, current_log_context, log_extra
from agentstream.telemetry.log_format import (
    MAX_EXCEPTIONS,
    MAX_MESSAGE_CHARS,
    JsonFormatter,
    LineFormatter,
    TextFormatter,
)
from agentstream.telemetry.masking import register_secrets
from tests.helpers import TIMEOUT_S

FORMATS = [TextFormatter, JsonFormatter]
each_format = pytest.mark.parametrize("form", FORMATS)


def record(message: object, *args: object, exc: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    exc_info = (type(exc), exc, exc.__traceback__) if exc else None
    made = logging.getLogger("agentstream.x").makeRecord(
        "agentstream.x", 20, "x.py", 1, message, args, exc_info, extra=extra
    )
    made.created, made.process = 1_700_000_000.0625, 42
    return made


def as_json(made: logging.LogRecord, **options: Any) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(JsonFormatter("worker", **options).format(made))
    return fields


def raised(exc: ValueError) -> ValueError:
    try:
        raise exc
    except ValueError as caught:
        return caught


def test_text_lines_have_a_fixed_format() -> None:
    """A text line has the time in UTC, level, process, logger and message, and then fields by name."""
    log_context = LogContext(run_id="chatcmpl-1", request_id="req_1", attempt=2)
    line = TextFormatter("worker").format(record("it %s", "ended", outcome="a b", took_s=0.5, log_context=log_context))
    assert line == (
        "2023-11-14T22:13:20.062Z INFO    worker[42] agentstream.x: it ended "
        'run_id=chatcmpl-1 request_id=req_1 attempt=2 outcome="a b" took_s=0.5'
    )


def test_json_lines_have_fixed_names() -> None:
    """A JSON line is one object with fixed names, the log context, the trace's ids and the caller's fields."""
    made = record("it %s", "ended", outcome="fine", count=3, log_context=LogContext(run_id="chatcmpl-1", queue="q"))
    assert as_json(made, trace_ids=lambda: ("ab", "cd")) == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "info",
        "logger": "agentstream.x",
        "message": "it ended",
        "process": "worker",
        "pid": 42,
        "run_id": "chatcmpl-1",
        "queue": "q",
        "trace_id": "ab",
        "span_id": "cd",
        "outcome": "fine",
        "count": 3,
    }


async def test_a_log_context_reaches_what_a_task_starts_and_nothing_else() -> None:
    """Bound fields are on the lines of a task and of the tasks and threads that it starts, and on no other lines."""

    async def run(name: str) -> list[str | None]:
        bind(run_id=name)
        await asyncio.sleep(0)
        inner = await asyncio.create_task(asyncio.to_thread(current_log_context))
        return [current_log_context().run_id, inner.run_id]

    assert list(await asyncio.gather(run("a"), run("b"))) == [["a", "a"], ["b", "b"]]
    assert current_log_context() == LogContext()


def test_a_line_can_name_its_whole_log_context() -> None:
    """A line that names its log context takes no field from the context of its caller."""

    def line_of_caller() -> dict[str, Any]:
        bind(run_id="caller", request_id="callers")
        return as_json(record("x", log_context=log_extra(LogContext(run_id="other"))["log_context"]))

    line = contextvars.copy_context().run(line_of_caller)
    assert (line["run_id"], line.get("request_id")) == ("other", None)


@each_format
def test_exceptions_are_logged_without_their_text(form: type[LineFormatter]) -> None:
    """A line shows only the class and place of an exception, in a traceback and as an argument."""
    error = raised(ValueError("hidden-error"))
    error.add_note("hidden-note")
    group = ExceptionGroup("hidden-group", [error, RunFailed("hidden-run", code="x")])
    group.__cause__ = KeyError("hidden-cause")
    line = form("worker").format(record("%s, %r", error, error, exc=group))
    assert "hidden" not in line
    for text in ("ValueError, ValueError", "KeyError", "ExceptionGroup", "RunFailed", "one of 2", "test_logs.py"):
        assert text in line
    shown = form("worker", content=True).format(record("%s", error, exc=group))
    for text in ("ValueError: hidden-error", "hidden-cause", "hidden-group", "hidden-run"):
        assert text in shown


def test_errors_of_ours_and_of_the_system_keep_their_text() -> None:
    """Errors that contain no text of users keep their text, because an operator needs it."""
    away = BrokerUnavailable("Redis cannot be reached")
    line = as_json(record("%s; %s", away, OSError(24, "Too many open files", "hidden")))
    assert line["message"] == "BrokerUnavailable: Redis cannot be reached; OSError: Too many open files"
    assert as_json(record(away))["message"] == "BrokerUnavailable: Redis cannot be reached"


@pytest.mark.parametrize("content", [False, True])
async def test_failed_tasks_are_logged_without_their_text(*, content: bool) -> None:
    """The line of asyncio about a failed task that nobody awaited is cut before the text of the exception."""
    made = record("Task exception was never retrieved\nfuture: <Task exception=ValueError('hidden')>", exc=ValueError())
    made.name = "asyncio"
    assert ("hidden" in as_json(made, content=content)["message"]) == content


@each_format
@pytest.mark.parametrize(
    ("logger", "fields", "shown"),
    [
        ("agentstream.worker.execution", AGENT_ERROR, True),
        ("agentstream.worker.execution", {}, False),
        ("agentstream", {}, False),
        ("my_agents", {}, True),
        ("asyncio", {}, True),
        ("agentstream_of_the_user", {}, True),
    ],
)
def test_errors_of_agents_may_be_shown(
    form: type[LineFormatter], logger: str, fields: dict[str, Any], *, shown: bool
) -> None:
    """With ``errors`` only lines about agents and lines of other code have the texts of exceptions."""
    made = record("%s", ValueError("argument"), exc=raised(ValueError("traceback")), **fields)
    made.name = logger
    line = form("worker", errors=True).format(made)
    assert ("ValueError: argument" in line, "ValueError: traceback" in line) == (shown, shown)
    assert "agent_error" not in line


@each_format
def test_secrets_are_masked_everywhere(form: type[LineFormatter]) -> None:
    """A known secret is masked in messages, fields and tracebacks, but a very short one is not."""
    error = raised(ValueError("sk-secret"))
    made = record("sk-secret of a", exc=error, field="x sk-secret-longer")
    register_secrets(["sk-secret", "sk-secret-longer", "a"])
    line = form("worker", content=True).format(made)
    assert "secret" not in line.replace("test_secrets", "")
    assert "*** of a" in line


@each_format
def test_a_secret_at_a_cut_is_masked(form: type[LineFormatter]) -> None:
    """A secret is masked even if the line is cut in the middle of it."""
    register_secrets(["sk-hidden-0123456789"])
    line = form("worker").format(record("x" * (MAX_MESSAGE_CHARS - 8) + "sk-hidden-0123456789" + "y" * 100))
    assert "sk-hid" not in line


@each_format
def test_no_line_can_be_forged(form: type[LineFormatter]) -> None:
    """Line ends and controls in messages, fields and exceptions begin no line and do not control a terminal."""
    evil = "x\n2023 CRITICAL forged\r\x1b[31m\x9b2J\u2028\x00\x7f"
    error = raised(ValueError(evil))
    line = form("worker", content=True).format(record("%s", evil, exc=error, field=evil))
    assert not set("\r\x1b\x9b\u2028\x00\x7f") & set(line)
    first, *below = line.split("\n")
    assert first.startswith(("2023-11-14", "{"))
    assert all(more.startswith("    ") for more in below)
    assert not (below and form is JsonFormatter)


@each_format
def test_lines_are_bounded(form: type[LineFormatter]) -> None:
    """A line has a limited length, however long its message, its fields and its chain of exceptions are."""
    error: BaseException = ValueError("x" * 100_000)
    for _ in range(MAX_EXCEPTIONS * 50):
        wrapped = ValueError("y" * 1000)
        wrapped.__cause__ = error
        error = wrapped
    line = form("worker", content=True).format(record("m" * 10 * MAX_MESSAGE_CHARS, exc=error, field="f" * 100_000))
    assert len(line) < 50_000


@pytest.mark.parametrize("value", ["\ud800", 1 << 70, object(), {"a": {1, 2}}, None, float("nan"), b"\xff"])
def test_any_field_can_be_logged(value: object) -> None:
    """A field of any type is logged, even if JSON cannot hold its value."""
    assert as_json(record("it is logged", field=value))["message"] == "it is logged"


@each_format
def test_lines_with_wrong_arguments_say_where_they_are(form: type[LineFormatter]) -> None:
    """A line with a wrong argument says where it was logged, and shows no argument."""
    line = form("worker").format(record("%d of %s", "hidden", "hidden"))
    assert "cannot format a log line of x.py:1: TypeError" in line
    assert "hidden" not in line


def test_reserved_fields_cannot_be_replaced() -> None:
    """A caller's field cannot replace the time, the level or the run."""
    made = record("x", level="forged", run_id="forged", time="forged")
    assert "forged" not in json.dumps(as_json(made))


def test_circular_causes_are_logged_once() -> None:
    """Exceptions that are each other's cause are logged once each."""
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert as_json(record("x", exc=first))["exception"].count("Error") == 2


def test_throttle_passes_a_burst_and_counts_omitted_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind may log a burst and then some lines per second, and each line says how many were omitted before it."""
    clock = [100.0]
    monkeypatch.setattr("agentstream.frontend.request_log.time.monotonic", lambda: clock[0])
    throttle = Throttle(per_s=2, burst=3)
    assert [throttle.try_acquire(404) for _ in range(5)] == [0, 0, 0, None, None]
    assert throttle.try_acquire(500) == 0
    clock[0] += 0.5
    assert [throttle.try_acquire(404) for _ in range(2)] == [2, None]
    clock[0] += 1000
    assert [throttle.try_acquire(404) for _ in range(4)] == [1, 0, 0, None]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("req_1", "req_1"),
        ("a.b:c-D", "a.b:c-D"),
        ("", ""),
        ("x" * 65, ""),
        ("a\nb", ""),
        ("a\n", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_jobs_keep_well_formed_request_ids(sent: object, kept: str) -> None:
    """The request id of a job is optional, and a malformed one is dropped without refusing the job."""
    run_id = new_run_id()
    fields = {"run_id": run_id, "request": {}, "created": 1, "start_by": 2.0}
    assert Job.decode(json.dumps({**fields, "request_id": sent}).encode()).request_id == kept
    assert Job.decode(json.dumps(fields).encode()).request_id == ""


UNCAUGHT = """
import sys
import threading
from agentstream.config import Settings
from agentstream.processes.runtime import configure_logging
def fail():
    raise ValueError("hidden")
configure_logging(Settings(log_format="json"), sys.argv[1])
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


@pytest.mark.parametrize(("process", "texts"), [("frontend", []), ("worker", ["error"])])
def test_uncaught_errors_are_logged_like_others(process: str, texts: list[str]) -> None:
    """An uncaught error becomes a log line; only a thread in a worker shows its text, because it is the agent's."""
    command = [sys.executable, "-c", UNCAUGHT, process]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["error", "critical"]
    assert all("ValueError" in line["exception"].splitlines()[-1] for line in lines)
    assert [line["level"] for line in lines if line["exception"].endswith("ValueError: hidden")] == texts
