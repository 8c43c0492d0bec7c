"""The processes of a benchmark: the broker, servers, workers and load generators, each bound to a core."""

import contextlib
import http.client
import json
import os
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import redis

from agentstream.protocol.keys import Keys
from tests.bench.machine import MEASURED_CORE, OTHER_CORE, Child, cpu_s, kernel_s

BIG = "100000"


class Server:
    """A measured server, and its load generator."""

    def __init__(self, child: Child, url: str, loadgen: Child) -> None:
        """``child`` is a server that listens at ``url``."""
        self.child = child
        self.url = url
        self.loadgen = loadgen

    def open(self, count: int, question: str = "hold") -> None:
        """Open ``count`` more streams."""
        self.loadgen.ask("open", url=self.url, count=count, question=question)

    def close(self) -> None:
        """Close all streams."""
        self.loadgen.ask("close")

    def post(self, path: str, **values: Any) -> Any:
        """Send a POST request with a JSON body and return the JSON answer, or None."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.netloc, timeout=60)
        connection.request("POST", path, json.dumps(values), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        connection.close()
        return json.loads(answer) if answer else None

    def answer(self, question: str) -> str:
        """Run the agent for one question and return the run id."""
        body = {"model": "agentstream", "messages": [{"role": "user", "content": question}]}
        return str(self.post("/v1/chat/completions", **body)["id"])

    def cpu_s(self) -> float:
        """Return the CPU time of the server, in s."""
        return cpu_s(self.child.pid)

    def kernel_s(self) -> float:
        """Return the part of this CPU time that the kernel has used, in s."""
        return kernel_s(self.child.pid)


class Rig:
    """Starts all processes of a benchmark on one broker."""

    def __init__(self, redis_url: str, broker_pid: int) -> None:
        """Bind the broker to the second core."""
        self.redis_url = redis_url
        self.broker_pid = broker_pid
        self._redis = redis.Redis.from_url(redis_url)
        self._bound = True
        os.sched_setaffinity(broker_pid, {OTHER_CORE})

    @contextlib.contextmanager
    def on_any_core(self) -> Iterator[None]:
        """Bind no process to a core: neither the broker nor one that starts in this block."""
        self._bound = False
        os.sched_setaffinity(self.broker_pid, os.sched_getaffinity(0))
        yield
        self._bound = True
        os.sched_setaffinity(self.broker_pid, {OTHER_CORE})

    def _child(self, *command: str, core: int | None, **environment: str) -> Child:
        return Child(*command, core=core if self._bound else None, **environment)

    @contextlib.contextmanager
    def child(self, module: str) -> Iterator[Child]:
        """Start a module that executes commands."""
        with self._child(module, core=MEASURED_CORE) as child:
            child.answer()
            yield child

    @contextlib.contextmanager
    def _loadgen(self) -> Iterator[Child]:
        with self._child("tests.bench.loadgen", core=OTHER_CORE) as child:
            yield child

    @contextlib.contextmanager
    def baseline(self, name: str) -> Iterator[Server]:
        """Start the server of tests/bench/<name>.py."""
        with self._child(f"tests.bench.{name}", core=MEASURED_CORE) as child, self._loadgen() as loadgen:
            yield Server(child, child.until(r"serving on (http://\S+)")[1], loadgen)

    @contextlib.contextmanager
    def relay(self) -> Iterator[tuple[Server, Child]]:
        """Start the front and the agent of tests/bench/relay.py."""
        where = {"REDIS_URL": self.redis_url}
        with (
            self._child("tests.bench.relay", "front", core=MEASURED_CORE, **where) as child,
            self._child("tests.bench.relay", "agent", core=OTHER_CORE, **where) as agent,
            self._loadgen() as loadgen,
        ):
            agent.answer()
            yield Server(child, child.until(r"serving on (http://\S+)")[1], loadgen), agent

    @contextlib.contextmanager
    def frontend(
        self, queue: str, *, core: int | None = MEASURED_CORE, module: str = "agentstream", **settings: str
    ) -> Iterator[Server]:
        """Start a front end of the service, with every guarantee on."""
        environment = self._environment(queue) | settings
        with self._child(module, "frontend", core=core, **environment) as child, self._loadgen() as loadgen:
            yield Server(child, child.until(r"serving on (http://\S+)")[1], loadgen)

    @contextlib.contextmanager
    def driver(self, queue: str) -> Iterator[Child]:
        """Start tests/bench/driver.py, which publishes to many runs."""
        with self._child("tests.bench.driver", core=OTHER_CORE, **self._environment(queue)) as child:
            child.answer()
            yield child

    @contextlib.contextmanager
    def worker(self, queue: str, agent: str, *, core: int | None = OTHER_CORE, **settings: str) -> Iterator[Child]:
        """Start a worker of the service with an agent of tests/bench/agents.py."""
        environment = self._environment(queue) | {"AGENTSTREAM_AGENT": f"tests.bench.agents:{agent}"} | settings
        with self._child("agentstream", "worker", core=core, **environment) as child:
            child.until("takes jobs of queue")
            yield child

    def connections(self) -> int:
        """Return the number of connections of the broker."""
        return len(self._redis.client_list())

    def cut(self, name: str) -> None:
        """Close all broker connections with this client name."""
        for client in self._redis.client_list():
            if client["name"] == name:
                self._redis.client_kill_filter(_id=client["id"])

    def outstanding(self, queue: str) -> int:
        """Return the number of unfinished jobs of a queue."""
        return int(self._redis.xlen(Keys().jobs(queue)))

    def broker_cpu_s(self) -> float:
        """Return the CPU time of the broker, in s."""
        return cpu_s(self.broker_pid)

    def _environment(self, queue: str) -> dict[str, str]:
        return {
            "REDIS_URL": self.redis_url,
            "AGENTSTREAM_QUEUE": queue,
            "AGENTSTREAM_PORT": "0",
            "AGENTSTREAM_MAX_QUEUED": BIG,
            "AGENTSTREAM_CONCURRENCY": "10000",
            "AGENTSTREAM_LOG_LEVEL": "info",
        }


def new_queue_name() -> str:
    """Return a unique queue name."""
    return f"bench-{secrets.token_hex(4)}"
