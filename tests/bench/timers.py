"""The timers of the agents alone, without a service. Every system needs their CPU time."""

import asyncio
import json
import sys

import uvloop

from tests.bench.machine import reply
from tests.bench.tokens import Pace, write_at_pace


def drop(token: str) -> None:
    """Drop a token."""


async def main() -> None:
    """Execute commands until the input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    reply(ready=True)
    while line := await reader.readline():
        pace = Pace.model_validate({name: value for name, value in json.loads(line).items() if name != "do"})
        await write_at_pace(pace, [drop] * pace.streams)
        reply(done=True)


if __name__ == "__main__":
    uvloop.run(main())
