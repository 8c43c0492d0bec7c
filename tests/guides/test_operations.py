"""The guides on operations, scaling and security: their commands run, and their units and secrets fit the service."""

import configparser
import re
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from agentstream.config import Settings, env_name
from agentstream.processes.broker import ServerChoice, find_server
from agentstream.processes.runtime import EXIT_WRONG_SETTINGS
from tests.deploy.servers import SERVERS, run_server
from tests.documents import (
    FREE_PORT,
    PYTHON,
    START_S,
    Document,
    answer,
    as_run_here,
    output,
    serving,
    shell,
    terminate,
    url_of,
    user,
)
from tests.helpers import texts
from tests.ports import free_port
from tests.processes import ROOT, Process

OPERATIONS = Document("deploy/guides/operations.md")
SCALING = Document("deploy/guides/scaling.md")
SECURITY = Document("deploy/guides/security.md")

# Tests that share a front end share its event loop too.
one_loop = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def running(command: str, folder: Path, **settings: str) -> AsyncIterator[Process]:
    """Run a command that does not end by itself, and end it with SIGTERM."""
    process = await shell(f"exec {as_run_here(command)}", folder, **settings)
    try:
        yield process
    finally:
        await process.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """The demo."""
    async with serving("agentstream up", tmp_path_factory.mktemp("up")) as process:
        yield process


def redis_url_of(up: Process) -> str:
    """Return the URL of the broker that ``agentstream up`` has printed."""
    match = re.search(r"(?m)^broker .*?REDIS_URL=(\S+)", up.output)
    assert match is not None
    return match[1]


async def background_run(url: str, question: str = "count to 5000") -> str:
    """Start a run in the background, and return its id."""
    body = {"model": "agentstream", "background": True, "messages": [user(question)]}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=body) as response:
        run_id: str = (await response.json())["id"]
        return run_id


# Deploy


class Unit(configparser.ConfigParser):
    """A systemd unit: its names have capitals."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.mark.parametrize(("mark", "printed"), [("frontend_unit", "serving on"), ("worker_unit", "takes jobs of queue")])
async def test_a_systemd_unit_starts_its_process(mark: str, printed: str, broker_url: str, tmp_path: Path) -> None:
    """The command of the unit starts with the variables of the unit, and the time to stop is above that to drain."""
    (text,) = OPERATIONS.blocks(mark)
    unit = Unit(interpolation=None)
    unit.read_string(text.replace("%i", str(free_port())))
    service = unit["Service"]
    variables = dict(variable.split("=") for variable in service["Environment"].split())
    assert set(variables) <= {env_name(field) for field in Settings.model_fields}
    assert float(service["TimeoutStopSec"]) > float(variables["AGENTSTREAM_DRAIN_TIMEOUT_S"])
    assert int(service["RestartPreventExitStatus"]) == EXIT_WRONG_SETTINGS
    folder, _, command = service["ExecStart"].rpartition("/bin/")
    assert f"python3 -m venv {folder}\n" in OPERATIONS.text
    async with running(command, tmp_path, **variables, REDIS_URL=broker_url) as process:
        await process.until(printed, START_S)


def test_the_secrets_are_those_of_the_manifests() -> None:
    """The commands make every secret that the manifests require, with the keys that they read."""
    (commands,) = OPERATIONS.blocks("kubernetes_secrets")
    made = set()
    for command in commands.replace("\\\n", "").splitlines():
        words = shlex.split(command)
        keys = [word.removeprefix("--from-literal=").partition("=")[0] for word in words if "--from-literal=" in word]
        made |= {(words[4], key) for key in keys}
    required = set()
    for name in ("frontend", "worker"):
        manifest = (ROOT / f"deploy/kubernetes/{name}.yaml").read_text(encoding="utf-8")
        for document in yaml.safe_load_all(manifest):
            if document["kind"] == "Deployment":
                variables = document["spec"]["template"]["spec"]["containers"][0]["env"]
                references = [variable.get("valueFrom", {}).get("secretKeyRef", {}) for variable in variables]
                required |= {(ref["name"], ref["key"]) for ref in references if ref and not ref.get("optional")}
    assert made == required


def test_keda_replaces_the_autoscaler() -> None:
    """The commands delete the autoscaler of the manifests, and apply one of the files for KEDA."""
    (commands,) = OPERATIONS.blocks("keda")
    _, delete, apply = (shlex.split(command) for command in commands.replace("\\\n", "").splitlines())
    worker = yaml.safe_load_all((ROOT / "deploy/kubernetes/worker.yaml").read_text(encoding="utf-8"))
    assert delete[-1] in [each["metadata"]["name"] for each in worker if each["kind"] == "HorizontalPodAutoscaler"]
    assert (ROOT / apply[-1]).exists()


# Operate


@one_loop
async def test_the_front_end_is_ready(up: Process, tmp_path: Path) -> None:
    """The command prints that the front end is ready, with the number of workers."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH")
    (command,) = OPERATIONS.blocks("health")
    assert '"workers": 2' in await output(f"{as_run_here(command, url_of(up))} -sS", tmp_path)


@one_loop
async def test_runs_are_listed_followed_and_cancelled(up: Process, tmp_path: Path) -> None:
    """The commands list a run, follow it, and cancel it, after which it is not listed any more."""
    (ps,), (tail,), (cancel,) = (OPERATIONS.blocks(mark) for mark in ("ps", "tail", "cancel"))
    settings = {"REDIS_URL": redis_url_of(up), "AGENTSTREAM_URL": url_of(up)}
    run_id = await background_run(url_of(up))
    assert run_id in await output(as_run_here(ps), tmp_path, **settings)
    async with running(tail.replace("RUN", run_id), tmp_path, **settings) as following:
        assert "cancelled" in await output(as_run_here(cancel.replace("RUN", run_id)), tmp_path, **settings)
        assert await following.ended(START_S) == 1
    assert run_id not in await output(as_run_here(ps), tmp_path, **settings)


@one_loop
async def test_a_question_is_answered(up: Process, tmp_path: Path) -> None:
    """The command approves the tool that a run waits for, and the run goes on to its end."""
    (ps,), (tail,), (approve,) = (OPERATIONS.blocks(mark) for mark in ("ps", "tail", "answer"))
    settings = {"REDIS_URL": redis_url_of(up), "AGENTSTREAM_URL": url_of(up)}
    run_id = await background_run(url_of(up), "send a postcard to Ada: greetings from Oslo")
    async with running(tail.replace("RUN", run_id), tmp_path, **settings) as following:
        await following.until("to answer it: agentstream answer")
        assert re.search(r"1 approval \((23h59m|24h00m)\)", await output(as_run_here(ps), tmp_path, **settings))
        assert run_id in await output(as_run_here(approve.replace("RUN", run_id)), tmp_path, **settings)
        assert await following.ended(START_S) == 0
    assert "Done: " in following.output


@one_loop
async def test_doctor_checks_redis_and_the_address(up: Process, tmp_path: Path) -> None:
    """The command reports that nothing buffers streams, and reports the faults of the private broker."""
    (command,) = OPERATIONS.blocks("doctor")
    process = await shell(as_run_here(command, url_of(up)), tmp_path, REDIS_URL=redis_url_of(up))
    assert await process.ended(START_S) in {0, 1}  # 1: the demo's broker stores nothing on disk
    assert re.search(r"(?m)^ok +stream +a piece arrives", process.output), process.output


async def test_config_masks_secrets(tmp_path: Path) -> None:
    """The command prints every setting, and no key."""
    (command,) = OPERATIONS.blocks("config")
    shown = await output(as_run_here(command), tmp_path, AGENTSTREAM_API_KEYS="sk-secret")
    assert [line.split()[0] for line in shown.splitlines()] == [env_name(field) for field in Settings.model_fields]
    assert "sk-secret" not in shown


async def test_a_checkout_prints_traces(tmp_path: Path) -> None:
    """The commands print the trace of a run, with the spans of front end and worker."""
    (commands,) = OPERATIONS.blocks("traces")
    port = free_port()
    commands = commands.replace(".venv/bin/python -m tests.telemetry", f"{PYTHON} -m tests.telemetry {port}")
    process = await shell(as_run_here(commands.replace("4318", str(port))), tmp_path, **FREE_PORT)
    try:
        await process.until(r"serving +http://\S+", START_S)
        assert texts(await answer(url_of(process), "agentstream", user("count to 2"))) == ["1", " 2"]
        await process.until(r"(?m)^trace \w+: \d+ spans of 2 processes", START_S)
        await process.until(r"invoke_agent orchestrator")
    finally:
        await terminate(process)


# Scale


async def test_front_ends_share_a_port(broker_url: str, tmp_path: Path) -> None:
    """The command starts four front ends on one port."""
    (command,) = SCALING.blocks("processes")
    async with running(command, tmp_path, REDIS_URL=broker_url, **FREE_PORT) as process:
        await process.until(r"frontend 4 +pid", START_S)


async def test_workers_are_several(broker_url: str, tmp_path: Path) -> None:
    """The command starts two workers."""
    (command,) = SCALING.blocks("worker_processes")
    async with running(command, tmp_path, REDIS_URL=broker_url) as process:
        await process.until(r"worker 2 +pid", START_S)


async def test_queues_are_served(broker_url: str, tmp_path: Path) -> None:
    """The front end starts with the map of agents, and the worker takes jobs of its own queue only."""
    (front_end,), (worker,) = SCALING.blocks("queues"), SCALING.blocks("queues_worker")
    agent = "from agentstream import AgentResult\n\ndef research(run): return AgentResult('found')\n"
    (tmp_path / "my_agents.py").write_text(agent, encoding="utf-8")
    async with (
        serving_lines(front_end, tmp_path, REDIS_URL=broker_url, **FREE_PORT) as serving_process,
        serving_lines(worker, tmp_path, REDIS_URL=broker_url) as working,
    ):
        url = (await serving_process.until(r"serving on (http://[^\s\"]+)", START_S))[1]
        await working.until(r"takes jobs of queue 'research'\s", START_S)
        assert texts(await answer(url, "researcher", user("?"))) == ["found"]


async def test_a_deployment_has_its_own_prefix(tmp_path: Path) -> None:
    """The worker of the guide starts, and every name that it stores begins with the prefix."""
    (commands,) = SCALING.blocks("key_prefix")
    async with run_server(find_server(), tmp_path) as port, Redis(port=port) as redis:
        commands = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", commands)
        async with serving_lines(commands, tmp_path) as process:
            await process.until(r"takes jobs of queue", START_S)
            names = [name.decode() async for name in redis.scan_iter()]
    assert sorted(names) == ["team-a:jobs:default", "team-a:workers:default"]


@asynccontextmanager
async def serving_lines(commands: str, folder: Path, **settings: str) -> AsyncIterator[Process]:
    """Run a block whose last line does not end by itself."""
    first, _, last = commands.strip().rpartition("\n")
    process = await shell(f"{first}\n{as_run_here(last).replace(PYTHON, f'exec {PYTHON}', 1)}", folder, **settings)
    try:
        yield process
    finally:
        await process.stop()


@pytest.mark.parametrize("choice", SERVERS, ids=lambda choice: choice.executable.name)
async def test_a_socket_is_used(choice: ServerChoice, tmp_path: Path) -> None:
    """A server and a worker with these lines serve over the socket, also after the server has started again."""
    (lines,), (commands,) = OPERATIONS.blocks("socket"), OPERATIONS.blocks("socket_url")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        options = re.sub(r"(?m)^(?=\w)", "--", lines.partition("\n")[2]).replace("/run/redis", folder).split()
        commands = commands.replace("/run/redis", folder)
        (url,) = re.findall(r"REDIS_URL=(\S+)", commands)
        async with AsyncExitStack() as stack:
            async with run_server(choice, tmp_path, *options):
                worker = await stack.enter_async_context(serving_lines(commands, tmp_path))
                front_end = await stack.enter_async_context(
                    running("agentstream frontend", tmp_path, REDIS_URL=url, **FREE_PORT)
                )
                await worker.until(r"takes jobs of queue", START_S)
                address = (await front_end.until(r"serving on (http://[^\s\"]+)", START_S))[1]
                assert "391" in "".join(texts(await answer(address, "m", user("what is 17*23?"))))
            for process in (worker, front_end):
                await process.until(r"the connection to the broker was lost")
            async with run_server(choice, tmp_path, *options):
                assert "391" in "".join(texts(await answer(address, "m", user("what is 17*23?"))))


@pytest.mark.parametrize("choice", SERVERS, ids=lambda choice: choice.executable.name)
async def test_the_output_buffer_is_set(choice: ServerChoice, tmp_path: Path) -> None:
    """The server accepts the command, and has the limit then."""
    (command,) = SCALING.blocks("output_buffer")
    words = shlex.split(command)
    assert words[:2] == ["redis-cli", "-u"]
    async with run_server(choice, tmp_path) as port, Redis(port=port) as redis:
        send: Callable[..., Awaitable[Any]] = redis.execute_command
        await send(*words[3:])
        limits = (await redis.config_get("client-output-buffer-limit"))["client-output-buffer-limit"]
    assert f"pubsub {128 << 20} {32 << 20} 60" in str(limits)


# Secure


async def test_a_key_is_made(tmp_path: Path) -> None:
    """The command prints a key that the service accepts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on PATH")
    (command,) = SECURITY.blocks("key")
    key = (await output(command, tmp_path)).strip()
    assert len(key) == 64
    assert re.fullmatch(r"[0-9a-f]+", key)


async def test_redis_starts_with_the_users(tmp_path: Path) -> None:
    """A server with the options of the command has the users of the table, and the default user is off."""
    (command,) = SECURITY.blocks("redis_users")
    program, *options = shlex.split(command)
    assert program == "redis-server"
    users = (ROOT / "deploy/redis-users.acl").read_text(encoding="utf-8")
    (tmp_path / options[-1]).write_text(users.replace("CHANGE-ME-operator", "secret"), encoding="utf-8")
    async with run_server(find_server(), tmp_path, *options) as port:
        async with Redis(port=port, username="operator", password="secret") as redis:  # noqa: S106
            assert await redis.ping()
        with pytest.raises(Exception, match=r"(?i)auth|NOAUTH"):
            async with Redis(port=port) as redis:
                await redis.ping()
    listed = re.findall(r"(?m)^\| `(\w+)` \|", SECURITY.section("Redis users"))
    sentinels = (ROOT / "deploy/sentinel-users.acl").read_text(encoding="utf-8")
    assert listed == re.findall(r"(?m)^user (\w+) on ", users + sentinels)


async def test_users_of_a_prefix_suffice(tmp_path: Path) -> None:
    """The command makes a file whose users serve a deployment with the prefix, and are refused the default names."""
    (command,) = SECURITY.blocks("prefixed_users")
    (tmp_path / "users.acl").write_text((ROOT / "deploy/redis-users.acl").read_text(encoding="utf-8"), encoding="utf-8")
    await output(command, tmp_path)
    users = tmp_path / "team-a.acl"
    users.write_text(users.read_text(encoding="utf-8") + "user watching on nopass allcommands allkeys allchannels\n")
    async with run_server(find_server(), tmp_path, "--aclfile", str(users)) as port:
        urls = [f"redis://team-a-{who}:CHANGE-ME-{who}@127.0.0.1:{port}/0" for who in ("frontend", "worker")]
        prefix = {"AGENTSTREAM_KEY_PREFIX": "team-a"}
        async with (
            running("agentstream frontend", tmp_path, REDIS_URL=urls[0], **prefix, **FREE_PORT) as front_end,
            running("agentstream worker", tmp_path, REDIS_URL=urls[1], **prefix) as worker,
        ):
            url = (await front_end.until(r"serving on (http://[^\s\"]+)", START_S))[1]
            await worker.until(r"takes jobs of queue", START_S)
            assert "391" in "".join(texts(await answer(url, "m", user("what is 17*23?"))))
        async with Redis(port=port, username="watching", password="any", protocol=3) as redis:  # noqa: S106
            refused = {entry["object"] for entry in await redis.acl_log()}
        async with Redis.from_url(urls[0]) as redis:
            with pytest.raises(NoPermissionError):
                await redis.xlen("agentstream:jobs:default")
    assert refused <= {"client|setinfo"}
