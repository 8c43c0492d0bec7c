"""The first commands of a new connection: some are required, the others are only useful."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import hiredis

from agentstream.errors import BusError, ConnectionRefused, WrongBroker
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.refusals import is_not_primary, words_of
from agentstream.store.connection.wire import Reply, RespConnection, await_while_connected, pack

log = logging.getLogger(__name__)

Words = tuple[bytes | str | int, ...]

# If HELLO is refused with one of these, the server has no RESP3. Other words, such as NOAUTH, refuse any command.
_NO_RESP3: Final = ("ERR ", "NOPROTO", "NOPERM")
_HINTS: Final = {
    "AUTH": "check the user and the password in REDIS_URL",
    "SELECT": "name an existing database in REDIS_URL; every server has database 0",
    "SCRIPT": "the service needs Lua scripts: allow this Redis user SCRIPT LOAD and EVALSHA",
}
# What to write for a server whose mode, in its reply to HELLO, is not the expected one.
_WRONG_MODES: Final = {
    "standalone": "is not a part of a cluster; write redis:// instead of redis+cluster://",
    "cluster": "is a part of a cluster; write redis+cluster:// instead of redis://",
    "sentinel": "is a sentinel, which holds no data; write redis+sentinel://host:port/master",
}


@dataclass(frozen=True, slots=True)
class Step:
    """A command of the handshake. The connection works without a step that is not ``required``."""

    command: Words
    required: bool = True


def login_steps(endpoint: Endpoint, name: str) -> list[Step]:
    """Return the steps that log in: credentials, protocol version, client name and database.

    AUTH is not a part of HELLO: the reply to a HELLO that the server does not know would repeat the password. HELLO is
    also sent with RESP2, where it is not required: only its reply shows whether the server is a part of a cluster.
    """
    steps = []
    if credentials := endpoint.credentials:
        steps.append(Step(("AUTH", *credentials)))
    steps.append(Step(("HELLO", 3)) if endpoint.pushes_inline else Step(("HELLO", 2), required=False))
    steps.append(Step(("CLIENT", "SETNAME", name), required=False))  # only CLIENT LIST shows it
    if endpoint.database:
        steps.append(Step(("SELECT", endpoint.database)))
    return steps


async def open_connection(
    endpoint: Endpoint,
    name: str,
    on_push: Callable[[list[Any]], None],
    more_steps: list[Step],
    *,
    mode: str = "standalone",
) -> RespConnection:
    """Return a new connection that has taken the steps of the login and ``more_steps``.

    If the server has no RESP3, this makes the endpoint use RESP2. ``mode`` is what the server must be: standalone or
    cluster. Raises OSError if the server cannot be reached, ConnectionRefused with its words if it refuses a required
    step or is not the primary, WrongBroker if it has another mode, and BusError if it closes the connection.
    """
    while True:
        steps = [*login_steps(endpoint, name), *more_steps, Step(("PING",), required=False)]
        connection, replies = await _take(steps, endpoint, on_push)
        if wrong := _wrong_mode(steps, replies, mode):
            connection.abort()
            message = f"{endpoint} {wrong} in REDIS_URL"
            raise WrongBroker(message)
        refusal = next(_refusals(steps, replies), None)
        if refusal is None and len(replies) == len(steps):
            return connection
        connection.abort()
        if refusal is None:
            raise BusError(_closed(endpoint, replies))
        step, words = refusal
        if step.command[0] == "HELLO" and len(replies) == len(steps) and words.startswith(_NO_RESP3):
            log.warning(
                "the broker refuses RESP3 (%s); using RESP2 with a second connection for subscriptions. "
                "Add ?protocol=2 to REDIS_URL to ask for it at once",
                words,
            )
            endpoint.use_resp2()
            continue
        raise ConnectionRefused(_explain(step, words), words=words)


async def _take(
    steps: list[Step], endpoint: Endpoint, on_push: Callable[[list[Any]], None]
) -> tuple[RespConnection, list[Reply]]:
    """Send all steps at once. Return the connection and the replies, which are fewer if the server has closed it."""
    replies: list[Reply] = []
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def collect(reply: Reply) -> None:
        replies.append(reply)
        if len(replies) == len(steps) and not answered.done():
            answered.set_result(None)

    connection = RespConnection(collect, on_push)
    try:
        await endpoint.connect(lambda: connection)
        connection.write(b"".join(pack(step.command) for step in steps))
        await await_while_connected(connection, answered)
    except BusError:
        connection.abort()  # what the server wrote before it closed the connection is the reason
    except BaseException:
        connection.abort()
        raise
    return connection, replies


def _refusals(steps: list[Step], replies: list[Reply]) -> Iterator[tuple[Step, str]]:
    """Yield each step without which the connection does not work and that was refused, with the server's words.

    A server that closes the connection refuses the first step, for example because it has too many clients.
    """
    closed = len(replies) < len(steps)
    for step, reply in zip(steps, replies, strict=False):
        if step.command == ("ROLE",) and isinstance(reply, list) and reply[0] != b"master":
            yield step, f"READONLY its role is {reply[0].decode()}"
        elif reply.__class__ is hiredis.ReplyError:
            words = words_of(reply)
            if step.required or closed or is_not_primary(words):
                yield step, words


def _wrong_mode(steps: list[Step], replies: list[Reply], mode: str) -> str:
    """Return what the server is and what to write for it, if its reply to HELLO names another mode; else ""."""
    for step, reply in zip(steps, replies, strict=False):
        if step.command[0] == "HELLO" and isinstance(reply, dict | list):
            fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=False))
            found = fields.get(b"mode")
            return _WRONG_MODES.get(found.decode(), "") if isinstance(found, bytes) and found != mode.encode() else ""
    return ""


def _explain(step: Step, words: str) -> str:
    if is_not_primary(words):
        hint = "this server is not the primary; REDIS_URL must lead to the primary"
    elif words.startswith("NOAUTH"):
        hint = "add the password to REDIS_URL: redis://:password@host:port"
    else:
        hint = _HINTS.get(str(step.command[0]), "")
    return f"the broker refused {step.command[0]!s}: {words}" + (f" ({hint})" if hint else "")


def _closed(endpoint: Endpoint, replies: list[Reply]) -> str:
    message = "the broker closed the connection during the handshake"
    if not replies and endpoint.pushes_inline:
        message += "; if it does not support RESP3, add ?protocol=2 to REDIS_URL; if it expects TLS, write rediss://"
    return message
