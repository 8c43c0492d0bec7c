"""What this process has written to the broker a short time ago: a failover may lose it."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

# Replication lags by less than a second. Sentinels by default replace a primary 30 s after it is lost, a cluster 15 s.
KEPT_S: Final = 60.0
MAX_BYTES: Final = 16 << 20
# After a reconnect a process that would begin or enqueue something again waits for so long. Meanwhile the other
# processes reconnect, whose longest back-off is 1 s, and store what they have.
SETTLE_S: Final = 1.5

Item = TypeVar("Item")


class Recent(Generic[Item]):
    """The items of the last KEPT_S, the oldest first; fewer if there are more than ``max_items`` or MAX_BYTES."""

    def __init__(self, max_items: int) -> None:
        """Start without items."""
        self._max_items = max_items
        self._items: deque[tuple[float, int, Item]] = deque()
        self._bytes = 0

    def add(self, item: Item, size_bytes: int = 0) -> None:
        """Keep an item that holds about ``size_bytes`` of memory."""
        self._items.append((time.monotonic(), size_bytes, item))
        self._bytes += size_bytes
        self._drop_old()

    def __iter__(self) -> Iterator[Item]:
        """Yield the items that are kept now."""
        self._drop_old()
        return iter([item for _, _, item in self._items])

    def _drop_old(self) -> None:
        items, oldest_s = self._items, time.monotonic() - KEPT_S
        while items and (len(items) > self._max_items or self._bytes > MAX_BYTES or items[0][0] < oldest_s):
            self._bytes -= items.popleft()[1]
