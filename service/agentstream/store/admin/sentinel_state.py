"""Reads what each sentinel knows of the primary."""

import asyncio
from dataclasses import dataclass

import redis.asyncio as redis_asyncio
from redis.exceptions import NoPermissionError, RedisError

from agentstream.errors import BusError
from agentstream.protocol.broker_url import Address, show_address
from agentstream.store.admin.server_state import map_no_answer
from agentstream.store.connection.endpoint import Endpoint, close_client
from agentstream.store.connection.refusals import words_of
from agentstream.store.connection.sentinels import ask_sentinels


@dataclass(frozen=True, slots=True)
class SentinelView:
    """The answers of one sentinel.

    ``primary`` is the server that it names, or the reason why it names none. ``quorum`` has its words about the quorum,
    ``has_quorum`` whether it is reachable, and None if this user may not ask. ``replicas`` and ``sentinels`` count
    those that it knows, itself included; both are None if it has not said.
    """

    address: str
    primary: Address | BusError
    has_quorum: bool | None = None
    quorum: str = ""
    replicas: int | None = None
    sentinels: int | None = None


async def read_sentinels(endpoint: Endpoint) -> list[SentinelView]:
    """Ask each sentinel.

    If none of them names a primary, raises BrokerUnavailable, or ConnectionRefused if they refuse, with the reasons.
    """
    with map_no_answer():
        named = await ask_sentinels(endpoint)
    clients = endpoint.sentinels()
    try:
        return await asyncio.gather(
            *(
                _view(client, show_address(*address), primary, endpoint.master)
                for client, address, primary in zip(clients, endpoint.addresses, named, strict=True)
            )
        )
    finally:
        await asyncio.gather(*map(close_client, clients), return_exceptions=True)


async def _view(client: redis_asyncio.Redis, address: str, primary: Address | BusError, master: str) -> SentinelView:
    if isinstance(primary, BusError):
        return SentinelView(address, primary)
    has_quorum: bool | None = True
    try:
        quorum = _text(await client.execute_command("SENTINEL", "CKQUORUM", master))  # type: ignore[no-untyped-call]
    except NoPermissionError as exc:
        has_quorum, quorum = None, words_of(exc)
    except (RedisError, OSError) as exc:
        has_quorum, quorum = False, words_of(exc) or type(exc).__name__
    try:
        flat = [_text(word) for word in await client.execute_command("SENTINEL", "MASTER", master)]  # type: ignore[no-untyped-call]
    except (RedisError, OSError):
        return SentinelView(address, primary, has_quorum, quorum)
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    replicas, others = int(fields.get("num-slaves", 0)), int(fields.get("num-other-sentinels", 0))
    return SentinelView(address, primary, has_quorum, quorum, replicas, others + 1)


def _text(word: object) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)
