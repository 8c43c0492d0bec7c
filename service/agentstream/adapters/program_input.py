"""The lines that a program reads from its standard input."""

import asyncio
import contextlib
from typing import Any, Final

import orjson

from agentstream.agents import Run
from agentstream.errors import InterruptTimeout, InvalidAgentOutput

_FIELDS: Final = frozenset({"id", "kind", "payload", "schema", "timeout_s"})


class ProgramInput:
    """Writes the request, and then, to a program that reads on, the answers of people and their messages."""

    def __init__(self, run: Run, stdin: asyncio.StreamWriter, *, stays_open: bool) -> None:
        """``stays_open`` is whether the program reads lines after the request."""
        self._run = run
        self._stdin = stdin
        self._stays_open = stays_open
        self._one_at_a_time = asyncio.Lock()

    async def write_request(self, job: dict[str, Any]) -> None:
        """Write the request. It is no error if the program does not read it."""
        await self._write(job)
        if not self._stays_open:
            await self.close()

    async def close(self) -> None:
        """Close standard input."""
        self._stdin.close()
        with contextlib.suppress(ConnectionError):
            await self._stdin.wait_closed()

    def ask(self, fields: dict[str, Any]) -> Any:  # noqa: ANN401 -- a coroutine that writes a line
        """Ask people the question of the program. Await the result: it writes the answer.

        Raises InvalidAgentOutput if the program does not read answers, or if the question is malformed.
        """
        self._check_open("interrupt")
        if unknown := fields.keys() - _FIELDS or {"id", "kind"} - fields.keys():
            message = f"an interrupt has the fields id and kind, and may have payload, schema and timeout_s: {unknown}"
            raise InvalidAgentOutput(message)
        kind, payload, rest = fields["kind"], fields.get("payload"), fields.keys() - {"kind", "payload"}
        answer = self._run.interrupt(kind, payload, **{name: fields[name] for name in rest})
        return self._answer(fields["id"], answer)

    async def _answer(self, question_id: str, answer: Any) -> None:  # noqa: ANN401 -- an awaitable
        try:
            told = {"answer": await answer}
        except InterruptTimeout:
            told = {"timed_out": True}
        await self._write({"type": "answer", "id": question_id, **told})

    async def take_inputs(self) -> None:
        """Write the messages that people have sent since the last time; often none."""
        self._check_open("take_inputs")
        messages = [message.model_dump(exclude_none=True) for message in await self._run.inputs()]
        await self._write({"type": "input", "messages": messages})

    def _check_open(self, kind: str) -> None:
        if not self._stays_open:
            message = (
                f"the program wrote the line {kind!r}, but its standard input is closed: use CommandAgent(..., "
                "asks=True) or CommandAgent(..., takes_inputs=True)"
            )
            raise InvalidAgentOutput(message)

    async def _write(self, line: dict[str, Any]) -> None:
        async with self._one_at_a_time:
            with contextlib.suppress(ConnectionError):
                self._stdin.write(orjson.dumps(line) + b"\n")
                await self._stdin.drain()
