"""``agentstream doctor`` on real servers: planted faults are named, and what it says to do mends them."""

import json
import shlex
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from agentstream.processes.broker import ServerChoice
from tests.cli.conftest import CommandResult, agentstream
from tests.deploy.proxies import NGINX, Proxy, run_proxy
from tests.deploy.servers import SERVERS, run_server
from tests.processes import ROOT, Processes

PASSWORDLESS = "user default on nopass ~* &* +@all\n"  # the test's own: the shipped file has this user off

Told = dict[str, dict[str, Any]]


class BufferingNginx(Proxy):
    """The shipped nginx without what makes it fit for streams."""

    def configuration(self, port: int, frontends: Sequence[str], folder: Path) -> str:
        """Return the file with nginx's own defaults, and the front ends' objection to them ignored."""
        text = super().configuration(port, frontends, folder)
        careless = {
            "proxy_buffering off;": "proxy_ignore_headers X-Accel-Buffering;",
            "proxy_http_version 1.1;": "proxy_http_version 1.0;",  # 1.1 hands on what it buffers (measured)
        }
        for careful, line in careless.items():
            assert careful in text
            text = text.replace(careful, line)
        return text


BUFFERING = BufferingNginx(**{field.name: getattr(NGINX, field.name) for field in fields(Proxy)})


@dataclass(frozen=True)
class Server:
    """A Redis of the test's own, and a front end with a worker on it."""

    url: str
    queue: str
    redis: Redis
    processes: Processes

    async def doctor(self, *arguments: str, **environment: str) -> CommandResult:
        """Run the command to its end."""
        return await agentstream(
            "doctor", *arguments, **{"REDIS_URL": self.url, "AGENTSTREAM_QUEUE": self.queue, **environment}
        )

    async def told(self, *arguments: str, **environment: str) -> Told:
        """Return the checks of ``--json`` by their names."""
        ended = await self.doctor("--json", *arguments, **environment)
        told = json.loads(ended.out)
        assert ended.code == (1 if told["faults"] else 0), ended
        return {check["name"]: check for check in told["checks"]}


def faults(told: Told) -> set[str]:
    """Return the names of the faults."""
    return {name for name, check in told.items() if check["level"] == "fault"}


@pytest.fixture(params=SERVERS, ids=lambda choice: choice.executable.name)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the shipped users, an append-only file and a limit of memory, and a deployment on it."""
    choice: ServerChoice = request.param
    users = tmp_path / "users.acl"
    shipped = (ROOT / "deploy/redis-users.acl").read_text()
    users.write_text(shipped.replace("user default off\n", PASSWORDLESS))
    async with run_server(choice, tmp_path, "--aclfile", str(users), "--appendonly", "yes") as port:
        url = f"redis://127.0.0.1:{port}/0"
        async with Redis(port=port) as redis, Processes(url, tmp_path) as processes:
            used = (await redis.info("memory"))["used_memory"]
            await redis.config_set("maxmemory", 10 * used)
            await processes.worker()
            yield Server(url, processes.queue, redis, processes)


async def test_three_planted_faults_are_named_and_mended(server: Server, tmp_path: Path) -> None:
    """No append-only file, allkeys-lru and a buffering nginx are named, and silent once what it says is done."""
    frontend = await server.processes.frontend()
    await server.redis.config_set("appendonly", "no")
    await server.redis.config_set("maxmemory-policy", "allkeys-lru")
    (tmp_path / "buffering").mkdir()
    async with run_proxy(BUFFERING, [frontend], tmp_path / "buffering") as url:
        told = await server.told("--url", url)
        assert faults(told) == {"append-only file", "eviction", "stream"}
        said = await server.doctor("--url", url)
    assert said.code == 1
    assert "3 to mend" in said.out
    assert "proxy_buffering off;" in said.out
    for name in ("append-only file", "eviction"):
        command = shlex.split(told[name]["fix"][0])
        assert command[:2] == ["CONFIG", "SET"]
        await server.redis.config_set(*command[2:])
    async with run_proxy(NGINX, [frontend], tmp_path) as url:
        said = await server.doctor("--url", url)
    assert (said.code, said.out.splitlines()[-1]) == (0, "nothing is wrong"), said


async def test_what_it_writes_is_gone_afterwards(server: Server) -> None:
    """Looking at a stream leaves no run behind, with or without an API key, and disturbs no queue."""
    frontend = await server.processes.frontend(AGENTSTREAM_API_KEYS="key")
    assert faults(await server.told("--url", frontend, AGENTSTREAM_API_KEYS="key")) == set()
    assert faults(await server.told("--url", frontend)) == {"stream"}
    assert await server.redis.keys("agentstream:{*") == []
    assert await server.redis.xlen(f"agentstream:jobs:{server.queue}") == 0


async def test_a_front_end_on_another_redis_is_told(server: Server, broker_url: str) -> None:
    """A front end that does not know the run is one of another Redis: it says what to compare."""
    frontend = await server.processes.frontend(REDIS_URL=broker_url)
    stream = (await server.told("--url", frontend))["stream"]
    assert "does not know a run" in stream["what"]
    assert "REDIS_URL" in stream["fix"][0]


async def test_a_front_end_that_is_not_there_is_told(server: Server, unused_tcp_port: int) -> None:
    """Nothing behind the URL is a fault like others, beside what is found in Redis."""
    told = await server.told("--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert faults(told) == {"stream"}
    assert "nothing answers" in told["stream"]["what"]


async def test_an_idle_queue_is_told(server: Server) -> None:
    """A queue without a worker is a fault under its name; one with a worker is not."""
    told = await server.told("--queues", f"{server.queue},lonely")
    assert faults(told) == {"workers of lonely"}
    assert "--queues lonely" in told["workers of lonely"]["fix"][0]


async def test_a_restricted_user_is_told_what_is_unknown(server: Server) -> None:
    """What the front end's user may not read is unknown and no fault, all the rest is still looked at, and ps works."""
    user = server.url.replace("//", "//frontend:CHANGE-ME-frontend@")
    frontend = await server.processes.frontend(REDIS_URL=user)
    told = await server.told("--url", frontend, REDIS_URL=user)
    unknown = {name for name, check in told.items() if check["level"] == "unknown"}
    assert unknown == {"version", "role", "append-only file", "eviction", "memory", "output buffer"}
    assert told["stream"]["level"] == told["latency"]["level"] == "ok"
    assert "operator" in told["memory"]["fix"][0]
    ended = await agentstream("ps", REDIS_URL=user, AGENTSTREAM_QUEUE=server.queue)
    assert ended.code == 0, ended


async def test_the_operators_user_suffices(server: Server) -> None:
    """With the shipped operator's user nothing is unknown, and ps works."""
    user = server.url.replace("//", "//operator:CHANGE-ME-operator@")
    frontend = await server.processes.frontend()
    told = await server.told("--url", frontend, REDIS_URL=user)
    assert {check["level"] for check in told.values()} == {"ok"}
    ended = await agentstream("ps", REDIS_URL=user, AGENTSTREAM_QUEUE=server.queue)
    assert ended.code == 0, ended


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "KEYS *", "CONFIG SET save x", "XDEL agentstream:jobs:q 0-1", "SHUTDOWN"]
)
async def test_the_operators_user_governs_nothing(server: Server, command: str) -> None:
    """The operator's user may look, and neither change the server nor touch its jobs."""
    user = server.url.replace("//", "//operator:CHANGE-ME-operator@")
    async with Redis.from_url(user) as redis:
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command.split())  # type: ignore[no-untyped-call]


async def test_a_wrong_password_is_refused(server: Server) -> None:
    """A password that Redis does not take ends with 4, and is not printed."""
    ended = await server.doctor(REDIS_URL=server.url.replace("//", "//operator:hunter2@"))
    assert ended.code == 4
    assert "hunter2" not in ended.out + ended.err
