"""Where the commands of the checks run: on this machine, or inside the namespaces of an engine of their own."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_S = 600  # the longest command, a build without any cache


class CommandFailed(AssertionError):
    """A command ended with another code than 0. The text has its last lines."""


@dataclass(frozen=True, slots=True)
class Machine:
    """``docker`` precedes commands that use the engine, ``clients`` those that use a port that it publishes."""

    docker: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether the engine belongs to these checks, and has stand-ins for the base images."""
        return bool(self.docker)

    def try_run(
        self, *command: str, folder: Path | None = None, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command that uses the engine. The output contains the errors."""
        return subprocess.run(
            [*self.docker, "env", *(("--chdir", str(folder)) if folder else ()), *command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            env={**os.environ, **self.environment, **variables},
        )

    def run(self, *command: str, folder: Path | None = None, **variables: str) -> str:
        """Run a command that uses the engine, and return its output. Raises CommandFailed."""
        done = self.try_run(*command, folder=folder, **variables)
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-12:])
            message = f"{' '.join(command)}: exit code {done.returncode}\n{last}"
            raise CommandFailed(message)
        return done.stdout
