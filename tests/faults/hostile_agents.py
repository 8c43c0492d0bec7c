"""Hostile and careless agents. A worker process imports this module by name."""

import asyncio
import contextlib
import threading
import time
from typing import Any

from agentstream.agents import AgentResult, Run
from agentstream.errors import RunCancelled

LINE = "0123456789abcdef" * 255  # 4080 characters; with its number, 4096
STRAYS: list[threading.Thread] = []


def numbered_line(number: int) -> str:
    """Return 4096 characters that begin with their number."""
    return f"{number:015} {LINE}"


def flood(run: Run) -> AgentResult:
    """Write numbered lines as fast as possible. The last message holds their number."""
    for number in range(int(run.request.messages[-1].text)):
        run.write(numbered_line(number))
    return AgentResult("")


async def flood_on_loop(run: Run) -> AgentResult:
    """Write numbered lines on the event loop, and wait for room after each."""
    for number in range(int(run.request.messages[-1].text)):
        run.write(numbered_line(number))
        await run.drain()
    return AgentResult("")


async def flood_without_waiting(run: Run) -> AgentResult:
    """Write numbered lines on the event loop without waiting."""
    for number in range(int(run.request.messages[-1].text)):
        run.write(numbered_line(number))
    return AgentResult("")


def tiny_events(run: Run) -> AgentResult:
    """Emit tiny named events. The last message holds their number."""
    for number in range(int(run.request.messages[-1].text)):
        run.emit("inference_start", {"n": number})
    return AgentResult("done")


def _block_for_ever(_run: Run) -> AgentResult:
    threading.Event().wait()
    return AgentResult("never")


def _write_from_threads(run: Run) -> AgentResult:
    def write(name: int) -> None:
        for number in range(500):
            run.write(f"{name}:{number} ")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return AgentResult("")


def _write_after_the_end(run: Run) -> AgentResult:
    def stray() -> None:
        with contextlib.suppress(RunCancelled):
            while True:
                run.write("stray ")
                time.sleep(0.001)

    STRAYS.append(threading.Thread(target=stray, daemon=True))
    STRAYS[-1].start()
    time.sleep(0.05)
    return AgentResult("")


def _strays_left(_run: Run) -> AgentResult:
    for thread in STRAYS:
        thread.join(5)
    return AgentResult(f"{sum(thread.is_alive() for thread in STRAYS)} of {len(STRAYS)}")


def _lone_surrogates(run: Run) -> AgentResult:
    run.emit("tool_call_start", {"tool": "t\ud800", "arguments": "\udfff{not json"})
    run.emit("tool_call_end", {"tool": "t\ud800", "success": True, "latency": 0.0, "result": {"\ud83d": "\ude00"}})
    run.write("a\ud800b")
    run.write("\ud83d")
    run.write("\ude00c")
    return AgentResult("")


def _replay_much(_run: Run) -> AgentResult:
    return AgentResult(" ".join(f"{number:07}" for number in range(900 * 1024 // 8)))


def _absurd_numbers(run: Run) -> AgentResult:
    run.emit("tool_call_end", {"tool": "t", "latency": 1e308})
    run.write("x")
    return AgentResult("")


BEHAVIOURS = {
    "block for ever": _block_for_ever,
    "write from threads": _write_from_threads,
    "write after the end": _write_after_the_end,
    "strays left": _strays_left,
    "lone surrogates": _lone_surrogates,
    "replay much": _replay_much,
    "absurd numbers": _absurd_numbers,
}


def hostile(run: Run) -> AgentResult:
    """Run the behaviour that the last message names, in a thread."""
    behaviour = BEHAVIOURS.get(run.request.messages[-1].text)
    return behaviour(run) if behaviour else AgentResult("fine")


async def _ignore_cancels(_run: Run) -> AgentResult:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def _leave_a_task(run: Run) -> AgentResult:
    async def stray() -> None:
        while True:
            run.write("stray ")
            await asyncio.sleep(0.001)

    STRAY_TASKS.append(asyncio.create_task(stray(), name="stray"))
    await asyncio.sleep(0.05)
    return AgentResult("")


async def _tasks_left(_run: Run) -> AgentResult:
    await asyncio.wait(STRAY_TASKS, timeout=5)
    ended = [task for task in STRAY_TASKS if task.done() and isinstance(task.exception(), RunCancelled)]
    return AgentResult(f"{len(STRAY_TASKS) - len(ended)} of {len(STRAY_TASKS)}")


STRAY_TASKS: list[asyncio.Task[Any]] = []
ASYNC_BEHAVIOURS = {"ignore cancels": _ignore_cancels, "leave a task": _leave_a_task, "tasks left": _tasks_left}


async def hostile_on_loop(run: Run) -> AgentResult:
    """Run the behaviour that the last message names, on the event loop."""
    behaviour = ASYNC_BEHAVIOURS.get(run.request.messages[-1].text)
    return await behaviour(run) if behaviour else AgentResult("fine")
