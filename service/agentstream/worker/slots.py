"""Room for runs, shared by all queues that a worker serves."""

import asyncio


class Slots:
    """As many slots as runs may go on at once; who asks first gets the next."""

    def __init__(self, count: int) -> None:
        """Begin with all of them free."""
        self._semaphore = asyncio.Semaphore(count)
        self._waiting = 0

    @property
    def contended(self) -> bool:
        """Whether somebody waits for one: a slot that is only waited with should be given back soon."""
        return self._waiting > 0

    def locked(self) -> bool:
        """Whether whoever asks now must wait."""
        return self._semaphore.locked()

    async def acquire(self) -> None:
        """Take one, when there is one."""
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1

    def release(self) -> None:
        """Give one back."""
        self._semaphore.release()
