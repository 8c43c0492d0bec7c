"""The deployment for tests that lose workers and cancel runs: processes, a client, and faults by name."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from tests.helpers import TIME_SCALE, TIMEOUT_S, decode, texts
from tests.processes import ROOT, Process, Processes

LEASE_S: Final = 1.0
# The guarantee for the runs of a killed worker (lease + lease/3 + 1 s), and a margin for a loaded machine.
LOSS_BOUND_S: Final = LEASE_S * 4 / 3 + 1 + 4 * TIME_SCALE
COMPLETIONS: Final = "/v1/chat/completions"
SAID_BY_A: Final = [f"a:{number} " for number in range(5)]  # as many as loss_agents.WORDS
SAID_BY_B: Final = [f"b:{number} " for number in range(5)]

Message = tuple[str | None, Any]


class StreamedResponse:
    """One streamed response, read piece by piece."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._received = b""

    @property
    def run_id(self) -> str:
        """The id of the run. It is known after the first read."""
        return str(decode(self._received)[0][1]["id"])

    async def until(self, piece: str) -> None:
        """Return when ``piece`` has arrived."""
        while piece.encode() not in self._received:
            received = await self._response.content.readany()
            assert received, f"the stream ended without {piece!r}: {self._received!r}"
            self._received += received

    async def whole(self) -> list[Message]:
        """Return all messages; the stream must end with [DONE]."""
        self._received += await self._response.content.read()
        messages = decode(self._received)
        assert messages[-1] == (None, "[DONE]")
        return messages

    def disconnect(self) -> None:
        """Disconnect like a closed browser tab."""
        self._response.close()


class Deployment:
    """A client of one front end, and workers that know their name."""

    def __init__(self, processes: Processes, session: aiohttp.ClientSession, broker_url: str, folder: Path) -> None:
        self._processes = processes
        self._session = session
        self._redis = Endpoint(broker_url).redis()
        self._gate = folder / "gate"
        self._keys = Keys()
        self.url = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, processes: Processes, broker_url: str, folder: Path) -> AsyncIterator[Self]:
        """Yield a deployment whose client has a time limit."""
        timeout = aiohttp.ClientTimeout(total=3 * TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            deployment = cls(processes, session, broker_url, folder)
            try:
                yield deployment
            finally:
                await deployment._redis.aclose()

    # -- processes ----------------------------------------------------------------------------------

    async def frontend(self, **settings: str) -> None:
        """Start the front end to which the client sends its requests."""
        self.url = await self._processes.frontend(AGENTSTREAM_LEASE_S=str(LEASE_S), **settings)

    async def worker(self, name: str, agent: str | None = "loss_agents:scripted", **settings: str) -> Process:
        """Start a worker that knows its name."""
        environment = {
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
            "TEST_WORKER": name,
            "TEST_GATE": str(self._gate),
            "AGENTSTREAM_LEASE_S": str(LEASE_S),
        }
        return await self._processes.worker(agent, **environment | settings)

    def open_gate(self, number: int | None = None) -> None:
        """Let the agents go on that wait for the gate file, or for the gate with this number."""
        (self._gate if number is None else self._gate.with_name(f"{self._gate.name}-{number}")).touch()

    # -- HTTP ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def stream(
        self, script: str, *, headers: dict[str, str] | None = None, **body: Any
    ) -> AsyncIterator[StreamedResponse]:
        """Request a streamed run, and read its role chunk."""
        request = chat(script) | {"stream": True} | body
        async with self._session.post(self.url + COMPLETIONS, json=request, headers=headers) as response:
            assert response.status == 200, await response.text()
            reading = StreamedResponse(response)
            await reading.until("\n\n")
            yield reading

    async def complete(self, script: str, **headers: str) -> dict[str, Any]:
        """Request a run that is not streamed, and return the answer."""
        return await self._answer("POST", COMPLETIONS, chat(script), headers)

    async def cancel(self, run_id: str, **headers: str) -> dict[str, Any]:
        """Cancel a run, and return the answer."""
        return await self._answer("POST", f"{COMPLETIONS}/{run_id}/cancel", None, headers)

    async def retrieve(self, run_id: str) -> dict[str, Any]:
        """Return the current state of a run."""
        return await self._answer("GET", f"{COMPLETIONS}/{run_id}", None, {})

    async def replay(self, run_id: str) -> list[Message]:
        """Return the whole stream of an existing run when the run has ended."""
        async with self._session.get(f"{self.url}{COMPLETIONS}/{run_id}?stream=true") as response:
            return await StreamedResponse(response).whole()

    async def _answer(self, method: str, path: str, body: Any, headers: dict[str, str]) -> dict[str, Any]:
        async with self._session.request(method, self.url + path, json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            return answer | {"http_status": response.status}

    # -- Redis --------------------------------------------------------------------------------------

    async def log_of(self, run_id: str) -> list[Any]:
        """Return the entries of a run's replay log."""
        return list(await self._redis.xrange(self._keys.events(run_id)) or [])

    async def field_of(self, run_id: str, field: str) -> str | None:
        """Return a field of a run's hash."""
        value: bytes | None = await self._redis.hget(self._keys.run(run_id), field)  # type: ignore[assignment]
        return None if value is None else value.decode()

    async def flag_cancel(self, run_id: str) -> None:
        """Store a cancel without the message to the worker, as if that message was lost."""
        await self._redis.hset(self._keys.run(run_id), "cancel", "1")


def chat(script: str) -> dict[str, Any]:
    """Return a request that makes the agent follow ``script``."""
    return {"model": "m1", "messages": [{"role": "user", "content": script}]}


async def begun(worker: Process, behaviour: str) -> str:
    """Return the id of the run when the worker's agent has begun it."""
    return (await worker.until(rf"note \w+ begins {behaviour} (\S+)"))[1]


async def ended(worker: Process, run_id: str) -> str:
    """Return how the worker's agent ended: the name of an exception, or completed."""
    return (await worker.until(rf"note \w+ ended [\w ]+ {re.escape(run_id)} (\w+)"))[1]


def error_of(messages: list[Message]) -> str | None:
    """Return the error code of the final chunk of a stream, or None if there is no error."""
    error = messages[-2][1].get("agent_error")
    return None if error is None else str(error["code"])


def said(messages: list[Message]) -> list[str]:
    """Return the pieces of text of a stream, without the sentence of a failure."""
    return [text for text in texts(messages[:-2]) if text != "\n\n"]


# -- the faults -----------------------------------------------------------------------------------------


async def kill_worker(worker: Process) -> None:
    """Kill a worker with SIGKILL, so that it cannot clean up."""
    worker.send_signal(signal.SIGKILL)
    assert await worker.ended() == -signal.SIGKILL


@contextlib.contextmanager
def freeze(worker: Process) -> Iterator[None]:
    """Freeze a worker with SIGSTOP, then let it continue."""
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


async def terminate(worker: Process) -> int:
    """Ask a worker to stop, and return its exit code."""
    worker.send_signal(signal.SIGTERM)
    async with asyncio.timeout(2 * TIMEOUT_S):
        return await worker.ended(2 * TIMEOUT_S)
