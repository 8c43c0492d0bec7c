"""What the command line says of itself."""

import io
import re

import click
import pytest
from click.testing import CliRunner

from agentstream.__main__ import main
from agentstream.cli import exits
from agentstream.cli.terminal.panel import is_terminal


def said(*arguments: str) -> str:
    """Return what a command prints; it must succeed."""
    result = CliRunner().invoke(main, arguments, prog_name="agentstream", terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_tells_every_command_and_exit_code() -> None:
    """The help names each command, what each exit code means, and how a shell learns to complete."""
    text = said("--help")
    assert set(re.findall(r"(?m)^  (\w+)  ", text.partition("Commands:")[2])) == set(main.commands)
    codes = text.partition("Exit codes:")[2].partition("Completion")[0]
    ends = (exits.Failed, exits.WrongSettings, exits.Unreachable, exits.Refused, exits.Interrupted)
    assert list(map(int, re.findall(r"(?m)^    (\d+) ", codes))) == [0, *(end.exit_code for end in ends)]
    assert click.UsageError("").exit_code == exits.WrongSettings.exit_code
    assert set(re.findall(r"_AGENTSTREAM_COMPLETE=(\w+)_source", text)) == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("command", ["chat", "ps", "tail", "cancel", "doctor", "config"])
def test_the_help_of_a_command_shows_how_to_use_it(command: str) -> None:
    """A command's help has an example of its use, on a line of its own."""
    assert re.search(rf"(?m)^    (?:REDIS_URL=\S+ )?agentstream {command}\b", said(command, "--help"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the help says to put into a start-up file is a script for that shell."""
    monkeypatch.setenv("_AGENTSTREAM_COMPLETE", f"{shell}_source")
    assert "_AGENTSTREAM_COMPLETE" in said()


@pytest.mark.parametrize("kind", ["xterm", "dumb", ""])
def test_a_pipe_is_no_terminal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live status is for terminals: none for a pipe, nor for one that knows no escape sequences."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", kind)
    assert not is_terminal(io.StringIO())
    assert is_terminal(Screen()) == (kind == "xterm")
