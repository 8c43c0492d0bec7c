"""Waits until replicas have a write, so that a failover cannot lose it."""

import asyncio
from collections.abc import Hashable
from typing import Final

from agentstream.errors import BrokerUnavailable
from agentstream.store.connection.link import Link

WAIT_MS: Final = 1000  # replicas in step confirm within a millisecond or two
RETRY_AFTER_S: Final = 2


class _Confirmations:
    """The WAIT commands for one server, or for one slot of a cluster. One of them confirms every earlier write."""

    __slots__ = ("confirmed", "lock", "started")

    def __init__(self) -> None:
        self.started = self.confirmed = 0
        self.lock = asyncio.Lock()


class Replicas:
    """Confirms writes of one link. WAIT blocks its connection, so use a link that nothing else uses."""

    def __init__(self, link: Link, count: int) -> None:
        """Store the link of the writes, and the number of replicas that must have them."""
        self.link = link
        self._count = count
        self._groups: dict[Hashable, _Confirmations] = {}

    async def confirm(self, *names: str, reconnects: int) -> None:
        """Return when enough replicas have the writes to ``names`` that this link has sent and that were answered.

        ``reconnects`` is the value of the link before the writes. Raises BrokerUnavailable if that takes longer than
        WAIT_MS, or if the link has reconnected: then it is unknown what the new primary has.
        """
        for group, name in {self.link.group_of(name): name for name in names}.items():
            await self._confirm(self._groups.setdefault(group, _Confirmations()), name, reconnects)

    async def _confirm(self, group: _Confirmations, name: str, reconnects: int) -> None:
        earlier = group.started
        async with group.lock:
            if group.confirmed > earlier:
                return  # a WAIT that began later than the write
            group.started += 1
            number = group.started
            replicas = await self.link.call("WAIT", self._count, WAIT_MS, key=name)
            if self.link.reconnects != reconnects:
                message = "the primary of Redis was lost before its replicas had the run; try again"
                raise BrokerUnavailable(message, retry_after_s=RETRY_AFTER_S)
            if replicas < self._count:
                message = (
                    f"{replicas} replicas of Redis have the run after {WAIT_MS} ms, and {self._count} are required; "
                    "try again"
                )
                raise BrokerUnavailable(message, retry_after_s=RETRY_AFTER_S)
            group.confirmed = number
