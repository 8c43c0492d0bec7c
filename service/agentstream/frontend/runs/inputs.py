"""Sends messages to a run that is going on."""

from collections.abc import Sequence

from agentstream.errors import Conflict, InvalidRequest, LimitReached
from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import BrokerTimeout, require_broker
from agentstream.protocol.openai import ChatMessage
from agentstream.store.inputs import MAX_INPUTS, MAX_INPUTS_BYTES, input_id
from agentstream.store.runs import RunInfo


async def send_input(context: Context, info: RunInfo, messages: Sequence[ChatMessage]) -> list[str]:
    """Store messages for a run; return their ids, in the same order.

    Raises Conflict if the run takes no messages now, InvalidRequest if a message is not the user's, LimitReached if
    the run has too many, and BrokerUnavailable. Nothing is stored then.
    """
    for number, message in enumerate(messages):
        if message.role != "user":
            text = f"messages[{number}].role must be 'user', not {message.role!r}: only people send input"
            raise InvalidRequest(text, param=f"messages[{number}].role")
    require_broker(context)
    async with BrokerTimeout(context):
        stored = await context.inputs.add(info.run_id, [each.model_dump(exclude_unset=True) for each in messages])
    if isinstance(stored, int):
        return [input_id(stored + number) for number in range(1, len(messages) + 1)]
    if stored == "FULL":
        text = f"the run has too much input: it takes {MAX_INPUTS} messages and {MAX_INPUTS_BYTES} bytes together"
        raise LimitReached(text, code="too_much_input")
    reasons = {
        "CLOSED": "its agent takes no input",
        "queued": "it has not begun yet; try again",
        "requires_action": "it waits for an answer: use /resume",
    }
    text = f"the run {info.run_id} takes no input now: {reasons.get(stored or '', f'its status is {stored}')}"
    raise Conflict(text, code="input_not_taken")
