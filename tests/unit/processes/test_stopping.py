"""Stop signals and the pipe from a parent: when a process stops, and when it works on."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from agentstream.processes import stopping
from agentstream.processes.stopping import StopPipe, done_before, stop_signals
from tests.helpers import TIMEOUT_S


@pytest.fixture
def pipe() -> Iterator[StopPipe]:
    """A pipe whose child's end is in this process too."""
    opened = StopPipe()
    yield opened
    opened.stop()


async def is_set(stop: asyncio.Event) -> None:
    """Wait until the event is set."""
    async with asyncio.timeout(TIMEOUT_S):
        await stop.wait()


async def delivered() -> None:
    """Return after the event loop has handled the signals and the pipe: it handles another signal after them."""
    handled = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, handled.set)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        await is_set(handled)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
async def test_a_signal_stops(number: signal.Signals) -> None:
    """Each stop signal sets the event, and afterwards the signals have their former effect."""
    before = signal.getsignal(number)
    with stop_signals() as stop:
        os.kill(os.getpid(), number)
        await is_set(stop)
    assert signal.getsignal(number) == before


async def test_only_a_second_interrupt_is_special() -> None:
    """A repeated SIGTERM does nothing more; the second SIGINT calls the given function."""
    seconds: list[int] = []
    with stop_signals(on_second_interrupt=lambda: seconds.append(1)) as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            await delivered()
        assert stop.is_set()
        assert seconds == []
        os.kill(os.getpid(), signal.SIGINT)
        await delivered()
    assert seconds == [1]


async def test_an_ignored_hangup_stays_ignored() -> None:
    """A process that was started by nohup does not stop when its terminal closes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            await delivered()
        assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_child_stops_when_its_parent_says_so(pipe: StopPipe) -> None:
    """The end of the pipe stops a child without a signal, so a child also stops when its parent is killed."""
    with stop_signals(parent=pipe.child_end) as stop:
        pipe.wait()
        await delivered()
        assert not stop.is_set()
        pipe.stop()
        await is_set(stop)


async def test_a_child_works_on_until_the_pipe_is_closed(pipe: StopPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the parent stops too, no signal stops a child before the parent closes the pipe."""
    monkeypatch.setattr(stopping, "PARENT_REPLY_S", 0.05)
    with stop_signals(parent=pipe.child_end) as stop:
        pipe.wait()
        await delivered()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        await asyncio.sleep(4 * stopping.PARENT_REPLY_S)  # nothing happens
        assert not stop.is_set()
        pipe.stop()
        await is_set(stop)


async def test_a_child_that_is_signalled_alone_stops(pipe: StopPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the parent says nothing, a child that got a signal stops."""
    monkeypatch.setattr(stopping, "PARENT_REPLY_S", 0.05)
    with stop_signals(parent=pipe.child_end) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        await is_set(stop)


def test_a_pipe_to_an_ended_child_is_harmless() -> None:
    """The parent may speak to a child that has ended."""
    with StopPipe() as pipe:
        pass
    pipe.wait()
    pipe.stop()
    pipe.wait()
    pipe.stop()


async def test_a_start_that_is_done_first_goes_on() -> None:
    """What is done before the stop is reported as done."""
    assert await done_before(asyncio.Event(), asyncio.sleep(0))


async def test_a_stop_cancels_a_start_and_waits_for_its_end() -> None:
    """A stop cancels what is not done, and waits until it has cleaned up."""
    stop, begun, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def starting() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    waiting = asyncio.create_task(done_before(stop, starting()))
    await is_set(begun)
    stop.set()
    assert not await waiting
    assert ended.is_set()


async def test_the_error_of_a_start_is_raised() -> None:
    """An error before the stop is raised."""

    async def starting() -> None:
        await asyncio.sleep(0)
        message = "refused"
        raise OSError(message)

    with pytest.raises(OSError, match="refused"):
        await done_before(asyncio.Event(), starting())
