"""The call of an agent's code, on the event loop or in a thread, so that nothing it raises can end the worker."""

import asyncio
import logging
import os

from agentstream import errors
from agentstream.agents import Agent, Run
from agentstream.agents.shapes import returned_in_thread, returned_on_loop

log = logging.getLogger(__name__)


async def await_agent(outcome: object, run: Run) -> object:
    """Await the result of the agent's function. Its SystemExit must not end the worker."""
    worker = os.getpid()
    try:
        return await returned_on_loop(outcome, run)
    except (SystemExit, KeyboardInterrupt) as exc:
        _end_if_forked(worker, exc)
        message = f"the agent raised {type(exc).__name__}"
        raise errors.AgentError(message) from exc


def _end_if_forked(worker: int, exc: BaseException) -> None:
    """End this process if it is a child that the agent forked: a copy of the worker must not work on its runs."""
    if os.getpid() != worker:
        code = getattr(exc, "code", 1)
        os._exit(code if isinstance(code, int) else int(code is not None))


def call_in_thread(agent: Agent, run: Run, done: asyncio.Future[object]) -> None:
    """Call the agent and pass its result or exception to the event loop, unless the loop has closed."""
    result: object = None
    error: BaseException | None = None
    worker = os.getpid()
    try:
        result = returned_in_thread(agent(run), run)
    except StopIteration as exc:  # a future cannot hold StopIteration
        error = RuntimeError(f"the agent raised StopIteration: {exc.value!r}")
    except (SystemExit, KeyboardInterrupt) as exc:
        _end_if_forked(worker, exc)
        error = errors.AgentError(f"the agent raised {type(exc).__name__}")
    except BaseException as exc:  # noqa: BLE001 -- every exception is the outcome of the run
        error = exc

    def settle() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    try:
        done.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:
        log.warning("the agent's thread ended after the worker had stopped")
