"""Agents that try to end or silence their worker. A worker process imports this module by its name."""

import asyncio
import atexit
import concurrent.futures
import gc
import logging
import logging.config
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from agentstream import AgentResult, Run


class OddError(BaseException):
    """An exception that no `except Exception` catches."""


async def _exits() -> NoReturn:
    sys.exit(3)


async def _interrupts() -> NoReturn:
    raise KeyboardInterrupt


async def gather_exit() -> None:
    """Exit in a task that the agent awaits."""
    await asyncio.gather(_exits())


async def gather_interrupt() -> None:
    """Raise KeyboardInterrupt in a task that the agent awaits."""
    await asyncio.gather(_interrupts())


async def task_group_exit() -> None:
    """Exit in a task of a task group."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_exits(), name="exits")


async def stray_task_exit() -> None:
    """Exit in a task that nobody awaits."""
    stray = asyncio.create_task(_exits(), name="stray")
    await asyncio.sleep(0.05)
    assert stray.done()


async def callback_exit() -> None:
    """Exit in callbacks of the loop."""
    loop = asyncio.get_running_loop()
    loop.call_soon(sys.exit, 3)
    loop.call_later(0.01, sys.exit, 3)
    loop.call_soon_threadsafe(sys.exit, 3)
    asyncio.create_task(asyncio.sleep(0), name="quick").add_done_callback(lambda _: sys.exit(3))
    await asyncio.sleep(0.1)


async def executor_exit() -> None:
    """Exit in a thread of the executor."""
    await asyncio.to_thread(sys.exit, 3)


async def generator_exit() -> None:
    """Exit while an asynchronous generator is closed by the loop."""

    async def pieces() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            sys.exit(3)

    await anext(aiter(pieces()))
    gc.collect()
    await asyncio.sleep(0.05)


async def base_exception() -> None:
    """Raise an exception that is no Exception."""
    raise OddError


async def exit_group() -> None:
    """Raise a group that holds SystemExit."""
    message = "exits"
    raise BaseExceptionGroup(message, [SystemExit(3), OddError()])


async def unreadable_exception() -> None:
    """Raise an exception whose text raises."""

    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    raise UnreadableError


async def deep_recursion() -> None:
    """Recurse without an end."""

    def deeper(depth: int) -> int:
        return deeper(depth + 1)

    deeper(0)


async def os_exit() -> None:
    """Call os._exit."""
    os._exit(3)


async def os_abort() -> None:
    """Call os.abort."""
    os.abort()


async def kill_itself() -> None:
    """Send SIGKILL to the worker."""
    os.kill(os.getpid(), signal.SIGKILL)


async def terminate_group() -> None:
    """Send SIGTERM to the worker's process group."""
    os.killpg(os.getpgrp(), signal.SIGTERM)


async def raise_sigterm() -> None:
    """Raise SIGTERM in the worker."""
    signal.raise_signal(signal.SIGTERM)


async def stop_loop() -> None:
    """Stop the event loop."""
    asyncio.get_running_loop().stop()


async def stop_loop_from_thread() -> None:
    """Stop the event loop from a thread that says nothing of its agent."""
    loop = asyncio.get_running_loop()
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(loop.stop))
    thread.start()
    await asyncio.sleep(0.1)


async def close_executor() -> None:
    """Shut down the default executor of the loop."""
    await asyncio.get_running_loop().shutdown_default_executor()


async def replace_executor() -> None:
    """Make an executor that is shut down the default executor of the loop."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asyncio.get_running_loop().set_default_executor(pool)
    await asyncio.to_thread(int)


async def cancel_all_tasks() -> None:
    """Cancel every task except this one."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.05)


async def replace_signal_handlers() -> None:
    """Take the signals away from the worker."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, int)
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


async def disable_logging() -> None:
    """Disable logging in every way."""
    logging.disable(logging.CRITICAL)
    logging.config.dictConfig({"version": 1})  # disables all existing loggers
    logging.getLogger("agentstream").propagate = False
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL + 1)
        handler.addFilter(lambda _: False)


async def replace_logging() -> None:
    """Replace the log handlers, as scripts do."""
    logging.basicConfig(level=logging.CRITICAL, handlers=[logging.NullHandler()], force=True)


async def replace_stderr() -> None:
    """Send standard error, and everything printed to it, to nowhere."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: ASYNC230, PTH123 -- the attack
        os.dup2(nowhere.fileno(), 2)
    sys.stderr.close()


async def warnings_as_errors() -> None:
    """Turn warnings into errors."""
    warnings.simplefilter("error")


async def disable_gc() -> None:
    """Disable the garbage collector."""
    gc.disable()
    gc.set_threshold(0)


async def starve_interpreter() -> None:
    """Set limits of the interpreter that break other code."""
    sys.setswitchinterval(100)
    sys.setrecursionlimit(200)


async def change_policy() -> None:
    """Change the policy of event loops."""
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    asyncio.set_event_loop(None)
    asyncio.get_running_loop().set_exception_handler(lambda *_: sys.exit(3))
    asyncio.create_task(base_exception(), name="stray").add_done_callback(lambda _: 1 / 0)
    await asyncio.sleep(0.05)


async def change_folder() -> None:
    """Change the working directory."""
    os.chdir("/")


async def block_exit() -> None:
    """Register an exit handler and a thread that never end."""
    atexit.register(time.sleep, 3600)
    threading.Thread(target=time.sleep, args=(3600,)).start()


async def fork_child() -> None:
    """Fork a child that exits."""
    child = os.fork()
    if child == 0:
        sys.exit(7)
    _, status = os.waitpid(child, 0)  # noqa: ASYNC222 -- the child ends at once
    assert os.waitstatus_to_exitcode(status) == 7


ATTACKS: dict[str, Callable[[], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        gather_exit, gather_interrupt, task_group_exit, stray_task_exit, callback_exit, executor_exit, generator_exit,
        base_exception, exit_group, unreadable_exception, deep_recursion, os_exit, os_abort, kill_itself,
        terminate_group, raise_sigterm, stop_loop, stop_loop_from_thread, close_executor, replace_executor,
        cancel_all_tasks, replace_signal_handlers, disable_logging, replace_logging, replace_stderr,
        warnings_as_errors, disable_gc, starve_interpreter, change_policy, change_folder, block_exit, fork_child,
    )
}  # fmt: skip


async def killer(run: Run) -> AgentResult:
    """Do the attack that the last message names."""
    await ATTACKS[run.request.messages[-1].text]()
    return AgentResult("survived")


def killer_in_a_thread(run: Run) -> AgentResult:
    """Do the attack of that name in a thread."""

    def started() -> None:
        sys.exit(3)

    attacks: dict[str, Callable[[], Any]] = {
        "exit": lambda: sys.exit(3),
        "os exit": lambda: os._exit(3),
        "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
        "odd": lambda: (_ for _ in ()).throw(OddError),
        "own loop": lambda: asyncio.run(gather_exit()),
        "thread": lambda: threading.Thread(target=started).start(),
        "kill": lambda: os.kill(os.getpid(), signal.SIGTERM),
    }
    attacks[run.request.messages[-1].text]()
    return AgentResult("survived")


async def neighbour(run: Run) -> AgentResult:
    """Stream until the file GATE exists, with a call of the default executor for each piece."""
    number = 0
    while not await asyncio.to_thread(os.path.exists, os.environ["GATE"]):
        run.write(f"{number} ")
        number += 1
        await asyncio.sleep(0.02)
    return AgentResult("")
