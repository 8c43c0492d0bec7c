"""The exits of a failed command: each prints one line to standard error and has an exit code for scripts."""

import contextlib
import logging
import sys
from collections.abc import Coroutine, Iterator
from typing import IO, Any, Final

import click

from agentstream.errors import BrokerUnavailable, BusError, StartupError, WrongBroker
from agentstream.processes.runtime import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    EXIT_WRONG_SETTINGS,
    run_loop,
)
from agentstream.store import connection
from agentstream.telemetry.masking import mask_error

EXIT_REFUSED: Final = 4
EXIT_WAITS: Final = 5


class Failed(click.ClickException):
    """1: the command worked, but the result is bad: a run failed, or ``doctor`` found a fault."""

    exit_code = EXIT_FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error."""
        click.echo(f"error: {mask_error(self.message)}", file=file, err=file is None)


class WrongSettings(Failed):
    """2: a setting or an argument is wrong. click's UsageError has the same exit code."""

    exit_code = EXIT_WRONG_SETTINGS


class Unreachable(Failed):
    """3: the front end or Redis did not answer or is not ready. A retry may help."""

    exit_code = EXIT_UNREACHABLE


class Refused(Failed):
    """4: the front end or Redis refused the request, for example for an unknown run, a wrong key or a full queue."""

    exit_code = EXIT_REFUSED

    def __init__(self, message: str, code: str = "") -> None:
        """Store the message and the error code of the front end."""
        super().__init__(message)
        self.code = code


class WaitsForPeople(Failed):
    """5: the run waits for people, and nobody can be asked here. This is not printed as an error."""

    exit_code = EXIT_WAITS

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without the prefix ``error:``."""
        click.echo(self.message, file=file, err=file is None)


class Cancelled(Failed):
    """1: another client cancelled the run. This is not printed as an error."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without the prefix ``error:``."""
        click.echo(self.message, file=file, err=file is None)


class Interrupted(Failed):
    """130: the user pressed ctrl-C."""

    exit_code = EXIT_INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without the prefix ``error:``."""
        click.echo(self.message, file=file, err=file is None)


def run_command(work: Coroutine[Any, Any, int]) -> None:
    """Run ``work`` on an event loop and exit with the exit code that it returns."""
    try:
        code = run_loop(work)
    except StartupError as exc:
        raise WrongSettings(str(exc)) from exc
    except KeyboardInterrupt as exc:
        message = "interrupted"
        raise Interrupted(message) from exc
    if code:
        sys.exit(code)


@contextlib.contextmanager
def quiet_link() -> Iterator[None]:
    """Do not log how the link connects: the command ends with one error instead."""
    connecting = logging.getLogger(connection.__name__)
    before = connecting.level
    connecting.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        connecting.setLevel(before)


@contextlib.contextmanager
def exit_on_redis_errors() -> Iterator[None]:
    """Convert errors of the store into Unreachable, WrongSettings or Refused."""
    try:
        with quiet_link():
            yield
    except BrokerUnavailable as exc:
        raise Unreachable(str(exc)) from exc
    except WrongBroker as exc:
        raise WrongSettings(str(exc)) from exc
    except BusError as exc:
        raise Refused(str(exc)) from exc
