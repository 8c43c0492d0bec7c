"""The connection of a process to a cluster: one ServerLink for each primary, and the slots that lead to them.

It promises what a ServerLink promises, for each name. A command goes to the server that has the slot of its name. If
the slot moves, its commands, its channels and their subscribers follow: to the server that MOVED or ASK names, or that
the topology names after a failover. A subscriber whose channel has moved is resynced, because messages may be lost.

The topology is read again after a MOVED, a lost connection or a `sunsubscribe`, and every REFRESH_INTERVAL_S: nothing
else shows that a server with subscriptions has been removed, or has lost its slots without saying so.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Final

from agentstream.errors import BusError
from agentstream.protocol.broker_url import Address, show_address
from agentstream.protocol.keys import PARTITIONS, Keys
from agentstream.store.connection.channels import Channels, ServedElsewhere
from agentstream.store.connection.command import NO_SLOT, Command, Probe
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.exchange import RESEND_DELAY_S
from agentstream.store.connection.fanout import OnMessage
from agentstream.store.connection.link import Link, Subscriber, ignore
from agentstream.store.connection.refusals import is_not_now, is_not_primary, words_of
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.connection.slots import SLOTS, first_key, slot_of
from agentstream.store.connection.topology import Topology, read_topology
from agentstream.store.connection.wire import OnReply, pack
from agentstream.store.scripts import CLUSTER_SCRIPTS

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S: Final = 5.0
UNSETTLED_INTERVAL_S: Final = 0.25  # while a server is unreachable or a slot has no server
MIN_REFRESH_S: Final = 0.05
MOVES: Final = ("MOVED ", "ASK ")  # error replies that name the server of the slot


class ClusterLink(Link):
    """The connection of a process to all primaries of a cluster. It connects to a primary when it needs it first."""

    def __init__(self, endpoint: Endpoint, keys: Keys, *, name: str) -> None:
        """Prepare a link. CLIENT LIST shows ``name``. ``keys`` has the names for proofs of writes."""
        super().__init__(str(endpoint))
        self._endpoint = endpoint
        self._keys = keys
        self._name = name
        self._links: dict[Address, ServerLink] = {}
        self._addresses: dict[ServerLink, Address] = {}
        self._owners: list[ServerLink | None] = [None] * SLOTS
        self._servers: frozenset[Address] = frozenset()
        self._majority = False  # whether the topology is that of a server which reaches the majority
        self._settled_at_s = time.monotonic()
        self._homeless: list[Command] = []  # commands whose slot has no server now
        self._strays = Channels()  # those whose slot has no server now
        self._everywhere: set[bytes] = set()
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}  # for the confirmation of a channel
        self._dropped: set[bytes] = set()  # channels that their server no longer serves
        self._moved: set[bytes] = set()  # channels whose subscribers are resynced when they are confirmed
        self._subscribers: dict[bytes, list[Subscriber]] = {}
        self._importing: set[ServerLink] = set()  # servers that have got commands by ASK: they may have no slots yet
        self._losses = 0
        self._ready = asyncio.Event()
        self._down_since_s = time.monotonic()
        self._known = False  # whether the topology was read once
        self._stale = asyncio.Event()  # whether it may have changed
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    # -- the state ----------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the link is connected to at least one primary."""
        return self._ready.is_set()

    @property
    def down_s(self) -> float:
        """For how long no primary has been connected, in s; 0 if one is."""
        return 0.0 if self._ready.is_set() else time.monotonic() - self._down_since_s

    @property
    def reconnects(self) -> int:
        """How often a primary was reconnected, or another server has taken over slots."""
        return self._losses

    @property
    def connections(self) -> dict[str, bool]:
        """Whether the link is connected to each primary that it uses, by address."""
        return {show_address(*address): link.connected for address, link in self._links.items() if link.opened}

    @property
    def refusal(self) -> str:
        """The words of a server that refuses commands or connections now; empty otherwise."""
        return super().refusal or next((link.refusal for link in self._links.values() if link.refusal), "")

    @property
    def fails_over(self) -> bool:
        """Whether another server may take over from a primary."""
        return True

    def keeps_order(self, *names: str) -> bool:
        """Whether one primary has all these names."""
        owners = {self._owners[slot_of(name)] for name in names}
        return len(owners) == 1 and None not in owners

    def group_of(self, name: str) -> Hashable:
        """Return the slot of the name: a script may have the names of one slot."""
        return slot_of(name)

    # -- connecting ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Start to follow the topology."""
        self._task = asyncio.create_task(self._follow_topology(), name="topology")

    async def close(self) -> None:
        """Close the connections and drop unanswered commands."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.gather(*(link.close() for link in self._links.values()), *self._closing)

    async def _follow_topology(self) -> None:
        while True:
            known = {address: link.call for address, link in self._links.items() if link.connected}
            others = sorted({*self._endpoint.addresses, *self._servers}) if self._unsettled or not known else ()
            self._stale.clear()
            try:
                self._apply(await read_topology(self._endpoint, known, others))
                self._open_links()
            except BusError as exc:
                if self.note_failure(exc):
                    log.warning("no server of the cluster shows the topology: %s", exc)
            except Exception:  # without this task, nothing would follow the next failover
                log.exception("the topology of the cluster cannot be used")
            await asyncio.sleep(MIN_REFRESH_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_refresh_s()):
                    await self._stale.wait()

    def _next_refresh_s(self) -> float:
        """Return the time until the topology is read again: longer if it has been in doubt for long."""
        now_s = time.monotonic()
        if not self._unsettled:
            self._settled_at_s = now_s
            return REFRESH_INTERVAL_S
        return min(REFRESH_INTERVAL_S, max(UNSETTLED_INTERVAL_S, (now_s - self._settled_at_s) / 20))

    def _open_links(self) -> None:
        """Connect to all primaries when they are first known; to later ones when they are needed."""
        if not self._known:
            self._known = True
            for link in self._links.values():
                _open(link)

    @property
    def _unsettled(self) -> bool:
        """Whether the topology is in doubt: a slot has no server, or a server cannot be reached."""
        unreachable = any(link.opened and not link.connected for link in self._links.values())
        homeless = bool(self._homeless or self._strays.handlers or self._dropped)
        return unreachable or homeless or not self._majority

    def _apply(self, topology: Topology) -> None:
        """Use a new topology: open and close links, and move what belongs to another server now."""
        primaries, before = topology.primaries, tuple(self._owners)
        self._servers, (self._majority, *_) = topology.servers, topology.rank
        for address in primaries - self._links.keys():
            self._add_link(address)
        self._owners = [None if address is None else self._links[address] for address in topology.owners]
        self._importing = {link for link in self._importing if not link.idle}
        others = [address for address in self._links if address not in primaries]
        retired = [self._links.pop(address) for address in others if self._links[address] not in self._importing]
        for link in {owner for owner in self._owners if owner is not None}:
            link.probe_key = self._probe_key(link)
        lost = any(old is not None and old is not new for old, new in zip(before, self._owners, strict=True))
        self._losses += lost
        for link in (*self._links.values(), *retired):
            self._move_channels(link)
        self._dropped.clear()
        for link in retired:
            log.warning("%s:%d is no longer a primary of the cluster", *self._addresses.pop(link))
            for command in link.take_commands():
                self._resend(command)
            closing = asyncio.create_task(link.close(), name="close a link")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        for channel, handler in self._strays.take(lambda _: True).items():
            self._attach(channel, handler)
        homeless, self._homeless = self._homeless, []
        for command in homeless:
            self._enqueue(command)
        if lost:
            self._call_on_reconnect()
        self._note_connected()

    def _add_link(self, address: Address) -> ServerLink:
        link = ServerLink(self._endpoint.at(*address), name=self._name, probe_key=None, router=self)
        link.on_pong = self._on_pong
        self._links[address] = link
        self._addresses[link] = address
        return link

    def _on_pong(self, duration_s: float) -> None:
        self.on_pong(duration_s)

    def _probe_key(self, link: ServerLink) -> str | None:
        """Return a name that this server has; None if it has no partition."""
        names = (self._keys.probe(number) for number in range(PARTITIONS))
        return next((name for name in names if self._owners[slot_of(name)] is link), None)

    def _move_channels(self, link: ServerLink) -> None:
        """Subscribe to the channels that ``link`` no longer serves at the servers that have them now."""
        moving = link.take_channels(
            lambda channel: channel in self._dropped or self._owners[slot_of(channel)] is not link
        )
        for channel, handler in moving.items():
            self._moved.add(channel)
            self._attach(channel, handler)

    # -- what the links report ----------------------------------------------------------------------

    def on_error(self, link: ServerLink, command: Command, text: str) -> bool:
        """Handle an error reply; return False if it is the reply for the caller of the command."""
        words = words_of(text)
        elsewhere, refused = words.startswith(MOVES), is_not_now(words) or is_not_primary(words)
        if not (elsewhere or refused):
            return False
        if not words.startswith("ASK "):
            self._stale.set()
        if words.startswith("MOVED ") and self._links.get(self._address_in(words, link)) is link:
            link.leave_wrong_server(command)
            return True
        if refused:
            self.refuse(words)
        if command.slot == NO_SLOT or (refused and not command.waits):  # its caller must know
            return False
        if words.startswith("ASK "):
            target = self._link_at(words, link)
            self._importing.add(target)
            target.enqueue(Command(pack(("ASKING",)), ignore))
            target.enqueue(command)
        elif elsewhere:
            self._follow_move(link, command, words)
        else:
            self._resend_later(command)
        return True

    def _follow_move(self, link: ServerLink, command: Command, words: str) -> None:
        """Send a command to the server that has its slot. If that is not certain yet, wait for the topology."""
        target, known = self._link_at(words, link), self._owners[command.slot]
        if known not in (link, target):
            self._resend_later(command)
            return
        if known is link:
            self._owners[command.slot] = target
            self._losses += 1
        self._resend(command)

    def _resend_later(self, command: Command) -> None:
        asyncio.get_running_loop().call_later(RESEND_DELAY_S, self._resend, command)

    def _address_in(self, words: str, answered: ServerLink) -> Address:
        """Return the address in ``MOVED slot host:port``; without a host, it is that of the server that answered."""
        host, _, port = words.split()[2].rpartition(":")
        return host.strip("[]") or self._addresses.get(answered, ("", 0))[0], int(port)

    def _link_at(self, words: str, answered: ServerLink) -> ServerLink:
        """Return the link to the server in ``MOVED slot host:port``."""
        address = self._address_in(words, answered)
        link = self._links.get(address) or self._add_link(address)
        _open(link)
        return link

    def on_lost(self, link: ServerLink) -> None:
        """Read the topology again: another server may take over."""
        self._stale.set()
        self._note_connected()
        if not self._ready.is_set() and link.failure is not None:
            self.note_failure(link.failure)

    def on_dropped(self, link: ServerLink, channels: Sequence[bytes]) -> None:  # noqa: ARG002 -- the topology shows it
        """Subscribe again to channels that their server no longer serves, when the topology is known."""
        self._dropped.update(channels)
        self._stale.set()

    def on_connected(self, link: ServerLink) -> None:
        """Resync the subscribers of a server that is connected again."""
        self._losses += link.reconnects > 0
        self._note_connected()
        self._call_on_reconnect()
        for channel, subscribers in list(self._subscribers.items()):
            if self._owners[slot_of(channel)] is link:
                _resync(subscribers)

    def _note_connected(self) -> None:
        connected = any(link.connected for link in self._links.values())
        if connected:
            self._ready.set()
            self.note_failure(None)
        elif self._ready.is_set():
            self._ready.clear()
            self._down_since_s = time.monotonic()

    def _call_on_reconnect(self) -> None:
        for callback in self.on_reconnect:
            try:
                callback()
            except Exception:  # an error of one handler must not end the others
                log.exception("a reconnect handler failed")

    # -- commands -----------------------------------------------------------------------------------

    def send(self, *args: bytes | str | int, on_reply: OnReply, key: str = "", once: bool = False) -> Command:
        """Send a command to the server of its first key, or of ``key``."""
        command = (Probe if once else Command)(pack(args), on_reply)
        command.slot = slot_of(key or first_key(args))
        self._enqueue(command)
        return command

    def _enqueue(self, command: Command) -> None:
        link = self._owners[command.slot]
        if link is not None:
            _open(link)
            link.enqueue(command)
        elif not command.cancelled:
            self.refuse(f"CLUSTERDOWN no server has the slot {command.slot}")
            self._homeless.append(command)
            self._stale.set()

    def _resend(self, command: Command) -> None:
        """Send a command again, perhaps to another server, which may not have what this process has sent before."""
        if command.repack is not None:
            command.payload = command.repack()
        self._enqueue(command)

    def flush(self) -> None:
        """Send the bytes of this turn of the event loop now."""
        for link in self._links.values():
            link.flush()

    def withdraw(self, command: Command) -> None:
        """Do not send the command (again), and drop its reply."""
        command.cancel()
        with contextlib.suppress(ValueError):
            self._homeless.remove(command)
        link = self._owners[command.slot]
        if link is not None:
            link.withdraw(command)

    def script(self, name: str) -> tuple[str, bytes]:
        """Return the first words of a call of a script, which publishes to sharded channels."""
        return "EVALSHA", CLUSTER_SCRIPTS[name].sha

    async def prove_writable(self) -> None:
        """Return when a server has run a script with a write, which stores nothing; raises BusError if all refuse."""
        await self._ready.wait()
        proofs = [asyncio.ensure_future(link.prove_writable()) for link in self._links.values() if link.connected]
        error: BusError | None = None
        try:
            for proof in asyncio.as_completed(proofs):
                try:
                    await proof
                except BusError as exc:
                    error = exc
                else:
                    return
        finally:
            for task in proofs:
                task.cancel()
            await asyncio.gather(*proofs, return_exceptions=True)
        raise error or BusError("no server of the cluster is connected")

    # -- channels -----------------------------------------------------------------------------------

    def subscribe(self, channel: bytes, on_message: OnMessage, *, everywhere: bool = False) -> asyncio.Future[None]:
        """Subscribe to a channel. The future is done when the server has confirmed; after that no message is missed."""
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, []).append(confirmed)
        if everywhere:
            self._everywhere.add(channel)
        self._attach(channel, on_message)
        return confirmed

    def _attach(self, channel: bytes, handler: OnMessage) -> None:
        """Subscribe at the server that has the channel, as soon as there is one."""
        link = self._owners[slot_of(channel)]
        if link is None:
            self._strays.add(channel, handler)
            self._stale.set()
            return
        _open(link)
        answered = link.subscribe(channel, handler, everywhere=channel in self._everywhere)
        answered.add_done_callback(partial(self._on_answered, channel))

    def _on_answered(self, channel: bytes, answered: asyncio.Future[None]) -> None:
        error = None if answered.cancelled() else answered.exception()
        if answered.cancelled() or isinstance(error, ServedElsewhere):
            return  # the channel moves
        for confirmed in self._waiting.pop(channel, ()):
            if confirmed.done():
                continue
            if error is None:
                confirmed.set_result(None)
            else:
                confirmed.set_exception(error)
        if channel in self._moved:
            self._moved.discard(channel)
            _resync(self._subscribers.get(channel, ()))

    def unsubscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Pass no more messages to ``on_message``; do nothing if it is not subscribed."""
        self._strays.remove(channel, on_message)
        for link in self._links.values():
            link.unsubscribe(channel, on_message)
        if channel not in self._strays and not any(link.subscribed(channel) for link in self._links.values()):
            self._waiting.pop(channel, None)
            self._everywhere.discard(channel)
            self._moved.discard(channel)
            self._dropped.discard(channel)

    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` whenever messages of its channel may have been lost."""
        self._subscribers.setdefault(subscriber.channel, []).append(subscriber)

    def remove_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` no more."""
        others = self._subscribers.get(subscriber.channel, [])
        with contextlib.suppress(ValueError):
            others.remove(subscriber)
        if not others:
            self._subscribers.pop(subscriber.channel, None)


def _open(link: ServerLink) -> None:
    if not link.opened:
        link.open()


def _resync(subscribers: Sequence[Subscriber]) -> None:
    for subscriber in tuple(subscribers):
        try:
            subscriber.resync()
        except Exception:  # an error of one stream must not end the others
            log.exception("a reader could not be resynced")
