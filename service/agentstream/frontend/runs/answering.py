"""Answers the interrupts of a run, so that the run goes on."""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import orjson

from agentstream.errors import BusError, Conflict, Gone, InvalidRequest
from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import BrokerTimeout, require_broker
from agentstream.frontend.runs.source import run_open_ttl_s
from agentstream.protocol.interrupts import MAX_ANSWER_BYTES, MAX_ANSWERS_BYTES, reason_against_answer
from agentstream.protocol.jobs import Job
from agentstream.store.interrupts import TIMED_OUT, Waiting
from agentstream.store.runs import RunInfo

# A run is parked within this time after it has asked, unless tools of it still run.
PARKING_TIMEOUT_S: Final = 4.0
_RETRY_S: Final = 0.05
# If this front end is killed between the answer and the enqueueing, a worker enqueues the run after this time.
_REMEMBER_S: Final = 10


class Answered(NamedTuple):
    """A run whose interrupts were answered. ``repeated``: all these answers were stored before."""

    info: RunInfo
    repeated: bool


async def answer_run(context: Context, info: RunInfo, answers: Mapping[str, Any]) -> Answered:
    """Store answers to open interrupts of a run. After the last one the run is in its queue again.

    The same answers may be sent again, also after the end of the run. Raises Conflict if the run waits for nothing, if
    an interrupt has another answer already, or if it has expired; InvalidRequest for an unknown interrupt or an answer
    that does not fit; Gone if the run can no longer go on; and BrokerUnavailable. Nothing is stored then.
    """
    require_broker(context)
    answered = await _answer(context, info, answers)
    # The same answers once more change nothing, and enqueue the run if the broker has lost its queue entry.
    context.recovery.remember(partial(_answer, context, info, answers), len(orjson.dumps(answers)))
    return answered


async def _answer(context: Context, info: RunInfo, answers: Mapping[str, Any]) -> Answered:
    give_up_at_s = time.monotonic() + PARKING_TIMEOUT_S
    while True:
        try:
            async with BrokerTimeout(context):
                stored = await _store(context, info, answers)
                if stored is not None:
                    return Answered(await context.runs.get_info(info.run_id) or info, stored == "repeated")
        except BusError as exc:
            raise Gone(str(exc)) from exc
        if time.monotonic() > give_up_at_s:
            message = f"the run {info.run_id} has asked, but still runs a tool; send the answer again"
            raise Conflict(message, code="not_waiting", retry_after_s=1)
        await asyncio.sleep(_RETRY_S)


async def _store(context: Context, info: RunInfo, answers: Mapping[str, Any]) -> Literal["new", "repeated"] | None:
    """Try to store the answers; return whether they are new. None: try again."""
    waiting = await context.interrupts.read(info.run_id)
    if waiting is None:
        message = f"the run {info.run_id} waits for nothing: its status is {info.status}"
        raise Conflict(message, code="not_waiting")
    can_wait = waiting.status in {"requires_action", "running"}
    new = _new_answers(waiting, answers) if can_wait or set(answers) <= set(waiting.answers) else answers
    if new and not can_wait:
        message = f"the run {info.run_id} waits for nothing: its status is {waiting.status}"
        raise Conflict(message, code="not_waiting")
    complete = len(new) == len(waiting.open)
    if not new:
        if waiting.status == "queued" and waiting.job is not None:
            await _enqueue(context, waiting.job)  # the front end that stored the answers may have been killed
        return "repeated"
    look_at = int(time.time()) + _REMEMBER_S
    if complete and waiting.job is not None:
        queue = context.model_router.queue_of_job(waiting.job)
        await context.interrupts.remember(queue, info.run_id, look_at)
    outcome = await context.interrupts.answer(
        waiting, {name: {"answer": answer} for name, answer in new.items()}, ttl_s=run_open_ttl_s(context)
    )
    if outcome in {"CHANGED", "PARKING"}:
        return None
    goes_on = complete and outcome == "requires_action"
    context.metrics.answered(len(new), max(0.0, time.time() - waiting.parked_at) if goes_on else None)
    if goes_on and waiting.job is not None:
        await _enqueue(context, waiting.job)
        queue = context.model_router.queue_of_job(waiting.job)
        await context.interrupts.forget(queue, waiting.run_id, since=look_at, until=look_at)
    return "new"


async def _enqueue(context: Context, job: Job) -> None:
    queue = context.model_router.queue_of_job(job)
    await context.interrupts.enqueue(queue, job, ttl_s=run_open_ttl_s(context))


def _new_answers(waiting: Waiting, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers that are not stored yet; raises InvalidRequest or Conflict if one of them is wrong."""
    new: dict[str, Any] = {}
    now_s = time.time()
    for name, answer in answers.items():
        param = f"answers.{name[:64]}"
        known = waiting.answers.get(name)
        if known is not None:
            if known == TIMED_OUT:
                raise _expired(name, param)
            if orjson.dumps(known["answer"]) != orjson.dumps(answer):
                message = f"the interrupt {name[:64]!r} has been answered already"
                raise Conflict(message, param=param, code="already_answered")
            continue
        asked = waiting.interrupts.get(name)
        if asked is None:
            ids = ", ".join(each.id for each in waiting.open) or "none"
            message = f"the run has no interrupt {name[:64]!r}; the open interrupts are: {ids}"
            raise InvalidRequest(message, param=param)
        if asked.expires_at <= now_s:
            raise _expired(name, param)
        if reason := reason_against_answer(asked, answer):
            message = f"the answer to {name!r} does not fit: {reason}"
            raise InvalidRequest(message, param=param)
        if len(orjson.dumps(answer)) > MAX_ANSWER_BYTES:
            message = f"the answer to {name!r} is larger than {MAX_ANSWER_BYTES} bytes"
            raise InvalidRequest(message, param=param)
        new[name] = answer
    if len(orjson.dumps({**waiting.answers, **new})) > MAX_ANSWERS_BYTES:
        message = f"the answers of the run exceed {MAX_ANSWERS_BYTES} bytes together"
        raise InvalidRequest(message, param="answers")
    return new


def _expired(name: str, param: str) -> Conflict:
    message = f"the interrupt {name!r} has expired: the run goes on, or has gone on, without an answer"
    return Conflict(message, param=param, code="interrupt_expired")
