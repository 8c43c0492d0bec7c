"""Asks sentinels for the address of the primary."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from typing import Final, Self

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
# Sentinels answer within milliseconds. One that is lost, perhaps on the machine of the lost primary, does not delay a
# connection for longer.
LATE_ANSWER_S: Final = 0.1


async def find_primary(endpoint: Endpoint) -> Address:
    """Return the address that most sentinels name; raises BusError if none of them names one.

    All are asked at once: a sentinel that is cut off from the others may name a server that is no longer the primary.
    """
    async with _Sentinels(endpoint) as sentinels:
        sentinels.ask()
        primary = await sentinels.most_named()
        await asyncio.wait(sentinels.questions, timeout=LATE_ANSWER_S)
        return primary


async def ask_sentinels(endpoint: Endpoint) -> list[Address | BusError]:
    """Return the primary that each sentinel names, or the reason why it names none, in the order of REDIS_URL.

    Raises BusError if none of them names one: WrongBroker if another REDIS_URL is needed, and ConnectionRefused if
    another password is needed.
    """
    async with _Sentinels(endpoint) as sentinels:
        sentinels.ask()
        return await sentinels.all_answers()


class _Sentinels:
    """The sentinels of an endpoint, and the latest question to each of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._clients = endpoint.sentinels()
        self.questions: list[asyncio.Task[Address | BusError]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel the questions, and close the connections."""
        for question in self.questions:
            question.cancel()
        await asyncio.gather(*self.questions, return_exceptions=True)
        await asyncio.gather(*map(close_client, self._clients), return_exceptions=True)

    def ask(self) -> None:
        """Ask each sentinel, except those that have not answered the last question: they still may."""
        waiting = [question if not question.done() else None for question in self.questions]
        self.questions = [
            question or asyncio.create_task(_ask(client, show_address(*address), self._endpoint.master), name="ask")
            for question, client, address in zip_longest(waiting, self._clients, self._endpoint.addresses)
        ]

    async def most_named(self) -> Address:
        """Return the address that most name, as soon as more than half of all agree or all have answered.

        Raises BusError if none names one.
        """
        waiting = set(self.questions)
        while waiting:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            named = _count(question.result() for question in self.questions if question not in waiting)
            if named and named[0][1] * 2 > len(self.questions):
                return named[0][0]
        return _count(await self.all_answers())[0][0]

    async def all_answers(self) -> list[Address | BusError]:
        """Return the answer of each; raises BusError if none of them is an address."""
        answers = await asyncio.gather(*self.questions)
        errors = [answer for answer in answers if isinstance(answer, BusError)]
        if len(errors) == len(answers):
            raise joined(errors, "no sentinel names the primary: ")
        return answers


def _count(answers: Iterable[Address | BusError]) -> list[tuple[Address, int]]:
    """Return each address that was named, and how often, the most frequent one first."""
    return Counter(answer for answer in answers if not isinstance(answer, BusError)).most_common()


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
    async with _Sentinels(endpoint) as sentinels:
        while True:
            await asyncio.sleep(SENTINEL_INTERVAL_S)
            sentinels.ask()
            try:
                named = await sentinels.most_named()
            except (OSError, BusError) as exc:
                if str(exc) != problem:
                    problem = str(exc)
                    log.warning("the sentinels do not name the primary: %s", problem)
                continue
            problem = ""
            if named != primary:
                log.warning("the sentinels name another primary: %s:%d", *named)
                return
