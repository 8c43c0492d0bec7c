"""Moving the slots of a cluster from one primary to another."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from redis.asyncio import Redis

from tests.brokers.security import Security
from tests.brokers.server import Server
from tests.brokers.waiting import WAIT_S

Words = tuple[str | int, ...]

SLOTS = 16384
_AT_ONCE = 50  # slots in migration at one time, for which clients get ASK
_KEYS = 100  # keys in one MIGRATE, during which both servers answer nothing else
_MIGRATE_MS = 5000
_CONNECTIONS = 10  # Valkey answers SETSLOT when the replicas have it, and blocks the connection until then


def even_ranges(parts: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last slot of each part, if all slots are split evenly."""
    for number in range(parts):
        yield SLOTS * number // parts, SLOTS * (number + 1) // parts - 1


async def move_slots(
    slots: list[int], source: Server, target: Server, others: list[Server], security: Security
) -> None:
    """Move slots with their keys, while clients use them. ``others`` are the other primaries, which are told."""
    async with contextlib.AsyncExitStack() as stack:
        old, new, *rest = [
            await stack.enter_async_context(server.client(socket_timeout=WAIT_S))
            for server in (source, target, *others)
        ]
        for start in range(0, len(slots), _AT_ONCE):
            some = slots[start : start + _AT_ONCE]
            await _send(new, [("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id) for slot in some])
            await _send(old, [("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id) for slot in some])
            async with asyncio.timeout(WAIT_S):
                await _move_keys(some, old, target, security)
            told: list[Words] = [("CLUSTER", "SETSLOT", slot, "NODE", target.id) for slot in some]
            await _send(new, told)  # the new owner first: the slots always have one
            await _send(old, told)
            await asyncio.gather(*(_send(client, told) for client in rest))


async def _send(client: Redis, commands: list[Words]) -> list[Any]:
    """Send commands in any order over several connections, and return their answers in the order of ``commands``."""
    answers: list[Any] = [None] * len(commands)

    async def send_part(number: int) -> None:
        pipeline = client.pipeline(transaction=False)
        for words in commands[number::_CONNECTIONS]:
            pipeline.execute_command(*words)
        answers[number::_CONNECTIONS] = await pipeline.execute()

    await asyncio.gather(*(send_part(number) for number in range(min(_CONNECTIONS, len(commands)))))
    return answers


async def _move_keys(slots: list[int], source: Redis, target: Server, security: Security) -> None:
    """Move all keys. New keys go to the target already, because the source answers ASK for keys that it lacks."""
    left = slots
    while left:
        found = await _send(source, [("CLUSTER", "GETKEYSINSLOT", slot, _KEYS) for slot in left])
        left = [slot for slot, keys in zip(left, found, strict=True) if keys]
        await _send(source, [_migrate(target, keys, security) for keys in found if keys])


def _migrate(target: Server, keys: list[str], security: Security) -> Words:
    login: tuple[str, ...] = ()
    if security.password:
        login = ("AUTH2", security.username, security.password)
    return ("MIGRATE", target.address, target.port, "", 0, _MIGRATE_MS, *login, "KEYS", *keys)
