"""Stops a process after a signal, or when its parent closes a pipe.

Some supervisors signal only the parent of a service, others all its processes at once (systemd with
``KillMode=control-group``, some platforms). Both lead to the same drain:

- A repeated SIGTERM changes nothing, because a process may get it from the supervisor and from its parent.
- A child that gets a signal asks its parent over a pipe. If the parent stops too, the child works on until the
  parent closes the pipe.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Self

from agentstream.processes.runtime import EXIT_INTERRUPTED

log = logging.getLogger(__name__)

# A child that got a signal waits this long for its parent to say that it stops too. A supervisor signals all processes
# within milliseconds; the rest is for a busy machine.
PARENT_REPLY_S: Final = 2.0

_WAIT: Final = b"w"


def exit_at_once() -> None:
    """End this process without a cleanup, as a second ctrl-C asks for."""
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def stop_signals(
    *, on_second_interrupt: Callable[[], object] = exit_at_once, parent: int | None = None
) -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM, SIGINT and SIGHUP set.

    Further signals have no effect, except a second SIGINT (ctrl-C): it calls ``on_second_interrupt``. SIGHUP is left
    alone if this process was started with it ignored, as nohup does.

    In a child process, ``parent`` is the child's end of the pipe to its parent (see ``StopPipe``). The event is then
    set when the parent closes the pipe or dies, or when this child alone received a signal.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    caught = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        caught.append(signal.SIGHUP)
    listener = None if parent is None else _StopListener(parent, stop)
    interrupts = 0

    def on_signal(number: signal.Signals) -> None:
        nonlocal interrupts
        if listener is not None:
            listener.on_signal()
            return
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            on_second_interrupt()
        elif interrupts and not stop.is_set():
            log.info("stopping; a second ctrl-C ends at once")
        stop.set()

    before = {number: signal.getsignal(number) for number in caught}
    for number in caught:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)  # asyncio's Runner has one for SIGINT, which the loop does not restore
        if listener is not None:
            listener.close()


async def done_before(stop: asyncio.Event, starting: Coroutine[Any, Any, None]) -> bool:
    """Await ``starting`` until it is done, and return True. If ``stop`` is set first, cancel it and return False."""
    start = asyncio.create_task(starting, name="start")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            return False
        start.result()
        return True
    finally:
        stopping.cancel()
        start.cancel()
        await asyncio.gather(start, stopping, return_exceptions=True)


class StopPipe:
    """The parent's end of the pipe to a child. It tells the child when to stop.

    A byte means that the parent stops, and that the child works on until the parent closes the pipe. When the pipe is
    closed, the child stops. So a child also stops when its parent is killed.
    """

    def __init__(self) -> None:
        """Open the pipe. ``child_end`` is for the child; close it after the child was started."""
        self.child_end, self._end = os.pipe()

    def __enter__(self) -> Self:
        """Return the pipe while the child is started."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Close the child's end, which the child has inherited; after an error also the parent's."""
        os.close(self.child_end)
        if error is not None:
            self.stop()

    def wait(self) -> None:
        """Tell the child that the parent stops, and that the child works on until ``stop``."""
        if self._end >= 0:
            with contextlib.suppress(BrokenPipeError):  # the child has ended
                os.write(self._end, _WAIT)

    def stop(self) -> None:
        """Close the pipe, so that the child stops."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1


class _StopListener:
    """The child's end of the pipe: it sets ``stop`` when this child must stop."""

    def __init__(self, descriptor: int, stop: asyncio.Event) -> None:
        """Read the pipe until ``close``."""
        self._descriptor = descriptor
        self._stop = stop
        self._parent_stops = False
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        os.set_inheritable(descriptor, False)  # noqa: FBT003 -- its signature
        self._loop.add_reader(descriptor, self._on_byte)

    def on_signal(self) -> None:
        """Stop soon, unless the parent says that it stops too."""
        self._loop.call_later(PARENT_REPLY_S, self._stop_alone)

    def close(self) -> None:
        """Stop reading the pipe."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _on_byte(self) -> None:
        if os.read(self._descriptor, 64):
            self._parent_stops = True
        else:
            self.close()
            self._stop.set()

    def _stop_alone(self) -> None:
        if not self._parent_stops:
            self._stop.set()
