"""Slots for runs. All queues of a worker share them."""

import asyncio
import contextlib
from collections import deque


class Slots:
    """As many slots as runs may execute at the same time. A free slot goes to the task that has waited longest."""

    def __init__(self, count: int) -> None:
        """Start with all slots free."""
        self.free = count  # 0 while a task waits
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def contended(self) -> bool:
        """Whether a task waits for a slot. A task that only waits for a job should then release its slot soon."""
        return bool(self._waiters)

    def take(self, at_most: int = 1) -> int:
        """Take up to ``at_most`` free slots without waiting; return how many."""
        taken = min(at_most, self.free)
        self.free -= taken
        return taken

    async def acquire(self) -> None:
        """Take a slot. Wait until one is free."""
        if self.take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            if not waiter.cancelled():  # it has got a slot
                self.release()
            raise

    def release(self) -> None:
        """Release a slot: pass it to the task that has waited longest, or else keep it free."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.free += 1
