"""The guard of the process against agents that silence it."""

import logging
import signal
from collections.abc import Iterator

import pytest

from agentstream.worker.process_guard import ProcessGuard

PARENT = "agentstream.worker.made_up"


@pytest.fixture
def guard() -> Iterator[ProcessGuard]:
    """Yield a guard of this process. Its loggers are gone after the test, so that the next test makes them anew."""
    logging.getLogger(f"{PARENT}.child")  # its parent has no logger yet
    made = ProcessGuard()
    made.watch_signals()
    yield made
    known = logging.getLogger().manager.loggerDict
    for name in [name for name in known if name.startswith(PARENT)]:
        del known[name]


@pytest.mark.parametrize("name", ["child", "later", ""])
def test_a_silenced_logger_logs_again(guard: ProcessGuard, name: str) -> None:
    """A logger of the package logs again after the check, also one that was made later or only had child loggers."""
    logger = logging.getLogger(f"{PARENT}.{name}".rstrip("."))
    for _ in range(2):
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
        logger.disabled = True
        guard.check_all()
        assert (logger.propagate, logger.level, logger.disabled) == (True, logging.NOTSET, False)


def test_a_replaced_signal_handler_is_restored(guard: ProcessGuard) -> None:
    """The handler of a signal that the worker needs is its own again after the check, in whatever form it is set."""
    own = signal.getsignal(signal.SIGHUP)
    for taken in (signal.SIG_IGN, lambda *_: None):
        signal.signal(signal.SIGHUP, taken)
        guard.check_all()
        assert signal.getsignal(signal.SIGHUP) == own
