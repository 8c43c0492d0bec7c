"""The command line: the composition root. Every setting has a flag; flags override the environment."""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from service import __version__, tracing
from service.chat import ask
from service.config import Settings, env_name, load_settings, unknown_variables
from service.errors import StartupError
from service.frontend.serve import serve_frontend
from service.process import EXIT_WRONG_SETTINGS, configure_logging, run_loop
from service.supervisor import Supervisor, serve_processes
from service.worker.serve import serve_worker


def _setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for every setting; the values are checked where the settings are made."""
    for field, info in reversed(Settings.model_fields.items()):
        default = "" if info.default in (None, ()) else f" [default: {_shown(info.default)}]"
        flag = f"--{field.replace('_', '-')}"
        boolean = info.annotation is bool
        command = click.option(
            f"{flag}/--no-{flag[2:]}" if boolean else flag,
            field,
            default=None,
            type=bool if boolean else str,
            metavar=None if boolean else "VALUE",
            help=f"{info.description}{default} [{env_name(field)}]",
        )(command)
    return command


def _shown(default: object) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentstream")
def main() -> None:
    """OpenAI-compatible streaming for agents that run in other processes, joined by Redis."""


@main.command()
@_setting_flags
def up(**flags: Any) -> None:  # noqa: ANN401
    """Serve: front end, workers and, without REDIS_URL, a private broker. ctrl-C ends all of them."""
    _run("up", flags, lambda settings: Supervisor(settings, click.echo).run())


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


@main.command()
@click.argument("question")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="where the front end is")
@click.option("--model", default="agentstream", show_default=True, help="model to ask for")
@click.option("--api-key", envvar="AGENTSTREAM_API_KEY", help="Bearer key, if the front end wants one")
def chat(question: str, url: str, model: str, api_key: str | None) -> None:
    """Ask QUESTION: prints what the agent does, then streams its answer."""
    sys.exit(run_loop(ask(url, question, model=model, api_key=api_key)))


if __name__ == "__main__":
    main(prog_name="agentstream")
