"""Slots for runs. All queues of a worker share them."""

import asyncio


class Slots:
    """As many slots as runs may execute at the same time. A free slot goes to the task that has waited longest."""

    def __init__(self, count: int) -> None:
        """Start with all slots free."""
        self._semaphore = asyncio.Semaphore(count)
        self._waiting = 0

    @property
    def contended(self) -> bool:
        """Whether a task waits for a slot. A task that only waits for a job should then release its slot soon."""
        return self._waiting > 0

    def locked(self) -> bool:
        """Whether no slot is free."""
        return self._semaphore.locked()

    async def acquire(self) -> None:
        """Take a slot. Wait until one is free."""
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1

    def release(self) -> None:
        """Release a slot."""
        self._semaphore.release()
