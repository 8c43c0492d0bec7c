"""Asks sentinels for the address of the primary."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final

import redis.asyncio as redis_asyncio
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from agentstream.errors import BusError, ConnectionRefused, WrongBroker
from agentstream.protocol.broker_url import Address, show_address
from agentstream.store.connection.endpoint import Endpoint, close_client
from agentstream.store.connection.refusals import joined, words_of

log = logging.getLogger(__name__)

# An old primary that is cut off from the others still accepts writes. A worker that has left it waits recent.SETTLE_S
# before it begins the jobs of others. So this interval must be shorter: then the other processes have left it, too.
SENTINEL_INTERVAL_S: Final = 1.0

Sentinels = Sequence[redis_asyncio.Redis]


async def find_primary(endpoint: Endpoint) -> Address:
    """Return the address that most sentinels name; raises BusError if none of them names one.

    All are asked at once: a sentinel that is cut off from the others may name a server that is no longer the primary.
    """
    return _most_named(await ask_sentinels(endpoint))


def _most_named(answers: Sequence[Address | BusError]) -> Address:
    return Counter(answer for answer in answers if not isinstance(answer, BusError)).most_common(1)[0][0]


async def ask_sentinels(endpoint: Endpoint) -> list[Address | BusError]:
    """Return the primary that each sentinel names, or the reason why it names none, in the order of REDIS_URL.

    Raises BusError if none of them names one: WrongBroker if another REDIS_URL is needed, and ConnectionRefused if
    another password is needed.
    """
    async with _connected(endpoint) as sentinels:
        return await _ask_all(endpoint, sentinels)


@contextlib.asynccontextmanager
async def _connected(endpoint: Endpoint) -> AsyncIterator[Sentinels]:
    sentinels = endpoint.sentinels()
    try:
        yield sentinels
    finally:
        await asyncio.gather(*map(close_client, sentinels), return_exceptions=True)


async def _ask_all(endpoint: Endpoint, sentinels: Sentinels) -> list[Address | BusError]:
    answers = await asyncio.gather(
        *(
            _ask(sentinel, show_address(*address), endpoint.master)
            for sentinel, address in zip(sentinels, endpoint.addresses, strict=True)
        )
    )
    errors = [answer for answer in answers if isinstance(answer, BusError)]
    if len(errors) == len(answers):
        raise joined(errors, "no sentinel names the primary: ")
    return answers


async def _ask(sentinel: redis_asyncio.Redis, where: str, master: str) -> Address | BusError:
    try:
        answer = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master)  # type: ignore[no-untyped-call]
    except (AuthenticationError, NoPermissionError) as exc:
        hint = "the sentinels' own user and password are ?sentinel_username=... and ?sentinel_password=... in REDIS_URL"
        return ConnectionRefused(f"{where} refuses: {words_of(exc)} ({hint})", words=words_of(exc))
    except ResponseError as exc:
        words = words_of(exc)
        if "unknown command" in words:
            hint = "name the sentinels in REDIS_URL; for one server without sentinels write redis://host:port"
            return WrongBroker(f"{where} is not a sentinel; {hint}")
        return BusError(f"{where}: {words}")
    except (RedisError, OSError) as exc:
        return BusError(f"{where}: {str(exc) or type(exc).__name__}")
    if not answer:
        return WrongBroker(
            f"{where} does not know a master {master!r}; write the name that the line `sentinel monitor` of its "
            "configuration has at the end of REDIS_URL"
        )
    host, port = (word.decode() if isinstance(word, bytes) else str(word) for word in answer)
    return host, int(port)


async def until_primary_changes(endpoint: Endpoint, primary: Address | None) -> None:
    """Return when the sentinels name another primary. Their own message about it may be lost, so ask them."""
    problem = ""
    async with _connected(endpoint) as sentinels:
        while True:
            await asyncio.sleep(SENTINEL_INTERVAL_S)
            try:
                named = _most_named(await _ask_all(endpoint, sentinels))
            except (OSError, BusError) as exc:
                if str(exc) != problem:
                    problem = str(exc)
                    log.warning("the sentinels do not name the primary: %s", problem)
                continue
            problem = ""
            if named != primary:
                log.warning("the sentinels name another primary: %s:%d", *named)
                return
