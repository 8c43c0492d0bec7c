"""``agentstream chat``: asks one question, or holds a conversation."""

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

import click

from agentstream.cli.answering import Connect, ask_here, send_answers
from agentstream.cli.api_client import COMPLETIONS, ApiClient
from agentstream.cli.exits import Cancelled, Failed, Interrupted, WrongSettings, run_command
from agentstream.cli.flags import events_flag, front_end_flags
from agentstream.cli.following import follow
from agentstream.cli.terminal.display import Display
from agentstream.cli.terminal.interrupts import read_line, until_interrupted
from agentstream.cli.terminal.panel import is_terminal
from agentstream.cli.terminal.word_wrap import WordWrap, terminal_columns

# We also cancel explicitly. A closed connection cancels the run too, but a proxy may keep its own connection open.
CANCEL_TIMEOUT_S: Final = 5.0

MAX_QUESTION_BYTES: Final = 10 << 20  # the default limit of front ends (AGENTSTREAM_MAX_BODY_BYTES)

HELP: Final = """\
/help   show these lines
/new    forget the conversation and begin a new one
/exit   end; so does ctrl-D
ctrl-C  stop an answer, or clear the line
up      recall an earlier question"""

Messages = list[dict[str, Any]]


@click.command()
@click.argument("question", required=False)
@front_end_flags
@click.option("--model", default="agentstream", show_default=True, help="Model name to request.")
@events_flag
def chat(question: str | None, url: str, api_key: str | None, model: str, event_types: str | None) -> None:
    """Ask a question, or hold a conversation.

    Streams the answer to standard output. The agent's events and all errors go to standard error.

    Without QUESTION, the command reads the question from standard input. On a terminal it holds a conversation
    instead: ctrl-C stops an answer, ctrl-D ends the conversation, /help lists the other commands. On a terminal, a line
    after the answer says how long it took.

    If the agent asks people, for example whether a tool may run, the command asks on the terminal and goes on with the
    answer. ctrl-C at a question leaves the run open, and `agentstream answer` answers it later. Without a terminal, the
    command prints the question and exits with 5.

    \b
      agentstream chat "what is 17*23?"
      agentstream chat --url https://agents.example.com --api-key sk-1
      git diff | agentstream chat > review.txt
    """
    connect = partial(ApiClient, url, api_key, event_types)
    if question is None and sys.stdin.isatty() and sys.stdout.isatty():
        _run_conversation(url, connect, model)
        return
    if question is None:
        piped = sys.stdin.buffer.read(MAX_QUESTION_BYTES + 1)
        if len(piped) > MAX_QUESTION_BYTES:
            message = f"the question is longer than {MAX_QUESTION_BYTES} bytes: send a shorter one"
            raise WrongSettings(message)
        question = piped.decode(errors="replace")
    if not question.strip():
        message = "the question is empty: pass QUESTION, or write it to standard input"
        raise WrongSettings(message)
    _ask(connect, model, [_message("user", question)], Display())


def _run_conversation(url: str, connect: Connect, model: str) -> None:
    """Hold a conversation until ctrl-D or /exit.

    A failed question is not part of the following requests. A cancelled one is, if it has some answer text.
    """
    with contextlib.suppress(ImportError):  # not on Windows; the import gives read_line() line editing and history
        import readline  # noqa: F401, PLC0415
    welcome = f"{model} at {url}; /help lists the commands.\nctrl-C stops an answer, ctrl-D ends the conversation."
    click.echo(WordWrap(partial(terminal_columns, sys.stderr)).feed(welcome), err=True)
    messages: Messages = []
    while True:
        try:
            question = read_line("> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        command = question.strip()
        if command in {"/exit", "/quit"}:
            return
        if not command or _is_done(command, messages):
            continue
        display = Display()
        sent = [*messages, _message("user", question)]
        try:
            _ask(connect, model, sent, display)
        except Failed as exc:
            exc.show()
            if not (isinstance(exc, Interrupted | Cancelled) and display.answer):
                continue
        messages = [*sent, _message("assistant", display.answer)]


def _is_done(command: str, messages: Messages) -> bool:
    """Do a command of the conversation other than /exit. Return False if it is a question."""
    if command in {"/help", "/?"}:
        click.echo(HELP, err=True)
    elif command in {"/new", "/clear"}:
        messages.clear()
        click.echo("a new conversation", err=True)
    elif re.fullmatch(r"/[a-z]+", command):  # a path such as /etc/hosts is a part of a question
        click.echo(f"there is no command {command}; /help lists the commands", err=True)
    else:
        return False
    return True


def _ask(connect: Connect, model: str, messages: Messages, display: Display) -> None:
    """Show the answer to ``messages``. If the run waits for people, ask the person at the terminal.

    On ctrl-C during the answer, cancel the run and raise Interrupted. At a question, leave the run open instead.
    """
    body = {"model": model, "messages": messages, "stream": True}
    run_command(_or_cancel(connect, display, lambda api: _show(api, body, display)))
    while display.parked:
        answers = ask_here(display)
        run_command(_or_cancel(connect, display, partial(_go_on, display=display, answers=answers)))
    if is_terminal(sys.stdout) and is_terminal(sys.stderr):
        display.note_times()


async def _go_on(api: ApiClient, *, display: Display, answers: Mapping[str, Any]) -> None:
    await send_answers(api, display, answers)
    await follow(api, display.run_id, display, wait_for_people=False)


async def _or_cancel(connect: Connect, display: Display, work: Callable[[ApiClient], Coroutine[Any, Any, None]]) -> int:
    """Do the work and return 0. On ctrl-C, cancel the run and raise Interrupted."""
    async with connect() as api:
        try:
            await until_interrupted(work(api))
        except Interrupted as exc:
            display.end_line()
            if not display.run_id:
                raise
            message = f"sent a cancel for {display.run_id}, but got no confirmation"
            with contextlib.suppress(Failed, TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    message = f"{(await until_interrupted(api.cancel(display.run_id)))['status']} {display.run_id}"
            raise Interrupted(message) from exc
    return 0


async def _show(api: ApiClient, body: dict[str, Any], display: Display) -> None:
    async with contextlib.aclosing(api.stream("POST", COMPLETIONS, body)) as pieces:
        async for messages in pieces:
            if not messages:
                display.idle()
            if any(map(display.receive, messages)):
                break
    display.close()


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
