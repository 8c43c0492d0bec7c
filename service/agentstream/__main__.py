"""The command line: the composition root. Every setting has a flag; flags override the environment."""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from agentstream import __version__
from agentstream.cli.commands.cancel import cancel
from agentstream.cli.commands.chat import chat
from agentstream.cli.commands.config import config
from agentstream.cli.commands.doctor import doctor
from agentstream.cli.commands.ps import ps
from agentstream.cli.commands.tail import tail
from agentstream.cli.flags import setting_flags
from agentstream.cli.terminal.panel import is_terminal
from agentstream.cli.terminal.status import live_status
from agentstream.config import Settings, load_settings, unknown_variables
from agentstream.errors import StartupError
from agentstream.frontend.serve import serve_frontend
from agentstream.processes.runtime import EXIT_WRONG_SETTINGS, configure_logging, run_loop
from agentstream.processes.supervisor import Supervisor, serve_processes
from agentstream.telemetry import tracing
from agentstream.worker.serve import serve_worker

_setting_flags = setting_flags()  # one for every setting


def _run(process: str, flags: dict[str, Any], main: Callable[[Settings], Coroutine[Any, Any, int]]) -> None:
    """Read the settings, run a process, and exit with its code."""
    try:
        settings = load_settings(**flags)
        configure_logging(settings, process, trace_ids=tracing.current_ids)
        for line in unknown_variables() if process == "up" else ():
            click.echo(f"warning: {line}", err=True)
        code = run_loop(main(settings))
    except StartupError as exc:
        click.echo(f"agentstream {process}: {exc}", err=True)
        code = EXIT_WRONG_SETTINGS
    sys.exit(code)


class _InOrder(click.Group):
    """Lists the commands as they are told of, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order in which they were added."""
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentstream")
def main() -> None:
    """OpenAI-compatible streaming for agents that run in other processes, joined by Redis.

    \b
    Serve here, on this machine alone, and ask something:
      agentstream up
      agentstream chat "what is 17*23, and the time in Tokyo?"
    Serve for real, a Redis in between:
      REDIS_URL=redis://host agentstream worker      on as many machines as need be
      REDIS_URL=redis://host agentstream frontend    likewise, behind a proxy
    See what goes on, and what is wrong:
      REDIS_URL=redis://host agentstream ps
      agentstream tail RUN
      REDIS_URL=redis://host agentstream doctor --url https://agents.example.com

    Every setting is an environment variable and a flag; `agentstream COMMAND --help` lists those of a command, and
    `agentstream config` shows the values in effect.

    \b
    Exit codes:
      0    done
      1    done, and came out badly: a run failed, doctor found a fault
      2    a setting or an argument is wrong; starting again would not help
      3    the front end or Redis cannot be reached now; trying again may help
      4    refused: an unknown run, a wrong key, a full queue
      130  ctrl-C; `up`, `frontend` and `worker` end with 0, as that is how they are stopped

    \b
    Completion of commands, flags and run ids (the latter with REDIS_URL set), in the shell's start-up file:
      bash   eval "$(_AGENTSTREAM_COMPLETE=bash_source agentstream)"
      zsh    eval "$(_AGENTSTREAM_COMPLETE=zsh_source agentstream)"
      fish   _AGENTSTREAM_COMPLETE=fish_source agentstream | source
    """


@main.command()
@_setting_flags
def up(**flags: Any) -> None:  # noqa: ANN401
    """Serve: front end, workers and, without REDIS_URL, a private broker. ctrl-C ends all of them.

    On a terminal the last two rows show the address, the workers, the open runs and the tokens a second.
    """
    watch = live_status if is_terminal(sys.stdout) else None
    _run("up", flags, lambda settings: Supervisor(settings, click.echo, watch).run())


@main.command()
@_setting_flags
@click.option("--number", type=click.IntRange(1), hidden=True, help="be this one of several on one port")
def frontend(number: int | None, **flags: Any) -> None:  # noqa: ANN401
    """Run the front end on REDIS_URL, in as many processes as --processes says."""

    def serve(settings: Settings) -> Coroutine[Any, Any, int]:
        if number is None and settings.processes > 1:
            return serve_processes("frontend", settings, click.echo)
        return serve_frontend(settings, number=number)

    _run("frontend" if number is None else f"frontend {number}", flags, serve)


@main.command()
@_setting_flags
@click.option("--number", type=click.IntRange(1), hidden=True, help="be this one of several that count together")
def worker(number: int | None, **flags: Any) -> None:  # noqa: ANN401
    """Run a worker on REDIS_URL, in as many processes as --processes says."""

    def serve(settings: Settings) -> Coroutine[Any, Any, int]:
        if number is None and settings.processes > 1:
            return serve_processes("worker", settings, click.echo)
        return serve_worker(settings, number=number)

    _run("worker" if number is None else f"worker {number}", flags, serve)


for command in (chat, ps, tail, cancel, doctor, config):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="agentstream")
