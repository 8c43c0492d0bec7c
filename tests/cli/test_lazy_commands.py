"""The command line imports a command only when it is used."""

import subprocess
import sys

import pytest

from agentstream.__main__ import COMMANDS

HEAVY = {"aiohttp", "openai", "prometheus_client", "pydantic", "redis", "uvloop"}
PROGRAM = """
import sys
from agentstream.__main__ import main
try:
    main(sys.argv[1:], prog_name="agentstream")
finally:
    print("LOADED", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
    print("OURS", *sorted(name for name in sys.modules if name.startswith("agentstream.")), file=sys.stderr)
"""


def loaded(mark: str, *arguments: str) -> set[str]:
    """Return the names of the modules that a command line loads: top-level ones, or those of agentstream."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    (line,) = [line for line in shown.stderr.splitlines() if line.startswith(mark)]
    return set(line.split()[1:])


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_help_and_version_import_nothing_heavy(flag: str) -> None:
    """``--help`` and ``--version`` load no HTTP library, no Redis client and no validation library."""
    assert loaded("LOADED", flag) & HEAVY == set()


def test_a_command_loads_no_part_of_the_others() -> None:
    """The help of ``frontend`` loads no module of the worker, and the help of ``worker`` none of the front end."""
    for command, other in (("frontend", "worker"), ("worker", "frontend")):
        assert not [name for name in loaded("OURS", command, "--help") if name.startswith(f"agentstream.{other}.")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_their_help(name: str) -> None:
    """The list of commands has the name and the first sentence of the help of each command."""
    make, summary = COMMANDS[name]
    command = make()
    assert command.name == name
    assert command.get_short_help_str(200) == summary
