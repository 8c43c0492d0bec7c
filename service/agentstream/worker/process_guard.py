"""Restores what an agent changes in its process, if the change would silence or harm the worker.

    state                                              restored to
    =================================================  ====================================================
    the worker's log handler, its level, filters, …    the worker's own
    logging.disable, and loggers of agentstream        as before
    a root logger that logs less                       the level of the settings
    the garbage collector                              on, with its threshold
    the recursion limit, the switch interval           at least, at most as before
    handlers of the signals that the worker needs      as before

A change is found at the end of a run, and once per second. One line in the log names it and the agents that ran. The
worker's log lines go to a copy of standard error, so that an agent can close or replace standard error.
"""

import contextlib
import gc
import importlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from agentstream.telemetry.log_context import AGENT_ERROR
from agentstream.worker.current_agent import recent_agents

log = logging.getLogger(__name__)

EXIT_TIMEOUT_S: Final = 10.0  # after the last run, for exit handlers and threads of agents
_exit = os._exit

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)
_PACKAGE: Final = "agentstream"
# signal.getsignal without its search for an enum, which takes 2 us a call. This runs five times after each agent.
_handler_of: Final = importlib.import_module("_signal").getsignal


@dataclass(frozen=True, slots=True)
class _State:
    """A part of the process. ``is_harmed`` compares its first value with the present one, which ``read`` returns."""

    name: str
    first: Any
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    is_harmed: Callable[[Any, Any], bool] = lambda first, now: first != now


class ProcessGuard:
    """The state of this process before any agent ran."""

    def __init__(self) -> None:
        """Read the state, and let the log lines go to a copy of standard error."""
        self._lock = threading.Lock()
        self._states: list[_State] = []
        self._signals: dict[int, Any] = {}
        _log_to_copy_of_stderr()
        root = logging.getLogger()
        for handler in root.handlers:
            self._add("the worker's log handler", partial(_describe, handler), _restorer(handler))
        self._add("logging.disable", lambda: root.manager.disable, logging.disable)
        self._add("the level of the root logger", lambda: root.level, root.setLevel, lambda first, now: now > first)
        loggers = _OwnLoggers()
        self._add("the loggers of agentstream", loggers.silenced, loggers.restore, lambda _, now: bool(now))
        self._add("the garbage collector", gc.isenabled, lambda _: gc.enable())
        self._add("the threshold of gc", gc.get_threshold, lambda first: gc.set_threshold(*first), _is_off)
        self._add("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, lambda first, now: now < first)
        self._add("the switch interval", sys.getswitchinterval, sys.setswitchinterval, lambda first, now: now > first)

    def watch_signals(self) -> None:
        """Remember the handlers of signals. Call it on the main thread, after the worker has set its own."""
        self._signals = {number: _handler_of(number) for number in _SIGNALS}

    def check(self) -> None:
        """Restore what was changed, and log it with the agents that ran. Any thread may call it."""
        with self._lock:
            harmed = [state for state in self._states if state.is_harmed(state.first, state.read())]
            for state in harmed:
                state.restore(state.first)
        if harmed:
            _report(", ".join(state.name for state in harmed))

    def check_signals(self) -> None:
        """Restore the handlers of signals. Call it on the main thread."""
        harmed = {number: own for number, own in self._signals.items() if _handler_of(number) is not own}
        for number, handler in harmed.items():
            signal.signal(number, handler)
        if harmed:
            _report("the handlers of " + ", ".join(signal.Signals(number).name for number in harmed))

    def check_all(self) -> None:
        """Restore what was changed, also the handlers of signals. Call it on the main thread, after an agent."""
        self.check()
        self.check_signals()

    def _add(
        self,
        name: str,
        read: Callable[[], Any],
        restore: Callable[[Any], object],
        is_harmed: Callable[[Any, Any], bool] = lambda first, now: first != now,
    ) -> None:
        self._states.append(_State(name, read(), read, restore, is_harmed))


def _report(what: str) -> None:
    log.error("an agent changed %s; it was restored (agents: %s)", what, recent_agents(), extra=AGENT_ERROR)


def exit_soon() -> None:
    """End this process in EXIT_TIMEOUT_S, unless it ends before: exit handlers and threads of agents may block."""

    def wait() -> None:
        time.sleep(EXIT_TIMEOUT_S)
        alive = [thread.name for thread in threading.enumerate() if not thread.daemon]
        log.critical(
            "the worker has drained, but a thread or an exit handler of an agent keeps it from its end for %g s; "
            "it exits now (threads: %s)",
            EXIT_TIMEOUT_S,
            ", ".join(alive),
        )
        _exit(0)

    threading.Thread(target=wait, name="exit", daemon=True).start()


def _log_to_copy_of_stderr() -> None:
    """Let every handler that writes to standard error write to a copy of its descriptor."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):  # no descriptor, as under a test
                copy = os.dup(sys.stderr.fileno())
                handler.setStream(os.fdopen(copy, "w", buffering=1, encoding="utf-8", errors="backslashreplace"))


def _describe(handler: logging.Handler) -> tuple[Any, ...]:
    attached = handler in logging.getLogger().handlers
    stream = getattr(handler, "stream", None)
    return attached, handler.level, tuple(handler.filters), handler.formatter, stream


def _restorer(handler: logging.Handler) -> Callable[[tuple[Any, ...]], None]:
    def restore(first: tuple[Any, ...]) -> None:
        _, level, filters, formatter, stream = first
        handler.setLevel(level)
        handler.filters = list(filters)
        handler.setFormatter(formatter)
        if isinstance(handler, logging.StreamHandler):
            handler.stream = stream
        if handler not in logging.getLogger().handlers:
            logging.getLogger().addHandler(handler)

    return restore


class _OwnLoggers:
    """The loggers of this package. They are listed again only after a logger was made: a process may have hundreds."""

    def __init__(self) -> None:
        self._root = logging.getLogger()
        self._known = 0  # loggers of the process when they were listed last
        self._loggers: list[logging.Logger] = []

    def silenced(self) -> list[logging.Logger]:
        """Return those that are disabled, pass nothing on, or log less than the root logger."""
        if len(self._root.manager.loggerDict) != self._known:
            names = [name for name in list(self._root.manager.loggerDict) if name.partition(".")[0] == _PACKAGE]
            self._loggers = [logging.getLogger(name) for name in names]  # also of a name that only has child loggers
            self._known = len(self._root.manager.loggerDict)
        least = max(self._root.level, 1)
        return [each for each in self._loggers if each.disabled or not each.propagate or each.level > least]

    def restore(self, _: object) -> None:
        """Let all of them log again."""
        for each in self.silenced():
            each.disabled, each.propagate = False, True
            each.setLevel(logging.NOTSET)


def _is_off(_first: tuple[int, int, int], now: tuple[int, int, int]) -> bool:
    return now[0] == 0
