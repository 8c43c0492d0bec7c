"""``agentstream doctor`` on real servers: it names planted faults, and its advice fixes them."""

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
from tests.doctor_report import complaints, findings
from tests.processes import ROOT, Processes

PASSWORDLESS = "user default on nopass ~* &* +@all\n"  # for the tests: the shipped file disables this user

Checks = dict[str, dict[str, Any]]


class BufferingNginx(Proxy):
    """The shipped nginx, without the lines that make it pass streams at once."""

    def configuration(self, port: int, frontends: Sequence[str], folder: Path) -> str:
        """Return the file with buffering on. nginx also ignores the header with which front ends switch it off."""
        text = super().configuration(port, frontends, folder)
        careless = {
            "proxy_buffering off;": "proxy_ignore_headers X-Accel-Buffering;",
            "proxy_http_version 1.1;": "proxy_http_version 1.0;",  # with 1.1 nginx passes buffered bytes on (measured)
        }
        for careful, line in careless.items():
            assert careful in text
            text = text.replace(careful, line)
        return text


BUFFERING = BufferingNginx(**{field.name: getattr(NGINX, field.name) for field in fields(Proxy)})


@dataclass(frozen=True)
class Server:
    """The test's own Redis, with a worker on it and the means to start front ends."""

    url: str
    queue: str
    redis: Redis
    processes: Processes

    async def doctor(self, *arguments: str, **environment: str) -> CommandResult:
        """Run the command until it ends."""
        return await agentstream(
            "doctor", *arguments, **{"REDIS_URL": self.url, "AGENTSTREAM_QUEUE": self.queue, **environment}
        )

    async def checks(self, *arguments: str, **environment: str) -> Checks:
        """Return the checks in the output of ``--json``, by name."""
        ended = await self.doctor("--json", *arguments, **environment)
        report = json.loads(ended.out)
        assert ended.code == (1 if report["faults"] else 0), ended
        return {check["name"]: check for check in report["checks"]}


def faults(checks: Checks) -> set[str]:
    """Return the names of the checks that found a fault."""
    return {name for name, check in checks.items() if check["level"] == "fault"}


@pytest.fixture(params=SERVERS, ids=lambda choice: choice.executable.name)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    """Run a server with the shipped users, an append-only file and a memory limit, and a worker on it."""
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


async def test_three_planted_faults_are_named_and_fixed(server: Server, tmp_path: Path) -> None:
    """The doctor names a missing append-only file, allkeys-lru and a buffering nginx, and its advice fixes them."""
    frontend = await server.processes.frontend()
    await server.redis.config_set("appendonly", "no")
    await server.redis.config_set("maxmemory-policy", "allkeys-lru")
    (tmp_path / "buffering").mkdir()
    async with run_proxy(BUFFERING, [frontend], tmp_path / "buffering") as url:
        checks = await server.checks("--url", url)
        assert faults(checks) == {"append-only file", "eviction", "stream"}
        result = await server.doctor("--url", url)
    assert result.code == 1
    assert "faults: 3" in result.out
    assert "proxy_buffering off;" in result.out
    for name in ("append-only file", "eviction"):
        command = shlex.split(checks[name]["fix"][0])
        assert command[:2] == ["CONFIG", "SET"]
        await server.redis.config_set(*command[2:])
    async with run_proxy(NGINX, [frontend], tmp_path) as url:
        result = await server.doctor("--json", "--url", url)
    assert (result.code, complaints(result.out)) == (0, {})


async def test_the_doctor_removes_its_run(server: Server) -> None:
    """The stream check leaves no run and no job behind, with or without an API key."""
    frontend = await server.processes.frontend(AGENTSTREAM_API_KEYS="key")
    assert faults(await server.checks("--url", frontend, AGENTSTREAM_API_KEYS="key")) == set()
    assert faults(await server.checks("--url", frontend)) == {"stream"}
    assert await server.redis.keys("agentstream:{*") == []
    assert await server.redis.xlen(f"agentstream:jobs:{server.queue}") == 0


async def test_a_front_end_on_another_redis_is_reported(server: Server, broker_url: str) -> None:
    """If a front end uses another Redis, the doctor reports that it does not know the run, and names REDIS_URL."""
    frontend = await server.processes.frontend(REDIS_URL=broker_url)
    stream = (await server.checks("--url", frontend))["stream"]
    assert "does not know a run" in stream["what"]
    assert "REDIS_URL" in stream["fix"][0]


async def test_an_unreachable_front_end_is_reported(server: Server, unused_tcp_port: int) -> None:
    """A URL on which nothing listens is a fault, and the checks of Redis still run."""
    checks = await server.checks("--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert faults(checks) == {"stream"}
    assert "cannot connect" in checks["stream"]["what"]


async def test_a_queue_without_workers_is_reported(server: Server) -> None:
    """A queue without a worker is a fault with the queue's name, and a queue with a worker is not."""
    checks = await server.checks("--queues", f"{server.queue},lonely")
    assert faults(checks) == {"workers of lonely"}
    assert "--queues lonely" in checks["workers of lonely"]["fix"][0]


async def test_a_restricted_user_gets_unknown_values(server: Server) -> None:
    """Values that the frontend user may not read are unknown and no fault, the other checks run, and ps works."""
    user = server.url.replace("//", "//frontend:CHANGE-ME-frontend@")
    frontend = await server.processes.frontend(REDIS_URL=user)
    checks = await server.checks("--url", frontend, REDIS_URL=user)
    unknown = {name for name, check in checks.items() if check["level"] == "unknown"}
    assert unknown == {"version", "role", "append-only file", "eviction", "memory", "output buffer"}
    assert unknown == findings(checks).keys()
    assert "operator" in checks["memory"]["fix"][0]
    ended = await agentstream("ps", REDIS_URL=user, AGENTSTREAM_QUEUE=server.queue)
    assert ended.code == 0, ended


async def test_the_operators_user_suffices(server: Server) -> None:
    """With the shipped operator user every check succeeds, and ps works."""
    user = server.url.replace("//", "//operator:CHANGE-ME-operator@")
    frontend = await server.processes.frontend()
    checks = await server.checks("--url", frontend, REDIS_URL=user)
    assert findings(checks) == {}
    ended = await agentstream("ps", REDIS_URL=user, AGENTSTREAM_QUEUE=server.queue)
    assert ended.code == 0, ended


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "KEYS *", "CONFIG SET save x", "XDEL agentstream:jobs:q 0-1", "SHUTDOWN"]
)
async def test_the_operators_user_cannot_change_the_server(server: Server, command: str) -> None:
    """The operator user may read the server, but may change neither the server nor its jobs."""
    user = server.url.replace("//", "//operator:CHANGE-ME-operator@")
    async with Redis.from_url(user) as redis:
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command.split())  # type: ignore[no-untyped-call]


async def test_a_wrong_password_is_refused(server: Server) -> None:
    """If Redis refuses the password, the command exits with 4 and does not print the password."""
    ended = await server.doctor(REDIS_URL=server.url.replace("//", "//operator:hunter2@"))
    assert ended.code == 4
    assert "hunter2" not in ended.out + ended.err


async def test_the_workers_of_a_queue_are_counted_once(tmp_path: Path) -> None:
    """The checks of the workers and of the jobs of a queue share one reading of the queue."""
    async with run_server(SERVERS[0], tmp_path) as port:
        report = await agentstream("doctor", "--json", REDIS_URL=f"redis://127.0.0.1:{port}")
        assert {"workers of default", "jobs of default"} <= {
            check["name"] for check in json.loads(report.out)["checks"]
        }
        async with Redis(port=port) as redis:
            stats = await redis.info("commandstats")
    assert stats["cmdstat_zcount"]["calls"] == 1
