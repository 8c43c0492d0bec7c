"""The users of deploy/redis-users.acl on a real server: their rights suffice for the service, and allow no more."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from agentstream.processes.broker import ServerChoice
from agentstream.telemetry import names as metric_names
from tests.brokers.cluster import ClusterServers
from tests.brokers.security import Security
from tests.brokers.sentinel import SentinelServers
from tests.brokers.server import Server
from tests.brokers.servers import Servers, executables
from tests.deploy.servers import SERVERS, run_server
from tests.faults.clients import AGENT, PATH, Client, http_client, request
from tests.faults.deployment import chat
from tests.faults.resume_agents import cancelled_at
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Processes
from tests.scrape import Scraper

USERS = ROOT / "deploy/redis-users.acl"
SENTINELS_USERS = ROOT / "deploy/sentinel-users.acl"
WATCHING = "user watching on nopass allcommands allkeys allchannels\n"  # only for these tests

# redis-py sends its own name and version and ignores a refusal. Redis before 7.2 cannot allow this command.
HARMLESS = "command client|setinfo"
CLIENT_OF_SENTINELS = "sentinel_username=client&sentinel_password=CHANGE-ME-client"


@dataclass(frozen=True)
class Broker:
    """A server with the shipped users."""

    port: int

    def url(self, user: str) -> str:
        """Return the URL with this user's credentials."""
        return f"redis://{user}:CHANGE-ME-{user}@127.0.0.1:{self.port}/0"

    async def refusals(self) -> list[str]:
        """Return the commands that the server has refused so far."""
        async with Redis(port=self.port, username="watching", password="any", protocol=3) as redis:  # noqa: S106
            return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in await redis.acl_log()]


@pytest.fixture(params=SERVERS, ids=lambda choice: choice.executable.name)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a server that loads the shipped file."""
    choice: ServerChoice = request.param
    users = tmp_path / "users.acl"
    users.write_text(USERS.read_text() + WATCHING)
    async with run_server(choice, tmp_path, "--aclfile", str(users)) as port:
        yield Broker(port)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client with an API key."""
    async with http_client() as anonymous:
        yield anonymous.using("key")


async def use_everything(urls: Mapping[str, str], client: Client, tmp_path: Path) -> None:
    """Use answers, streams, cancels, repeated requests, limits, a hand-back and a lost worker.

    ``urls`` has the REDIS_URL of each user.
    """
    gates = [tmp_path / f"gate{number}" for number in range(3)]
    limits = {"AGENTSTREAM_MAX_RUNS_PER_KEY": "20", "AGENTSTREAM_MAX_REQUESTS_PER_MINUTE": "100"}
    worker = {"PYTHONPATH": str(ROOT), "AGENTSTREAM_LEASE_S": "0.6", "AGENTSTREAM_DRAIN_TIMEOUT_S": "0.2"}
    async with (
        Processes(urls["frontend"], tmp_path) as frontends,
        Processes(urls["worker"], tmp_path) as workers,
    ):
        workers.queue = frontends.queue
        url = await frontends.frontend(AGENTSTREAM_API_KEYS="key", **limits)
        first = await workers.worker(AGENT, **worker)
        once, again = [await client.post(url, request(["answer", "fine"]), Idempotency_Key="one") for _ in range(2)]
        assert once == again
        assert await client.get(url, once[1]["id"]) == once
        async with client.streaming(url, request(["say", 1], ["gate", str(gates[0])])) as stream:
            await stream.until(b'"content":"0 ')
        async with asyncio.timeout(TIMEOUT_S):
            while not cancelled_at(gates[0]).exists():  # noqa: ASYNC110 -- another process makes it
                await asyncio.sleep(0.02)
        async with client.streaming(url, request(["gate", str(gates[1])], ["say", 1])) as stream:
            await stream.until(b'"role"')
            assert (await Scraper(url).reaches(metric_names.QUEUED)).of(metric_names.WAITING) >= 0
            await first.stop()  # it hands the run back
            second = await workers.worker(AGENT, **worker)
            await stream_begun(client, url)
            second.kill()
            await workers.worker(AGENT, **worker)
            gates[1].touch()
            assert b'"content":"0 ' in await stream.rest()


async def test_the_users_suffice(broker: Broker, client: Client, tmp_path: Path) -> None:
    """On one server everything that the service does works without a refusal."""
    await use_everything({user: broker.url(user) for user in ("frontend", "worker")}, client, tmp_path)
    assert set(await broker.refusals()) <= {f"worker: {HARMLESS}"}


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
async def test_the_users_suffice_on_several_servers(kind: str, client: Client, tmp_path: Path) -> None:
    """With sentinels and in a cluster everything that the service does works without a refusal."""
    options = with_shipped_users()
    servers: Servers
    if kind == "cluster":
        servers = ClusterServers(**options)
    else:
        servers = SentinelServers(sentinel_login=sentinels_users(), **options)
    async with servers:
        urls = {user: servers.url_as(Security(user, f"CHANGE-ME-{user}")) for user in ("frontend", "worker")}
        if isinstance(servers, SentinelServers):
            admin = "sentinel_username=watching&sentinel_password=any"
            urls = {user: url.replace(admin, CLIENT_OF_SENTINELS) for user, url in urls.items()}
            assert all(CLIENT_OF_SENTINELS in url for url in urls.values())
        await use_everything(urls, client, tmp_path)
        assert await refusals_of(servers) == set()


async def test_the_users_suffice_for_people(broker: Broker, client: Client, tmp_path: Path) -> None:
    """Runs that wait for an answer, that nobody answers, and that take messages work without a refusal."""
    worker = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/faults'}", "AGENTSTREAM_LEASE_S": "0.6"}
    async with (
        Processes(broker.url("frontend"), tmp_path) as frontends,
        Processes(broker.url("worker"), tmp_path) as workers,
    ):
        workers.queue = frontends.queue
        url = await frontends.frontend(AGENTSTREAM_API_KEYS="key", AGENTSTREAM_MAX_RUNS_PER_KEY="20")
        await workers.worker("asking_agents:asking", **worker)
        _, asked = await client.post(url, chat("once"))
        answers = {"answers": {"approval-1": {"approve": True}}}
        status, answer = await client.call("POST", f"{url}{PATH}/{asked['id']}/resume", answers)
        assert (status, answer["status"]) == (200, "completed")
        _, forgotten = await client.post(url, chat("briefly"))
        async with asyncio.timeout(TIMEOUT_S):
            while (await client.get(url, forgotten["id"]))[1]["status"] != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        _, cancelled = await client.post(url, chat("once"))
        assert (await client.call("POST", f"{url}{PATH}/{cancelled['id']}/cancel"))[1]["status"] == "cancelled"
    assert set(await broker.refusals()) <= {f"worker: {HARMLESS}"}


async def test_the_users_suffice_at_the_limit_of_a_key(broker: Broker, client: Client, tmp_path: Path) -> None:
    """A key that has all of its runs open gets 429 and not an error of Redis."""
    async with Processes(broker.url("frontend"), tmp_path) as frontends:
        url = await frontends.frontend(AGENTSTREAM_API_KEYS="key", AGENTSTREAM_MAX_RUNS_PER_KEY="1")
        assert [(await client.post(url, request(background=True)))[0] for _ in range(2)] == [200, 429]
    assert await broker.refusals() == []


async def test_users_of_an_earlier_version_lose_only_one_metric(broker: Broker, client: Client, tmp_path: Path) -> None:
    """A front end without the right to XINFO GROUPS still serves, is ready, and reports the waiting jobs as unknown."""
    async with Redis(port=broker.port, username="watching", password="any", protocol=3) as redis:  # noqa: S106
        await redis.acl_setuser("frontend", enabled=True, commands=["-xinfo|groups"])
    async with Processes(broker.url("frontend"), tmp_path) as frontends:
        url = await frontends.frontend(AGENTSTREAM_API_KEYS="key")
        assert (await client.post(url, request(background=True)))[0] == 200
        assert (await Scraper(url).get("/health/ready"))[0] == 200
        front = await Scraper(url).scrape()
    load = [front.of(name) for name in (metric_names.QUEUED, metric_names.WAITING, metric_names.OLDEST_WAITING_SECONDS)]
    assert load == [1, -1, -1]


async def stream_begun(client: Client, url: str) -> None:
    """Return when a worker has answered a new request. By then it has also had the chance to take waiting jobs."""
    assert (await client.post(url, request(["answer", "fine"])))[0] == 200


@pytest.mark.parametrize("user", ["frontend", "worker"])
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "CONFIG GET *", "GET other", "ACL LIST", "PUBLISH other x", "SHUTDOWN", "EVAL 0 0"],
)
async def test_other_commands_are_refused(broker: Broker, user: str, command: str) -> None:
    """A user of the service can neither clear, read nor control the server beyond the needs of the service."""
    async with Redis.from_url(broker.url(user), protocol=3) as redis:
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command.split())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("file", "names"),
    [(USERS, ["frontend", "worker", "operator", "replica", "sentinel"]), (SENTINELS_USERS, ["client", "sentinel"])],
    ids=["servers", "sentinels"],
)
def test_passwords_are_to_be_changed(file: Path, names: list[str]) -> None:
    """The passwords in a file are placeholders that ask to be changed, and the default user is off."""
    text = file.read_text()
    assert re.findall(r"(?m)^user (\w+) on >CHANGE-ME-(\w+) resetchannels ", text) == [(name, name) for name in names]
    assert text.count(">") == len(names)
    assert text.startswith("user default off\n")


def test_redis_6_can_load_the_users() -> None:
    """The files name no command that Redis 6.2 does not know: there the server would not start (measured)."""
    text = USERS.read_text() + SENTINELS_USERS.read_text()
    assert re.findall(r"[+-](s(?:un)?subscribe|spublish|client\|setinfo|cluster\|(?:shards|links))\b", text) == []


STORE = ROOT / "service/agentstream/store"
USERS_OF = {"submission.py": "frontend", "runs.py": "frontend", "queue.py": "worker", "admin/open_runs.py": "operator"}


@pytest.mark.parametrize(("module", "user"), USERS_OF.items())
def test_a_user_may_send_each_command_of_its_modules(module: str, user: str) -> None:
    """A user has the right to each command that a module of the store sends, itself or in a script."""
    (line,) = re.findall(rf"(?m)^user {user} .*$", USERS.read_text())
    allowed = set(re.findall(r"\+(\w+)", line)) | {"publish", "spublish"}  # these two come with @pubsub
    source = (STORE / module).read_text()
    sent = set(re.findall(r"call\(\s*\"([A-Z]+)\"", source))
    for script in re.findall(r"call_script\(\s*\"(\w+)\"", source):
        sent |= set(re.findall(r"redis\.p?call\('([A-Z]+)'", (STORE / f"lua/{script}.lua").read_text()))
    assert len(sent) > 1
    assert {command for command in sent if command.lower() not in allowed} == set()


# Sharded channels, sentinels and replication


def with_shipped_users() -> dict[str, Any]:
    """Return options for servers that have the shipped users, and use them among themselves."""
    users = tuple(line for line in USERS.read_text().splitlines() if not line.startswith("user default"))
    return {
        "security": Security(username="watching", password="any", users=users),  # noqa: S106
        "settings": ("masteruser replica", "masterauth CHANGE-ME-replica"),
    }


def sentinels_users() -> Security:
    """Return the login of an administrator at sentinels that have the shipped users."""
    users = tuple(line for line in SENTINELS_USERS.read_text().splitlines() if not line.startswith("user default"))
    return Security(username="watching", password="any", users=users)  # noqa: S106


async def refusals_of(servers: Servers) -> set[str]:
    """Return the commands that the servers have refused so far."""
    entries = []
    for node in servers.nodes:
        async with node.client(protocol=3) as redis:
            entries += await redis.acl_log()
    refused = {(entry["username"], f"{entry['reason']} {entry['object']}") for entry in entries}
    return {f"{user}: {what}" for user, what in refused if what != HARMLESS}


@contextlib.asynccontextmanager
async def logged_in(node: Server, user: str) -> AsyncIterator[Redis]:
    """Yield a client of a server with the login of a shipped user."""
    async with node.client(username=user, password=f"CHANGE-ME-{user}") as redis:
        yield redis


each_executable = pytest.mark.parametrize("name", executables())


@each_executable
async def test_the_users_suffice_for_a_cluster(name: str) -> None:
    """In a cluster the users ask for the slots and use the sharded channels of their prefix, and change nothing."""
    channel = "agentstream:{p7}:run:events"
    async with ClusterServers(executables()[name], replicas=1, **with_shipped_users()) as servers:
        node = await servers.primary_of(channel)
        for user in ("frontend", "worker", "operator"):
            async with logged_in(node, user) as redis, redis.pubsub() as pubsub:
                run: Any = redis.execute_command
                await pubsub.ssubscribe(channel)
                await pubsub.get_message(timeout=TIMEOUT_S)
                assert await run("SPUBLISH", channel, "x") == 1
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=TIMEOUT_S)
                assert message is not None
                assert message["data"] == "x"
                await pubsub.sunsubscribe(channel)
                assert await run("WAIT", 1, 1000) == 1
                for command in ("CLUSTER SLOTS", "CLUSTER INFO", "CLUSTER NODES", "CLUSTER MYID", "ROLE", "ASKING"):
                    await run(*command.split())
        assert await refusals_of(servers) == set()
        for command in (
            "CLUSTER RESET",
            "CLUSTER FAILOVER",
            "CLUSTER MEET 127.0.0.1 1",
            "SPUBLISH other x",
            "PUBSUB CHANNELS",
        ):
            async with logged_in(node, "worker") as redis:
                run = redis.execute_command
                with pytest.raises(NoPermissionError):
                    await run(*command.split())


@each_executable
async def test_the_users_suffice_for_sentinels(name: str) -> None:
    """The sentinels watch and promote servers with the shipped users, and their clients can only ask them."""
    login = sentinels_users()
    async with SentinelServers(executables()[name], sentinel_login=login, **with_shipped_users()) as servers:
        for sentinel in servers.sentinels:
            login_there = ("auth-user", "sentinel", "auth-pass", "CHANGE-ME-sentinel")
            await sentinel.call("SENTINEL", "SET", servers.master, *login_there)
            for setting, value in (("sentinel-user", "sentinel"), ("sentinel-pass", "CHANGE-ME-sentinel")):
                await sentinel.call("SENTINEL", "CONFIG", "SET", setting, value)
        old = await servers.primary()
        old.kill()
        await servers.wait_failover(old)
        await servers.restart(old)
        await servers.wait_ok()
        new = await servers.primary()  # a busy machine may have made the sentinels change the primary once more
        assert await refusals_of(servers) == set()
        users = {line.split("user=")[1].split()[0] for line in (await new.call("CLIENT", "LIST")).splitlines()}
        assert users == {"replica", "sentinel", "watching"}
        async with logged_in(servers.sentinels[0], "client") as redis:
            run: Any = redis.execute_command
            for question in ("GET-MASTER-ADDR-BY-NAME", "MASTER", "SENTINELS", "REPLICAS", "CKQUORUM"):
                await run("SENTINEL", question, servers.master)
            for command in ("SENTINEL FAILOVER x", "SENTINEL RESET *", "SENTINEL REMOVE x", "ACL LIST", "SHUTDOWN"):
                with pytest.raises(NoPermissionError):
                    await run(*command.split())
