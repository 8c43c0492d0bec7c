"""The help texts of the command line."""

import io
import re

import click
import pytest
from click.testing import CliRunner

from agentstream.__main__ import COMMANDS, main
from agentstream.cli import exits
from agentstream.cli.terminal.panel import is_terminal


def output(*arguments: str) -> str:
    """Run a command, which must succeed, and return its output."""
    result = CliRunner().invoke(main, arguments, prog_name="agentstream", terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_lists_every_command_and_exit_code() -> None:
    """The help lists each command and each exit code, and shows how to enable shell completion."""
    text = output("--help")
    assert set(re.findall(r"(?m)^  (\w+)  ", text.partition("Commands:")[2])) == set(COMMANDS)
    codes = text.partition("Exit codes:")[2].partition("Completion")[0]
    ends = (
        exits.Failed,
        exits.WrongSettings,
        exits.Unreachable,
        exits.Refused,
        exits.WaitsForPeople,
        exits.Interrupted,
    )
    assert list(map(int, re.findall(r"(?m)^    (\d+) ", codes))) == [0, *(end.exit_code for end in ends)]
    assert click.UsageError("").exit_code == exits.WrongSettings.exit_code
    assert set(re.findall(r"_AGENTSTREAM_COMPLETE=(\w+)_source", text)) == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("command", ["chat", "ps", "tail", "answer", "cancel", "doctor", "config"])
def test_the_help_of_a_command_shows_how_to_use_it(command: str) -> None:
    """The help of a command has an example on its own line."""
    assert re.search(rf"(?m)^    (?:REDIS_URL=\S+ )?agentstream {command}\b", output(command, "--help"))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["frontend", "--reload"], "No such option: --reload"),
        (["up", "--relaod"], "No such option: --relaod. Did you mean --reload?"),
        (["up", "--worker", "3"], "No such option: --worker. Did you mean --workers?"),
        (["up", "--redis", "x"], "No such option: --redis. Did you mean --redis-url?"),
        (["worker", "--prot", "1"], "No such option: --prot. Did you mean --port?"),
        (["chat", "--modle", "x"], "No such option: --modle. Did you mean --model?"),
        (["ps", "--xyzzy"], "No such option: --xyzzy"),
    ],
)
def test_a_mistyped_flag_is_answered_with_similar_flags_only(arguments: list[str], hint: str) -> None:
    """The error about an unknown flag suggests the flag that was probably meant, or none."""
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 2
    assert ended.output.rstrip().splitlines()[-1] == f"Error: {hint}"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_completion_script_is_printed(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The completion command in the help prints a script for the shell."""
    monkeypatch.setenv("_AGENTSTREAM_COMPLETE", f"{shell}_source")
    assert "_AGENTSTREAM_COMPLETE" in output()


@pytest.mark.parametrize("kind", ["xterm", "dumb", ""])
def test_a_pipe_is_no_terminal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe and a terminal without escape sequences do not count as a terminal for the live status."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", kind)
    assert not is_terminal(io.StringIO())
    assert is_terminal(Screen()) == (kind == "xterm")
