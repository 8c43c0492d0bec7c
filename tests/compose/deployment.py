"""The deployment under test: a copy of the files that compose.yaml needs, and the commands on it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose.machine import Machine

ROOT = Path(__file__).parents[2]
COPIED = (".dockerignore", "LICENSE", "README.md", "compose.yaml", "deploy", "pyproject.toml", "service")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")
PORT = 18080
WAIT_S = 180
CLIENTS = 12
STARTS = "compose-test:starts"  # the set in which the agent notes each start, as in agent/counting_agent.py


@dataclass(slots=True)
class Load:
    """The clients that ask during a check, and their report after the end."""

    process: "subprocess.Popen[str]"
    report: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> dict[str, Any]:
        """Let each client finish its answer, and return the report."""
        output, _ = self.process.communicate("", timeout=WAIT_S)
        self.report = json.loads(output)
        return self.report


class Deployment:
    """compose.yaml in a folder of its own. ``settings`` are given by the shell to every command."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        """Copy what `docker compose` needs into the folder."""
        self.machine = machine
        self.folder = folder
        self.image = self.project = "agentstream"
        self.settings = {"AGENTSTREAM_PORT": str(PORT), "COMPOSE_PROGRESS": "plain", "AGENT_DIR": "agents"}
        self.settings["AGENTSTREAM_AGENT"] = "counting_agent:counting"
        folder.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=IGNORED)
            else:
                shutil.copy(source, folder / name)
        shutil.copytree(Path(__file__).with_name("agent"), folder / "agents", ignore=IGNORED)
        if not machine.is_own:
            self._take_other_names()

    def _take_other_names(self) -> None:
        """On an engine of others use other names, so that nothing of them is replaced."""
        self.image = self.project = "agentstream-test"
        self.settings |= {"COMPOSE_PROJECT_NAME": self.project, "AGENT_IMAGE": self.image}
        (self.folder / "compose.override.yaml").write_text(f"services: {{frontend: {{image: {self.image}}}}}\n")

    @property
    def url(self) -> str:
        """The address of nginx."""
        return f"http://127.0.0.1:{PORT}"

    def run(self, *command: str, **variables: str) -> str:
        """Run a command in the folder, and return its output. Raises CommandFailed."""
        return self.machine.run(*command, folder=self.folder, **{**self.settings, **variables})

    def try_run(self, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the folder that may fail."""
        return self.machine.try_run(*command, folder=self.folder, **{**self.settings, **variables})

    def compose(self, *arguments: str, **variables: str) -> str:
        """Run `docker compose`, and return its output. Raises CommandFailed."""
        return self.run("docker", "compose", *arguments, **variables)

    def up(self, *, frontends: int = 2, workers: int = 2, **variables: str) -> str:
        """Start everything with this many processes, and wait until it is healthy."""
        scale = ("--scale", f"frontend={frontends}", "--scale", f"worker={workers}")
        return self.compose("up", "--detach", "--wait", "--wait-timeout", str(WAIT_S), *scale, **variables)

    def down(self) -> None:
        """Remove the containers, networks and volumes."""
        self.compose("down", "--volumes", "--remove-orphans")

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def logs(self, service: str) -> list[str]:
        """Return the log lines of a service's containers, without the decoration of Compose."""
        found = self.compose("ps", "--all", "--quiet", service).split()
        return [line for container in found for line in self.run("docker", "logs", container).splitlines()]

    def inspect(self, container: str, template: str) -> str:
        """Return a part of what the engine knows of a container."""
        return self.run("docker", "inspect", "--format", template, container).strip()

    def kill(self, container: str) -> None:
        """Kill every process of a container with SIGKILL, from inside, as a fault would."""
        self.try_run("docker", "exec", container, "sh", "-c", "kill -9 -1")

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment of a service's first container."""
        lines = self.compose("exec", "--no-TTY", service, "env").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def call(self, path: str, body: object = None, key: str = "") -> tuple[int, str]:
        """Send a request through nginx, and return the status and the body."""
        data = () if body is None else ("--data", json.dumps(body), "--header", "Content-Type: application/json")
        auth = ("--header", f"Authorization: Bearer {key}") if key else ()
        command = [
            "curl",
            "--silent",
            "--no-buffer",
            "--path-as-is",
            "--max-time",
            "60",
            "--write-out",
            "\n%{http_code}",
        ]
        done = subprocess.run(
            [*self.machine.clients, *command, *data, *auth, self.url + path],
            check=False,
            capture_output=True,
            text=True,
        )
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    def ask(self, text: str, *, key: str = "", stream: bool = True) -> tuple[int, str]:
        """Ask a question, and return the status and the whole answer."""
        body = {"model": "agentstream", "stream": stream, "messages": [{"role": "user", "content": text}]}
        return self.call("/v1/chat/completions", body, key)

    def starts(self) -> Counter[str]:
        """Return how often each question was given to the agent."""
        command = ("redis-cli", "--json", "SMEMBERS", STARTS)
        found: list[str] = json.loads(self.compose("exec", "--no-TTY", "redis", *command))
        return Counter(start.rpartition(" ")[0] for start in found)

    @contextlib.contextmanager
    def load(self, clients: int = CLIENTS) -> Iterator[Load]:
        """Let clients ask while the block runs. Leaving the block waits for their answers."""
        process = subprocess.Popen(
            [*self.machine.clients, sys.executable, "-m", "tests.compose.load", self.url, "--clients", str(clients)],
            cwd=ROOT,
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        load = Load(process)
        try:
            yield load
            load.stop()
        finally:
            process.kill()
            process.wait()

    def until_asked(self, load: Load, more: int = 2 * CLIENTS) -> None:
        """Wait until the agent got this many more questions. Redis may be restarting meanwhile."""
        assert load.process.poll() is None
        self.until(lambda: self._count() >= 0, "Redis answers")
        before = self._count()
        self.until(lambda: self._count() >= before + more, f"{more} more questions were asked")

    def _count(self) -> int:
        """Return how many questions the agent got, or -1 if Redis does not answer."""
        command = ("docker", "compose", "exec", "--no-TTY", "redis", "redis-cli", "-e", "SCARD", STARTS)
        done = self.try_run(*command)
        return -1 if done.returncode else int(done.stdout.split()[-1])

    def image_id(self, tag: str = "") -> str:
        """Return the id of the image of front ends and workers."""
        return self.run("docker", "image", "inspect", "--format", "{{.Id}}", self.image + tag).strip()

    def dangling_images(self) -> str:
        """Return the ids of images without a name."""
        return self.run("docker", "image", "ls", "--quiet", "--filter", "dangling=true").strip()

    def until(self, probe: Callable[[], object], what: str, wait_s: float = WAIT_S) -> None:
        """Wait until ``probe`` is true."""
        deadline = time.monotonic() + wait_s
        while not probe():
            assert time.monotonic() < deadline, f"waited {wait_s} s until {what}"
            time.sleep(0.5)
