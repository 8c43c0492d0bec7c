"""The format of log lines: text for people, or one JSON object per line.

A line contains no text of users, models and tools, unless the settings allow it. The text of an exception may contain
any of these, for example the arguments of a tool or the answer of a model server. So a log line shows only the class of
an exception, in a traceback and among the arguments of the line. It also shows the text of our own errors about Redis,
the service and the start, and of errors of the operating system. With ``errors`` it also shows the texts of the errors
of agents, so that their authors can find their mistakes. With ``content`` it shows every text. Known secrets are always
masked (see ``masking``). Lines of agents and libraries get the same format: everything goes through the
logging module of the standard library.
"""

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from agentstream.errors import BusError, RunFailed, ServiceError, StartupError
from agentstream.telemetry.log_context import AGENT_ERROR_FIELD, LogContext, current_log_context
from agentstream.telemetry.masking import mask, mask_error

# Limits of one line. A traceback of depth 50 has about 5,000 characters.
MAX_MESSAGE_CHARS: Final = 8000
MAX_EXCEPTION_CHARS: Final = 20_000
MAX_FIELD_CHARS: Final = 1000
MAX_FRAMES: Final = 50  # the innermost frames of a traceback
MAX_EXCEPTIONS: Final = 10  # in a chain or a group

# Characters that can forge a line or control a terminal: all controls, and the line separators of Unicode.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_NEWLINE: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_VALUE: Final = re.compile(r"[\w.:/@+-]+")
# Attributes of a record that are not fields of its caller, and names that a caller's field cannot have.
_RESERVED_FIELDS: Final = (
    frozenset(vars(logging.makeLogRecord({})))
    | {"asctime", "log_context", "taskName", AGENT_ERROR_FIELD}
    | {"time", "level", "logger", "message", "process", "pid", "exception"}
    | frozenset(LogContext._fields)
)

TraceIds = Callable[[], tuple[str, str] | None]


class LineFormatter(logging.Formatter):
    """The common part of both formats."""

    def __init__(
        self, process: str, *, content: bool = False, errors: bool = False, trace_ids: TraceIds | None = None
    ) -> None:
        """Take the name of the process.

        ``content`` allows the texts of users, models and tools. ``errors`` allows the texts of the errors of agents.
        ``trace_ids`` returns the ids of the trace and of the current span.
        """
        super().__init__()
        self._process = process
        self._content = content
        self._errors = errors
        self._trace_ids = trace_ids

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. If its arguments do not fit its message, return a line that says where it was logged.

        The standard library would print the arguments of such a line unchecked.
        """
        try:
            line = self.line(record)
        except Exception as exc:  # noqa: BLE001 -- a value of the caller may raise anything
            text = f"cannot format a log line of {record.pathname}:{record.lineno}: {type(exc).__name__}"
            line = self.line(logging.LogRecord(record.name, record.levelno, record.pathname, 0, text, (), None))
        return mask(line)

    def line(self, record: logging.LogRecord) -> str:
        """Return the line before secrets are masked."""
        raise NotImplementedError

    def message_of(self, record: logging.LogRecord) -> str:
        """Return the message of a record. Its exceptions are redacted."""
        shown = self._shows_errors(record)
        message = str(_redacted(record.msg, shown=shown))
        if isinstance(record.args, Mapping):
            message %= {name: _redacted(value, shown=shown) for name, value in record.args.items()}
        elif record.args:
            message %= tuple(_redacted(value, shown=shown) for value in record.args)
        if record.name == "asyncio" and record.exc_info and not shown:
            message = message.partition("\n")[0]  # the next lines contain the text of the exception
        return _cut(message, MAX_MESSAGE_CHARS)

    def fields_of(self, record: logging.LogRecord) -> list[tuple[str, Any]]:
        """Return the log context of a record and the caller's own fields."""
        given = getattr(record, "log_context", None)
        log_context = given if isinstance(given, LogContext) else current_log_context()
        fields: list[tuple[str, Any]] = [
            field for field in zip(LogContext._fields, log_context, strict=True) if field[1]
        ]
        if self._trace_ids is not None and (ids := self._trace_ids()) is not None:
            fields += zip(("trace_id", "span_id"), ids, strict=True)
        for name, value in vars(record).items():
            if name in _RESERVED_FIELDS:
                continue
            if value.__class__ is str:
                fields.append((name, _cut(value, MAX_FIELD_CHARS)))
            elif value is None or isinstance(value, int | float):
                fields.append((name, value))
            else:
                text = str(_redacted(value, shown=self._shows_errors(record)))
                fields.append((name, _cut(text, MAX_FIELD_CHARS)))
        return fields

    def exception_of(self, record: logging.LogRecord) -> str | None:
        """Return the traceback of a record, or None."""
        if record.exc_info and record.exc_info[1] is not None:
            shown = self._shows_errors(record)
            text = "\n".join(_format_traceback(record.exc_info[1], content=shown, seen=set()))
            return _cut(text, MAX_EXCEPTION_CHARS)
        return _cut(record.stack_info, MAX_EXCEPTION_CHARS) if record.stack_info else None

    def _shows_errors(self, record: logging.LogRecord) -> bool:
        """Return whether a line may contain the texts of exceptions.

        With ``errors``, two kinds of lines may: lines about agents, and lines of other libraries (the agent, its
        packages, and asyncio).
        """
        ours = record.name.partition(".")[0] == "agentstream"
        return self._content or (self._errors and (not ours or getattr(record, AGENT_ERROR_FIELD, False)))


class TextFormatter(LineFormatter):
    """``time LEVEL process[pid] logger: message name=value ...``; a traceback and further lines are indented below."""

    def line(self, record: logging.LogRecord) -> str:
        """Return the record as text. Only its first line begins without a space."""
        fields = "".join([f" {name}={_value(value)}" for name, value in self.fields_of(record)])
        message = _indented(self.message_of(record))
        line = f"{_time_of(record)} {record.levelname:<7} {self._process}[{record.process}] {record.name}: {message}"
        exception = self.exception_of(record)
        below = f"\n    {_indented(exception)}" if exception else ""
        return _escaped(line + fields + below, _CONTROLS_BUT_NEWLINE)


class JsonFormatter(LineFormatter):
    """One JSON object per line: time, level, logger, message, process, pid, log context, further fields, exception."""

    def line(self, record: logging.LogRecord) -> str:
        """Return the record as JSON. A value that JSON cannot hold becomes text."""
        fields: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message_of(record),
            "process": self._process,
            "pid": record.process,
        } | dict(self.fields_of(record))
        if exception := self.exception_of(record):
            fields["exception"] = exception
        try:
            text = orjson.dumps(fields, default=str).decode()
        except orjson.JSONEncodeError:  # a lone surrogate, or an integer of more than 64 bits
            fields = {name: str(value).encode(errors="backslashreplace").decode() for name, value in fields.items()}
            text = orjson.dumps(fields).decode()
        return _escaped(text, _CONTROLS, r"\u{:04x}")


def _redacted(value: object, *, shown: bool) -> object:
    return _RedactedException(describe_exception(value, content=shown)) if isinstance(value, BaseException) else value


class _RedactedException:
    """Replaces an exception among the arguments of a line. ``%s`` and ``%r`` give the same text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


def describe_exception(exc: BaseException, *, content: bool) -> str:
    """Return the class of an exception, and its text if the text cannot come from a user or ``content`` allows it."""
    try:
        text = mask_error(str(exc) if content else _harmless_text(exc))
    except Exception:  # noqa: BLE001 -- a class of the agent's may raise anything
        text = "(its text cannot be read)"
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _harmless_text(exc: BaseException) -> str:
    if isinstance(exc, BusError | StartupError) or (isinstance(exc, ServiceError) and not isinstance(exc, RunFailed)):
        return str(exc)
    return (exc.strerror or "") if isinstance(exc, OSError) else ""


def _format_traceback(exc: BaseException, *, content: bool, seen: set[int]) -> Iterator[str]:
    """Yield the lines of a traceback, each exception once.

    The causes come before the exception, and the members of a group after it.
    """
    if id(exc) in seen or len(seen) == MAX_EXCEPTIONS:
        return
    seen.add(id(exc))
    before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if before is not None and (cause_lines := list(_format_traceback(before, content=content, seen=seen))):
        yield from (*cause_lines, "and then:")
    if exc.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        yield from (line.rstrip("\n") for line in traceback.format_tb(exc.__traceback__, limit=-MAX_FRAMES))
    yield describe_exception(exc, content=content)
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions:
            yield f"one of {len(exc.exceptions)}:"
            yield from _format_traceback(member, content=content, seen=seen)


def _time_of(record: logging.LogRecord) -> str:
    """Return the time in ISO 8601: UTC, in milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cut(text: str, characters: int) -> str:
    """Return the text up to a length. Secrets are masked before the cut: half of one would not be recognised."""
    return text if len(text) <= characters else f"{mask(text)[:characters]}... ({len(text)} characters)"


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")


def _value(value: object) -> str:
    """Return the value of a field as text. A value with a space or a quote becomes a JSON string."""
    if value.__class__ is int:
        return str(value)
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text)


def _escaped(text: str, controls: re.Pattern[str], form: str = r"\x{:02x}") -> str:
    if text.isprintable():  # nearly always, and ten times as fast
        return text
    return controls.sub(lambda match: form.format(ord(match[0])), text)
