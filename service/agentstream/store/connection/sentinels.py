"""Asks sentinels for the address of the primary."""

import asyncio
from collections import Counter

import redis.asyncio as redis_asyncio
from redis.exceptions import RedisError

from agentstream.errors import BusError
from agentstream.protocol.broker_url import Address
from agentstream.store.connection.endpoint import Endpoint


async def find_primary(endpoint: Endpoint) -> Address:
    """Return the address that most sentinels name; raises BusError if none of them names one.

    All are asked at once: a sentinel that is cut off from the others may name a server that is no longer the primary.
    """
    sentinels = endpoint.sentinels()
    try:
        answers = await asyncio.gather(*(_ask(sentinel, endpoint.master) for sentinel in sentinels))
    finally:
        await asyncio.gather(*(sentinel.aclose() for sentinel in sentinels), return_exceptions=True)
    named = Counter(answer for answer in answers if isinstance(answer, tuple))
    if named:
        return named.most_common(1)[0][0]
    errors = [answer for answer in answers if isinstance(answer, str)]
    if not errors:
        message = (
            f"no sentinel knows a master {endpoint.master!r}; write the name that the line `sentinel monitor` of "
            "their configuration has at the end of REDIS_URL"
        )
        raise BusError(message)
    message = f"no sentinel of {endpoint} names the primary: {errors[0]}"
    raise BusError(message)


async def _ask(sentinel: redis_asyncio.Redis, master: str) -> Address | str | None:
    """Return the address of the primary; None if the sentinel does not know the master; or the reason of a failure."""
    try:
        answer = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master)  # type: ignore[no-untyped-call]
    except (RedisError, OSError) as exc:
        return str(exc) or type(exc).__name__
    if not answer:
        return None
    host, port = (word.decode() if isinstance(word, bytes) else str(word) for word in answer)
    return host, int(port)
