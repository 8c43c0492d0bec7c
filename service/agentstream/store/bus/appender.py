"""Appends and publishes the batches of several runs with one command for each turn of the event loop.

While many runs write, the batches of several turns of the loop gather, because each command wakes this process, the
broker and a front end. With 200 runs of 20 tokens a second, gathering for 5 ms saves a fifth of all CPU time.

Most of the cost of a script is its call: 5.1 us of the broker's time for one batch, 3.1 us a batch for 50 (Valkey 9.1,
measured). The two plain commands XADD and PUBLISH cost 2.5 us, but would also publish batches that the log refuses.
"""

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from agentstream.store.bus.counts import PublishCounts
from agentstream.store.connection.link import Link
from agentstream.store.connection.wire import Reply, pack

# Runs in one command. The broker does nothing else while a script runs, so a script must stay well below 1 ms.
MAX_RUNS: Final = 64
# Batches gather only while more than so many are sent in each window. At fewer, waiting saves little.
QUIET_BATCHES: Final = 10
# So many batches are sent at once. More would save little, and wait longer.
FULL_BATCHES: Final = 32
# A run that has sent nothing for so long is silent. Its reader waits, so its next batch is sent at once.
SILENT_S: Final = 0.25


class AppendSource(Protocol):
    """A run with batches to append.

    ``sent_at_s`` is when its last batch was sent, by the clock of the event loop. Sources with an equal ``group`` may
    share a script call (``Link.group_of``).
    """

    sent_at_s: float
    group: Hashable

    def next_append(self, now_s: float, reconnects: int) -> "Append | None":
        """Return the next batch to append; None if there is none now. ``reconnects`` is ``Link.reconnects``."""
        ...

    def on_append_stored(self) -> None:
        """Continue, because the batch is stored and published."""

    def on_append_refused(self) -> None:
        """Find out why the batch was not stored."""


class Append(NamedTuple):
    """A batch to append to a run's replay log."""

    source: AppendSource
    log: str
    entry_id: str
    payload: bytes


class Appender:
    """Sends the batches of all runs of a process to the broker. Use it on the event loop only."""

    def __init__(self, link: Link, gather_s: float = 0) -> None:
        """Store the link. A batch that is not urgent waits for those of other runs for at most ``gather_s``."""
        self._link = link
        self._gather_s = gather_s
        self._scheduled: list[AppendSource] = []
        self._timer: asyncio.TimerHandle | None = None  # while the scheduled batches gather
        self._silent_since_s = 0.0  # a run that last sent before this time is silent
        self._window_began_s = 0.0  # of the present window, which is ``gather_s`` long, by the clock of the loop
        self._in_window = 0  # batches sent in it
        self._busy = False  # whether the window before had more than QUIET_BATCHES
        self.counts = PublishCounts()  # of all publishers of the process

    def schedule(self, source: AppendSource) -> None:
        """Send the next batch of ``source`` at the end of this turn. Call this at most once a turn for each source."""
        self._scheduled.append(source)
        if len(self._scheduled) == 1:
            asyncio.get_running_loop().call_soon(self._send)
        else:
            self.hurry()

    def schedule_text(self, source: AppendSource) -> None:
        """Send the next batch of ``source``, which is streamed text. Call this at most once a turn for each source.

        While many runs write, the batch may wait for up to ``gather_s``. The first batch of a silent run is sent at the
        end of this turn, together with all batches that wait.
        """
        scheduled = self._scheduled
        scheduled.append(source)
        if len(scheduled) == 1:
            loop = asyncio.get_running_loop()
            self._silent_since_s = loop.time() - SILENT_S
            if self._busy and source.sent_at_s >= self._silent_since_s:
                self._timer = loop.call_later(self._gather_s, self._send)
            else:
                loop.call_soon(self._send)
        elif len(scheduled) >= FULL_BATCHES or source.sent_at_s < self._silent_since_s:
            self.hurry()

    def hurry(self) -> None:
        """Send the scheduled batches at the end of this turn: one of them has become urgent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        sources, self._scheduled = self._scheduled, []
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        if self._gather_s:
            self._count(len(sources), now_s)
        reconnects = self._link.reconnects
        appends = [append for source in sources if (append := source.next_append(now_s, reconnects)) is not None]
        for group in self._groups(appends):
            for start in range(0, len(group), MAX_RUNS):
                self._append(group[start : start + MAX_RUNS])
        self._link.flush()  # this is the end of the turn; the link would flush at the end of the next turn

    def _count(self, batches: int, now_s: float) -> None:
        """Count the batches of each window, to find out whether gathering pays."""
        past_s = now_s - self._window_began_s
        if past_s >= self._gather_s:
            self._busy = self._in_window + batches > QUIET_BATCHES and past_s < 2 * self._gather_s
            self._window_began_s, self._in_window = now_s, 0
        self._in_window += batches

    def _groups(self, appends: list[Append]) -> Iterable[list[Append]]:
        """Return the appends by script: all in one, or those of each slot of a cluster in their own."""
        if len(appends) < 2:  # noqa: PLR2004 -- the common case at a low rate
            return (appends,)
        groups: dict[Hashable, list[Append]] = {}
        for append in appends:
            groups.setdefault(append.source.group, []).append(append)
        return groups.values()

    def _append(self, appends: Sequence[Append]) -> None:
        def on_reply(reply: Reply) -> None:
            if reply == len(appends):
                for append in appends:
                    append.source.on_append_stored()
                return
            results = reply if isinstance(reply, list) else [0] * len(appends)  # any other reply applies to every batch
            for append, stored in zip(appends, results, strict=True):
                if stored == 1:
                    append.source.on_append_stored()
                else:
                    append.source.on_append_refused()

        logs: list[str] = []
        arguments: list[str | bytes] = []
        for _, log, entry_id, payload in appends:
            logs.append(log)
            arguments += entry_id, payload
        command = self._link.send_script("append", logs, *arguments, on_reply=on_reply)
        # After a reconnect it is unknown which batches are stored, and whether the attempts are still the newest ones.
        # The reply to PING is neither a list nor their number, so every source finds that out.
        command.repack = lambda: pack(("PING",))
