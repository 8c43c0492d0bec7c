"""How a command ends when it does not succeed: a line on standard error, and an exit code a script can act on."""

import contextlib
import sys
from collections.abc import Coroutine, Iterator
from typing import IO, Any, Final

import click

from agentstream.errors import BrokerUnavailable, BusError, StartupError
from agentstream.processes.runtime import EXIT_FAILED, EXIT_WRONG_SETTINGS, run_loop

EXIT_UNREACHABLE: Final = 3
EXIT_REFUSED: Final = 4
EXIT_INTERRUPTED: Final = 130  # as shells say of ctrl-C: 128 + SIGINT


class Failed(click.ClickException):
    """1: it was done, and came out badly; such as a run that failed, or a fault that ``doctor`` found."""

    exit_code = EXIT_FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what went wrong."""
        click.echo(f"error: {self.message}", file=file, err=file is None)


class WrongSettings(Failed):
    """2: a setting or an argument is wrong; the same as click's own UsageError."""

    exit_code = EXIT_WRONG_SETTINGS


class Unreachable(Failed):
    """3: the front end or Redis did not answer, or not now; worth trying again."""

    exit_code = EXIT_UNREACHABLE


class Refused(Failed):
    """4: it answered, and said no: an unknown run, a wrong key, a full queue."""

    exit_code = EXIT_REFUSED


class Interrupted(Failed):
    """130: ctrl-C."""

    exit_code = EXIT_INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what became of it."""
        click.echo(self.message, file=file, err=file is None)


def run_command(work: Coroutine[Any, Any, int]) -> None:
    """Do a command's work on an event loop and exit with the code it returns."""
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
def exit_on_redis_errors() -> Iterator[None]:
    """Turn what the store raises into the matching exit."""
    try:
        yield
    except BrokerUnavailable as exc:
        raise Unreachable(str(exc)) from exc
    except BusError as exc:
        raise Refused(str(exc)) from exc
