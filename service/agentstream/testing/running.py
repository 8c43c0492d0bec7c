"""Runs an agent once."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from agentstream.agents import Caller, Restored
from agentstream.agents.shapes import is_resumable
from agentstream.protocol.jobs import Job, new_request_id, new_run_id
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.testing.outcome import AgentOutcome
from agentstream.testing.recording import RecordedRun, Recording, started

TIMEOUT_S: Final = 60.0

T = TypeVar("T")


def run_agent(
    agent: object,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    caller: Caller | None = None,
    timeout_s: float = TIMEOUT_S,
    restored: Restored | None = None,
    **request: Any,  # noqa: ANN401 -- JSON
) -> AgentOutcome:
    """Run an agent in a new event loop, and return its outcome. For async tests see ``run_agent_async``.

    ``agent`` may be everything that a worker accepts: a function, a generator, an object, or an async context manager,
    which is entered before the run and left after it. ``messages`` is the text of the user, or a list of messages in
    OpenAI's form. ``request`` has more fields of the request, for example ``tools``. ``caller`` becomes ``run.caller``.

    ``restored`` becomes ``run.restored`` of an agent that is ``resumable``, for example
    ``Restored(state={"page": 3}, text="Page 4: ")``. The outcome then begins with what is restored, as at the client.

    Raises the exception of the agent unchanged, InvalidAgentOutput for a wrong result or event, TypeError if the object
    cannot be an agent, ValueError if it is not resumable but ``restored`` is given, and TimeoutError after
    ``timeout_s``. Raises RuntimeError on a running event loop.
    """
    return in_new_loop(
        lambda: run_agent_async(agent, messages, caller=caller, timeout_s=timeout_s, restored=restored, **request),
        "run_agent",
    )


async def run_agent_async(
    agent: object,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    caller: Caller | None = None,
    timeout_s: float = TIMEOUT_S,
    restored: Restored | None = None,
    **request: Any,  # noqa: ANN401 -- JSON
) -> AgentOutcome:
    """Run an agent on this event loop, and return its outcome; see ``run_agent``. A cancel cancels the agent."""
    run = RecordedRun(job_of(messages, caller, request))
    async with started(agent, timeout_s) as called:
        if restored is not None:
            if not is_resumable(called):
                message = f"the agent is not resumable, so a worker gives it no run.restored; {HOW_TO_DECLARE}"
                raise ValueError(message)
            run.add_restored(restored)
        outcome = await Recording(called, run).outcome(timeout_s)
        assert outcome is not None, "nobody killed the worker"  # noqa: S101 -- narrows the type
        return outcome


HOW_TO_DECLARE: Final = "put the decorator `agentstream.resumable` on it, or set `resumable = True`"


def in_new_loop(start: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
    """Return the result of a coroutine in a new event loop. Raises RuntimeError on a running one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(start())
    message = f"{name} was called on a running event loop; in an async test write `await {name}_async(...)`"
    raise RuntimeError(message)


def job_of(messages: str | Sequence[Mapping[str, Any]], caller: Caller | None, request: dict[str, Any]) -> Job:
    """Return the job of a new run."""
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(each) for each in messages]
    chat = ChatCompletionRequest.model_validate({"model": "test", "messages": given, **request})
    now = time.time()
    return Job(
        run_id=new_run_id(),
        request=chat.model_dump(mode="json", exclude_unset=True),
        created=int(now),
        start_by=now,
        request_id=caller.request_id if caller and caller.request_id else new_request_id(),
        owner=caller.key_hash if caller else "",
        headers=dict(caller.headers) if caller else {},
    )
