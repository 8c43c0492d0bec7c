"""What the service needs of its connection to the broker, whatever the broker is: one server, Sentinel or Cluster."""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Final, Protocol

import hiredis

from agentstream.errors import BrokerUnavailable, BusError, ConnectionRefused, StartupError, WrongBroker
from agentstream.store.connection.command import Command
from agentstream.store.connection.fanout import OnMessage
from agentstream.store.connection.refusals import is_not_now, is_not_primary, words_of
from agentstream.store.connection.wire import OnReply, Reply, pack

BLOCKED_S: Final = 0.5  # a timeout that comes later than this shows a blocked event loop, not a busy one
# How long the words of a refused command count as the reason why commands wait: such a command is sent again, and is
# refused again, every RESEND_DELAY_S; a connection is tried again after MAX_BACKOFF_S at the latest.
REFUSAL_VALID_S: Final = 2.0
# After this time a start ends if only another REDIS_URL helps. Servers that are just being set up get so much time.
WRONG_BROKER_S: Final = 3.0


class Subscriber(Protocol):
    """A reader of a channel that needs every message."""

    @property
    def channel(self) -> bytes:
        """The name of its channel."""
        ...

    def resync(self) -> None:
        """Read the messages that may have been lost."""


class Link(ABC):
    """The connection of a process to the broker. Open it once, and close it at the end.

    Every command has a name: its first key, or the ``key`` of the call. The names of a run lead to one server.
    """

    def __init__(self, shown: str) -> None:
        """Prepare a link that is not connected. Errors name the broker as ``shown``."""
        self._shown = shown
        self._failure: Exception | None = None  # why the link does not connect
        self._wrong_since_s = math.inf  # monotonic
        self._changed = asyncio.Event()  # set by each connect and by each failure to connect
        self.on_reconnect: dict[Callable[[], None], None] = {}  # an ordered set; called after every connect
        self.on_pong: Callable[[float], None] = ignore  # called with the duration of each ping, in s
        self._refusal = ""
        self._refused_at_s = 0.0  # monotonic

    # -- the state ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the link is connected now, as far as it knows: in a cluster, to at least one server."""

    @property
    @abstractmethod
    def down_s(self) -> float:
        """For how long the link has not been connected, in s; 0 if it is connected."""

    @property
    @abstractmethod
    def reconnects(self) -> int:
        """How often commands may have been lost: by a reconnect, or because another server has taken over."""

    @property
    @abstractmethod
    def connections(self) -> dict[str, bool]:
        """Whether the link is connected to each server that it uses, by address; empty if none is known yet."""

    @property
    def refusal(self) -> str:
        """The broker's own words, if it refuses commands or connections now; empty otherwise."""
        return self._refusal if time.monotonic() - self._refused_at_s < REFUSAL_VALID_S else ""

    def refuse(self, words: str) -> None:
        """Note the broker's words about a refused command or connection."""
        self._refusal, self._refused_at_s = words, time.monotonic()

    def unanswered(self, timeout_s: float, since_s: float | None = None) -> str:
        """Return the reason why a command was not done within ``timeout_s``: the broker's own words if it refuses.

        ``since_s`` is the monotonic time when the wait began. If the timeout came too late, the reason is this process.
        """
        if self.refusal:
            return f"Redis refuses: {self.refusal}"
        if since_s is not None and (late := late_s(since_s, timeout_s)):
            return f"the event loop of this process was blocked for about {timeout_s + late:.1f} s"
        return f"Redis did not answer within {timeout_s:g} s"

    @abstractmethod
    def keeps_order(self, *names: str) -> bool:
        """Whether the commands and subscriptions of these names are done in the order in which they are sent."""

    @abstractmethod
    def group_of(self, name: str) -> Hashable:
        """Return an equal value for all names that may stand together in one script call."""

    # -- connecting ---------------------------------------------------------------------------------

    @abstractmethod
    def open(self) -> None:
        """Start to connect; the link then stays connected until ``close``."""

    async def wait_ready(self, timeout_s: float, *, patient: bool = True) -> None:
        """Return when the link is connected; raises BrokerUnavailable, with the cause, after ``timeout_s``.

        Raises StartupError after WRONG_BROKER_S if only another REDIS_URL helps. If not ``patient``, raises this error
        at once, and also BusError if the broker refuses, and BrokerUnavailable if no server answers: all failures that
        a failover does not end.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.connected:
                    self._changed.clear()
                    self._raise_final(patient=patient)
                    await self._changed.wait()
        except TimeoutError as exc:
            reason = str(self._failure or "") or self.refusal or "no answer"
            message = f"{self._shown} cannot be reached within {timeout_s:g} s: {reason}"
            raise BrokerUnavailable(message) from exc

    def note_failure(self, failure: Exception | None) -> bool:
        """Note why the link does not connect, or that it does; return whether the reason is a new one."""
        before, self._failure = self._failure, failure
        if not isinstance(failure, WrongBroker):
            self._wrong_since_s = math.inf
        elif self._wrong_since_s == math.inf:
            self._wrong_since_s = time.monotonic()
        if isinstance(failure, ConnectionRefused):
            self.refuse(failure.words)
        self._changed.set()
        return failure is not None and (before is None or str(before) != str(failure))

    def _raise_final(self, *, patient: bool) -> None:
        """Raise the failure to connect, if waiting does not help."""
        failure = self._failure
        if isinstance(failure, WrongBroker):
            if not patient or time.monotonic() - self._wrong_since_s > WRONG_BROKER_S:
                raise StartupError(str(failure)) from failure
        elif patient or failure is None or self._may_pass(failure):
            return
        elif isinstance(failure, ConnectionRefused):
            raise BusError(str(failure)) from failure
        else:
            message = f"Redis does not answer: {str(failure) or type(failure).__name__}"
            raise BrokerUnavailable(message) from failure

    def _may_pass(self, failure: Exception) -> bool:
        """Whether a failure may pass within seconds: the server loads its data, or another one takes over."""
        words = failure.words if isinstance(failure, ConnectionRefused) else ""
        if is_not_now(words):
            return True
        return self.fails_over and (is_not_primary(words) or not isinstance(failure, BusError))

    @property
    @abstractmethod
    def fails_over(self) -> bool:
        """Whether another server may take over from one that does not answer."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections and drop unanswered commands."""

    # -- commands -----------------------------------------------------------------------------------

    @abstractmethod
    def send(self, *args: bytes | str | int, on_reply: OnReply, key: str = "", once: bool = False) -> Command:
        """Send a command. ``on_reply`` gets the reply or a hiredis.ReplyError, in the order of the server.

        ``key`` is needed if the command has no key, and one particular server must run it. ``once``: a reply that means
        "not now" is the reply, and the command is not sent again.
        """

    @abstractmethod
    def flush(self) -> None:
        """Send the bytes of this turn of the event loop now."""

    @abstractmethod
    def withdraw(self, command: Command) -> None:
        """Do not send the command (again), and drop its reply."""

    @abstractmethod
    async def prove_writable(self) -> None:
        """Return when the broker has run a script with a write, which stores nothing.

        In a cluster one server is enough: the others may be down, and their runs wait. Raises BusError with the
        broker's words for every error reply, also if the reply means "not now". Use asyncio.timeout to bound the wait
        for a connection.
        """

    @abstractmethod
    def script(self, name: str) -> tuple[str, bytes]:
        """Return the first words of a call of a script."""

    def send_script(self, name: str, keys: list[str], *args: bytes | str | int, on_reply: OnReply) -> Command:
        """Call a Lua script; otherwise like ``send``."""
        return self.send(*self.script(name), len(keys), *keys, *args, on_reply=on_reply)

    def pack_script(self, name: str, keys: list[str], *args: bytes | str | int) -> bytes:
        """Return the bytes of a script call, for ``Command.repack``."""
        return pack((*self.script(name), len(keys), *keys, *args))

    async def call(self, *args: bytes | str | int, key: str = "") -> Reply:
        """Send a command and return its reply; raises BusError for an error reply.

        Waits as long as the broker is unreachable; use asyncio.timeout to bound the wait. If the call is cancelled
        before the command was sent, the command is not sent.
        """
        return await self.start_call(*args, key=key)

    def start_call(self, *args: bytes | str | int, key: str = "", once: bool = False) -> "asyncio.Future[Reply]":
        """Send a command with the others of this turn; return a future of its reply. Otherwise like ``call``.

        ``send`` explains ``once``.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        command = self.send(*args, on_reply=lambda reply: settle(future, reply), key=key, once=once)
        future.add_done_callback(lambda done: self.withdraw(command) if done.cancelled() else None)
        return future

    async def call_script(self, name: str, keys: list[str], *args: bytes | str | int) -> Reply:
        """Call a Lua script; otherwise like ``call``."""
        return await self.start_script_call(name, keys, *args)

    def start_script_call(
        self, name: str, keys: list[str], *args: bytes | str | int, once: bool = False
    ) -> "asyncio.Future[Reply]":
        """Call a Lua script; otherwise like ``start_call``."""
        return self.start_call(*self.script(name), len(keys), *keys, *args, once=once)

    # -- channels -----------------------------------------------------------------------------------

    @abstractmethod
    def subscribe(self, channel: bytes, on_message: OnMessage, *, everywhere: bool = False) -> "asyncio.Future[None]":
        """Subscribe to a channel. The future is done when the server has confirmed; after that no message is missed.

        ``everywhere`` is for a channel whose messages are published on any server of a cluster: a control channel.
        """

    @abstractmethod
    def unsubscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Pass no more messages to ``on_message``; do nothing if it is not subscribed."""

    @abstractmethod
    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` whenever messages of its channel may have been lost."""

    @abstractmethod
    def remove_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` no more."""


def late_s(since_s: float, timeout_s: float) -> float:
    """Return by how much a timeout came too late, in seconds: the loop was blocked. Return 0 if it came in time."""
    late = time.monotonic() - since_s - timeout_s
    return late if late > BLOCKED_S else 0.0


def ignore(_value: object) -> None:
    """Ignore a reply, or the duration of a ping."""


def settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    """Give a reply to a future, unless it is done."""
    if future.done():
        return
    if reply.__class__ is hiredis.ReplyError:
        future.set_exception(BusError(words_of(reply)))
    else:
        future.set_result(reply)
