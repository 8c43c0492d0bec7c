"""Checks of the image: its bytecode, its health check, images of users made from it, and starts that fail."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Final

from tests.compose.deployment import ROOT, Deployment

IMAGE: Final = "agentstream"
BASE: Final = "python:3.13-slim-trixie"
BARE_BASE: Final = "compose-test-bare-python"
BARE_IMAGE: Final = "compose-test-bare"
OWN_IMAGE: Final = "compose-test-own"

# Prints the modules of both processes that Python must compile at each start, and how it checks our own bytecode.
_WITHOUT_BYTECODE: Final = """
import json, os, sys
import agentstream.__main__, agentstream.frontend.serve, agentstream.worker.serve, agentstream.engines.openai
import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http.trace_exporter
found = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]
missing = [spec.name for spec in found if spec.cached and not os.path.exists(spec.cached)]
flags = {spec.name: open(spec.cached, "rb").read(8)[4] for spec in found if spec.name.startswith("agentstream.")}
checked = [name for name, flag in flags.items() if flag != 1]
print(json.dumps([len(found), missing, checked]))
"""
_AGENT: Final = """
import humanize
from agentstream import AgentResult, Run

async def agent(run: Run) -> AgentResult:
    return AgentResult("{word} " + humanize.intcomma(1234567))
"""


def bytecode_is_in_the_image(deployment: Deployment, image: str = "") -> None:
    """Every module that a front end or a worker imports has bytecode, which Python trusts without looking at times."""
    confined = ("--rm", "--read-only", "--cap-drop", "ALL", "--entrypoint", "python")
    run = ("docker", "run", *confined, image or deployment.image)
    count, missing, checked = json.loads(deployment.run(*run, "-c", _WITHOUT_BYTECODE).splitlines()[-1])
    assert count > 500, count
    assert missing == [], f"Python compiles these modules at each start: {missing[:5]} ({len(missing)})"
    assert checked == [], f"Python compares the time stamps of {checked[:5]} ({len(checked)})"


def bytecode_is_made_if_the_base_has_none(deployment: Deployment) -> None:
    """The same holds if the base image has no bytecode, as the official image of Python."""
    folder = deployment.folder / "bare"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(f"FROM {BASE}\nRUN find / -xdev -name '*.pyc' -delete\n")
    deployment.run("docker", "build", "--tag", BARE_BASE, str(folder))
    try:
        base = ("--build-arg", f"PYTHON_IMAGE={BARE_BASE}")
        deployment.run("docker", "build", *base, "--file", "deploy/Dockerfile", "--tag", BARE_IMAGE, ".")
        bytecode_is_in_the_image(deployment, BARE_IMAGE)
    finally:
        deployment.try_run("docker", "image", "rm", BARE_IMAGE, BARE_BASE)


def the_health_check_asks_the_process(deployment: Deployment) -> None:
    """Front ends and workers have the image's check. It reads the flags of the process, and fails with the reason."""
    for service in ("frontend", "worker"):
        container = deployment.containers(service)[0]
        assert deployment.inspect(container, "{{json .Config.Healthcheck.Test}}") == '["CMD","agentstream-healthcheck"]'
        assert deployment.inspect(container, "{{.State.Health.Status}}") == "healthy"
    with _one_more(deployment, "frontend", "frontend", "--port", "9000") as container:
        deployment.until(lambda: _check(deployment, container)[0] == 0, "the check asks the port of the flag")
        nothing = _check(deployment, container, "AGENTSTREAM_METRICS_PORT=9", "worker")
        assert nothing == (1, "nothing listens on 127.0.0.1 port 9")


def an_image_of_a_user_runs_its_agent(deployment: Deployment) -> None:
    """The Dockerfile of the guide adds a package and an agent, and a newer image replaces the agent."""
    folder = deployment.folder / "own"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(_dockerfile_of_the_guide(deployment.image))
    (folder / "requirements.txt").write_text("humanize\n")
    try:
        for word in ("first", "second"):
            (folder / "my_agent.py").write_text(_AGENT.replace("{word}", word))
            (folder / "my_agent.py").chmod(0o600)  # as some editors and umasks leave it
            deployment.run("docker", "build", "--tag", OWN_IMAGE, str(folder))
            bytecode_is_in_the_image(deployment, OWN_IMAGE)
            deployment.up(AGENT_DIR="", AGENTSTREAM_AGENT="my_agent:agent", AGENT_IMAGE=OWN_IMAGE)
            status, answer = deployment.ask("hi", stream=False)
            assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, f"{word} 1,234,567"), (
                answer
            )
    finally:
        deployment.up()
        deployment.try_run("docker", "image", "rm", OWN_IMAGE)


def an_agent_that_cannot_be_read_is_explained(deployment: Deployment) -> None:
    """A folder with mode 700, or a missing module, gives one line with the user and the folder, and no fast restart."""
    folder = deployment.folder / "agents"
    try:
        folder.chmod(0o700)
        with _failing_worker(deployment) as line:
            assert "this process runs as user 10001 and may not read /agents, a folder of user " in line, line
            assert "run chmod -R a+rX on it (in a container: on the folder that is mounted there)" in line, line
    finally:
        folder.chmod(0o755)
    try:
        with _failing_worker(deployment, AGENTSTREAM_AGENT="nowhere:agent") as line:
            assert "No module named 'nowhere' (searched /agents first); the modules in /agents are " in line, line
    finally:
        deployment.up()


def wrong_names_are_warned_about(deployment: Deployment) -> None:
    """A wrong name AGENTSTREAM_… in .env gives one warning in each container, and empty variables give none."""
    env = deployment.folder / ".env"
    before = env.read_text() if env.exists() else None
    env.write_text(
        "AGENTSTREAM_PROT=1\nAGENTSTREAM_LOG_LEVEL=\nOPENAI_BASE_URL=\nOTEL_TRACES_SAMPLER=\nCOMPOSE_PROFILES=\n"
    )
    try:
        deployment.up()
        for service in ("frontend", "worker"):
            for container in deployment.containers(service):
                log = deployment.run("docker", "logs", container)
                warnings = [line for line in log.splitlines() if " WARNING " in line]
                assert len(warnings) == 1, warnings
                assert "AGENTSTREAM_PROT is not a setting; did you mean AGENTSTREAM_PORT?" in warnings[0]
    finally:
        env.unlink() if before is None else env.write_text(before)
        deployment.up()


CHECKS: Final[tuple[Callable[[Deployment], None], ...]] = (
    bytecode_is_in_the_image,
    bytecode_is_made_if_the_base_has_none,
    the_health_check_asks_the_process,
    an_image_of_a_user_runs_its_agent,
    an_agent_that_cannot_be_read_is_explained,
    wrong_names_are_warned_about,
)


def _dockerfile_of_the_guide(image: str) -> str:
    """Return the guide's Dockerfile for the image under test, which may have another name."""
    guide = (ROOT / "deploy/guides/operations.md").read_text()
    found = re.search(r"```dockerfile\n(FROM agentstream\n.*?)```", guide, re.DOTALL)
    assert found, "the guide has no Dockerfile"
    return found[1].replace("FROM agentstream", f"FROM {image}")


@contextlib.contextmanager
def _one_more(deployment: Deployment, service: str, *command: str, **variables: str) -> Iterator[str]:
    """Run one more container of a service with another command. Yield its id."""
    flags = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    run = ("run", "--detach", "--no-deps", "--quiet-pull", *flags, service, *command)
    container = deployment.compose(*run, **variables).split()[-1]
    try:
        yield container
    finally:
        deployment.run("docker", "rm", "--force", container)


def _check(deployment: Deployment, container: str, *arguments: str) -> tuple[int, str]:
    """Run the health check in a container. Return its exit code and its output. Leading NAME=VALUE are variables."""
    variables = [part for pair in arguments if "=" in pair for part in ("--env", pair)]
    others = [argument for argument in arguments if "=" not in argument]
    done = deployment.try_run("docker", "exec", *variables, container, "agentstream-healthcheck", *others)
    return done.returncode, done.stdout.strip()


@contextlib.contextmanager
def _failing_worker(deployment: Deployment, **variables: str) -> Iterator[str]:
    """Start workers that cannot start. Yield the line of one; it must wait, and end with code 2 when it is stopped."""
    deployment.compose("up", "--detach", "--no-deps", "worker", **variables)
    container = deployment.containers("worker")[0]
    log: list[str] = []

    def has_said_why() -> bool:
        log[:] = deployment.run("docker", "logs", container).splitlines()
        return any("exits in 60 s" in line for line in log)

    deployment.until(has_said_why, "the worker has said why it does not start")
    assert len(log) == 2, log
    yield log[0]
    assert deployment.inspect(container, "{{.State.Status}} {{.RestartCount}}") == "running 0"
    deployment.run("docker", "stop", container)
    assert deployment.inspect(container, "{{.State.ExitCode}}") == "2"
