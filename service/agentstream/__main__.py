"""The command line, which assembles everything. Each setting has a flag; a flag overrides the environment.

A command is imported when it is used, so that ``--help`` and ``--version`` answer at once, and a front end loads no
part of the worker.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from agentstream import __version__

if TYPE_CHECKING:
    from agentstream.config import Settings

log = logging.getLogger(__name__)


def _run(
    process: str,
    flags: dict[str, Any],
    main: "Callable[[Settings], Coroutine[Any, Any, int]]",
    *,
    is_child: bool = False,
) -> None:
    """Read the settings, run a process, and exit with its code.

    The parent of a process with ``is_child`` has already warned of wrong variables, and it waits after a failed start.
    """
    from agentstream.config import (  # noqa: PLC0415
        failed_start_delay_s,
        load_client_settings,
        load_settings,
        unknown_variables,
        unset_empty_variables,
    )
    from agentstream.errors import StartupError  # noqa: PLC0415
    from agentstream.processes.failed_start import wait_before_exit  # noqa: PLC0415
    from agentstream.processes.runtime import (  # noqa: PLC0415
        EXIT_INTERRUPTED,
        EXIT_WRONG_SETTINGS,
        configure_logging,
        run_loop,
    )
    from agentstream.telemetry import masking, tracing  # noqa: PLC0415

    unset_empty_variables()
    try:
        settings = (load_client_settings if process.startswith("worker") else load_settings)(**flags)
        configure_logging(settings, process, trace_ids=tracing.current_ids)
        for line in () if is_child else unknown_variables():
            if process == "up":
                click.echo(f"warning: {line}", err=True)
            else:
                log.warning("%s", line)
        code = run_loop(main(settings))
    except StartupError as exc:
        click.echo(f"agentstream {process}: {masking.mask_error(str(exc))}", err=True)
        code = EXIT_WRONG_SETTINGS
    except KeyboardInterrupt:  # before the process handles signals itself
        code = EXIT_INTERRUPTED
    if code == EXIT_WRONG_SETTINGS and not is_child and (delay_s := failed_start_delay_s(flags)):
        wait_before_exit(delay_s, lambda line: click.echo(f"agentstream {process}: {line}", err=True))
    sys.exit(code)


def _print_line(line: str) -> None:
    """Print a line for the user. If the terminal has closed, nobody reads it, and the drain must go on."""
    with contextlib.suppress(OSError):
        click.echo(line)


def _up() -> click.Command:
    from agentstream.cli.flags import setting_flags  # noqa: PLC0415
    from agentstream.cli.terminal.panel import is_terminal  # noqa: PLC0415
    from agentstream.cli.terminal.status import live_status  # noqa: PLC0415
    from agentstream.processes.supervisor import Supervisor  # noqa: PLC0415

    @click.command("up")
    @setting_flags()
    @click.option(
        "--reload", is_flag=True, help="Replace the workers when a Python file in the working directory changes."
    )
    def up(*, reload: bool, **flags: Any) -> None:  # noqa: ANN401
        """Start everything on this machine.

        Starts the front end, the workers and, if REDIS_URL is not set, a private broker. ctrl-C stops all of them.

        On a terminal, the last two rows show the address, the workers, the open runs and the tokens per second.

        While you write an agent, use --reload. After a change, new workers take the new requests. Runs that have begun
        end on the old workers, within AGENTSTREAM_DRAIN_TIMEOUT_S. If the new code cannot be imported, the error is
        shown, and the next change tries again.
        """
        watch = live_status if is_terminal(sys.stdout) else None
        _run("up", flags, lambda settings: Supervisor(settings, _print_line, watch, reload=reload).run())

    return up


def _frontend() -> click.Command:
    from agentstream.cli.flags import setting_flags  # noqa: PLC0415

    @click.command("frontend")
    @setting_flags()
    @click.option("--number", type=click.IntRange(1), hidden=True, help="Number among the processes that share a port.")
    @click.option("--parent", type=int, hidden=True, help="Descriptor of the pipe to the parent process.")
    def frontend(number: int | None, parent: int | None, **flags: Any) -> None:  # noqa: ANN401
        """Start the HTTP front end.

        Connects to REDIS_URL. --processes sets the number of processes, which share one port.
        """

        def serve(settings: "Settings") -> Coroutine[Any, Any, int]:
            if number is None and settings.processes > 1:
                from agentstream.processes.supervisor import serve_processes  # noqa: PLC0415

                return serve_processes("frontend", settings, _print_line)
            from agentstream.frontend.serve import serve_frontend  # noqa: PLC0415

            return serve_frontend(settings, number=number, parent=parent)

        _run("frontend" if number is None else f"frontend {number}", flags, serve, is_child=parent is not None)

    return frontend


def _worker() -> click.Command:
    from agentstream.cli.flags import setting_flags  # noqa: PLC0415

    @click.command("worker")
    @setting_flags()
    @click.option(
        "--number", type=click.IntRange(1), hidden=True, help="Number among the processes that share metrics."
    )
    @click.option("--parent", type=int, hidden=True, help="Descriptor of the pipe to the parent process.")
    def worker(number: int | None, parent: int | None, **flags: Any) -> None:  # noqa: ANN401
        """Start a worker, which runs agents.

        Connects to REDIS_URL. --processes sets the number of processes.
        """

        def serve(settings: "Settings") -> Coroutine[Any, Any, int]:
            if number is None and settings.processes > 1:
                from agentstream.processes.supervisor import serve_processes  # noqa: PLC0415

                return serve_processes("worker", settings, _print_line)
            from agentstream.worker.serve import serve_worker  # noqa: PLC0415

            return serve_worker(settings, number=number, parent=parent)

        _run("worker" if number is None else f"worker {number}", flags, serve, is_child=parent is not None)

    return worker


def _import_command(name: str) -> click.Command:
    """Import ``agentstream.cli.commands.<name>`` and return its command."""
    command: click.Command = getattr(import_module(f"agentstream.cli.commands.{name}"), name)
    return command


# Each command in the order of ``--help``: the function that makes it, and the first sentence of its help.
COMMANDS: Final[dict[str, tuple[Callable[[], click.Command], str]]] = {
    "up": (_up, "Start everything on this machine."),
    "frontend": (_frontend, "Start the HTTP front end."),
    "worker": (_worker, "Start a worker, which runs agents."),
    "chat": (partial(_import_command, "chat"), "Ask a question, or hold a conversation."),
    "ps": (partial(_import_command, "ps"), "List the runs that are queued, run, or wait for people."),
    "tail": (partial(_import_command, "tail"), "Show the stream of a run."),
    "answer": (partial(_import_command, "answer"), "Answer the questions of a run that waits for people."),
    "cancel": (partial(_import_command, "cancel"), "Cancel a run and wait until it has ended."),
    "doctor": (partial(_import_command, "doctor"), "Check a deployment and explain how to fix faults."),
    "config": (partial(_import_command, "config"), "Show every setting and the source of its value."),
}


class _LazyGroup(click.Group):
    """A group that imports a command when it is used. It lists the commands in the order of ``COMMANDS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command by its name, or None."""
        return COMMANDS[cmd_name][0]() if cmd_name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. An error about an unknown flag suggests only flags that the user probably meant.

        click's own limit is so low that ``--reload`` suggests ``--read-url``.
        """
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as exc:
            from agentstream.config import similar  # noqa: PLC0415

            parameters = exc.ctx.command.get_params(exc.ctx) if exc.ctx else []
            names = {flag.removeprefix("--"): flag for parameter in parameters for flag in parameter.opts}
            meant = [names[name] for name in similar(exc.option_name.removeprefix("--"), names)]
            message = f"No such option: {exc.option_name}" + (f". Did you mean {' or '.join(meant)}?" if meant else "")
            raise click.NoSuchOption(exc.option_name, message, ctx=exc.ctx) from exc

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentstream")
def main() -> None:
    """Connect OpenAI clients to agents that run in other processes.

    Front ends serve an OpenAI-compatible streaming API. Workers run the agents. Redis connects them.

    \b
    Start everything on this machine and ask a question:
      agentstream up
      agentstream chat "what is 17*23, and the time in Tokyo?"
    Start workers and front ends on several machines that share one Redis:
      REDIS_URL=redis://host agentstream worker      on each worker machine
      REDIS_URL=redis://host agentstream frontend    on each front-end machine
    Look at runs and find faults:
      REDIS_URL=redis://host agentstream ps
      agentstream tail RUN
      REDIS_URL=redis://host agentstream doctor --url https://agents.example.com

    Each setting has an environment variable and a flag. `agentstream COMMAND --help` lists the settings of a command.
    `agentstream config` shows the current values.

    \b
    Exit codes:
      0    success
      1    failure: a run failed, or doctor found a fault
      2    a setting or an argument is wrong; a retry does not help
      3    the front end or Redis cannot be reached; a retry may help
      4    the request was refused: unknown run, wrong key or full queue
      5    the run waits for people, and there is no terminal to ask on
      130  stopped by ctrl-C; `up`, `frontend` and `worker` exit with 0 instead,
           because ctrl-C is their normal end, and with 130 after a second ctrl-C

    \b
    Completion of commands, flags and run ids (run ids need REDIS_URL):
    add the line for your shell to its start-up file.
      bash   eval "$(_AGENTSTREAM_COMPLETE=bash_source agentstream)"
      zsh    eval "$(_AGENTSTREAM_COMPLETE=zsh_source agentstream)"
      fish   _AGENTSTREAM_COMPLETE=fish_source agentstream | source
    """


if __name__ == "__main__":
    main(prog_name="agentstream")
