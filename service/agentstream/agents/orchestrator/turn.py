"""One turn of a model: its answer, which is continued if the model server truncated it or its worker was lost."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from agentstream.agents.contract import Run
from agentstream.agents.orchestrator.client_tools import used_call_ids
from agentstream.agents.orchestrator.context_window import Message, size_of
from agentstream.agents.orchestrator.inference import Inferences, Prompt, Turn
from agentstream.agents.orchestrator.json_rest import is_json_object, rest_of_object
from agentstream.agents.orchestrator.lost import ACCEPTED, LOST, NOTHING_LOST, REJECTED, Lost
from agentstream.agents.orchestrator.progress import OpenTurn, Progress, store_progress
from agentstream.agents.tool_calls import RestoredToolCall
from agentstream.engines.base import (
    CONTINUE_PROMPT,
    REST_PROMPT,
    SUMMARY_PROMPT,
    Engine,
    EngineError,
    EngineToolCall,
    ToolChoice,
    ToolSchema,
)
from agentstream.errors import RESUME_FAILED, AgentError
from agentstream.protocol.openai import ChatCompletionRequest

log = logging.getLogger(__name__)

# How often a truncated answer is continued. Four times the model server's limit is a long answer.
MAX_CONTINUATIONS: Final = 3
# How often the model is asked for the rest of a JSON text. One that fails twice will fail again.
MAX_REST_TRIES: Final = 2
_NO_LIMITS: Final = dict.fromkeys(("max_tokens", "max_completion_tokens", "response_format", "stop"))
_CHARS_PER_TOKEN: Final = 4  # for the client's limit, which the lost part of an answer has used in part


class TurnRunner:
    """Asks the model, turn by turn, for one run."""

    def __init__(self, engine: Engine, run: Run, context_tokens: int | None, progress: Progress, lost: Lost) -> None:
        """``context_tokens`` is the model's context window in tokens, or None if it is not known.

        ``lost`` is the part of the first turn that clients have seen already.
        """
        self._run = run
        self._progress = progress
        self._lost = lost
        self._rejected = lost.rejected
        self._text_lost = False
        self._prefill = getattr(engine, "supports_prefill", False) is True
        used_ids = used_call_ids(run.request) | {*progress.call_ids(), *lost.call_ids()}
        self._inferences = Inferences(engine, run, context_tokens, used_ids, progress.usages)

    @property
    def output_started(self) -> bool:
        """Whether a part of the latest inference, or of the lost one that it continues, was streamed to the client."""
        return self._text_lost or self._inferences.last_turn.output_started

    @property
    def continues(self) -> bool:
        """Whether the next turn has begun already, in this attempt or an earlier one."""
        return self._lost.begun or bool(self._progress.open_turn.text)

    async def run_turn(
        self,
        messages: list[Message],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        client_names: Collection[str] = (),
    ) -> Turn:
        """Stream one answer to the run and return it. The first call continues the turn that was lost, if any.

        ``messages`` is trimmed in place if it is too long. Calls of the tools in ``client_names`` are streamed to the
        client. If the model server truncates the answer at its own limit, the model is asked to continue, up to
        ``MAX_CONTINUATIONS`` times; if that fails, the truncated answer is returned. Raises EngineError if the model
        fails, and AgentError if it cannot complete a JSON text that was lost.
        """
        lost = self.take_lost(messages)
        prompt = Prompt(
            request=self._run.request,
            messages=messages,
            tools=tools,
            choice=choice,
            client_names=client_names,
            keep=_question(messages, 1 + len(self._progress.inputs)),
        )
        before = self._progress.open_turn
        turn = Turn(texts=[before.text, lost.text], echo=before.echo)
        if lost.answer is not None:
            turn.calls, turn.finish_reason = lost.calls, str(lost.answer["finish_reason"])
            turn.echo = lost.echo or turn.echo
        elif lost.client_calls:
            await self._complete_calls(turn, prompt, lost.client_calls)
        elif before.text and not lost.text.strip():
            turn.finish_reason = "length"  # clients have seen nothing of its continuation
        elif turn.text.strip():
            await self._continue_lost(turn, prompt)
        else:
            prompt = _with(prompt, hide_reasoning=bool(lost.reasoning))
            _append(turn, await self._inferences.stream(prompt))
        return await self._continue_truncated(turn, prompt, before.continuations)

    def take_lost(self, messages: Sequence[Message]) -> Lost:
        """Return the part of the turn that clients have seen already, once: count its usage and end its inference."""
        lost, self._lost = self._lost, NOTHING_LOST
        self._text_lost = bool(lost.text)
        self._progress.usages += lost.usages(size_of(messages))
        if lost.inference_open:
            self._inferences.emit_end(Turn(), LOST)
        return lost

    # -- answers that were truncated ----------------------------------------------------------------

    async def _continue_truncated(self, turn: Turn, prompt: Prompt, continuations: int) -> Turn:
        for number in range(continuations, MAX_CONTINUATIONS):
            if not self._can_continue(turn):
                break
            self._progress.open_turn = OpenTurn(text=turn.text, echo=turn.echo, continuations=number)
            await store_progress(self._run, self._progress)
            try:
                more = await self._inferences.stream(self._continuing(turn.text, prompt))
            except EngineError as exc:
                if self.output_started:
                    raise
                log.info("a truncated answer could not be continued: %s", exc)
                break
            _append(turn, more)
            if not more.text:
                break
        return turn

    def _can_continue(self, turn: Turn) -> bool:
        """Return whether the model server truncated the answer and the model can continue it.

        Only plain text is continued: a model seldom continues half a JSON document correctly.
        """
        truncated = turn.finish_reason == "length" and self._run.request.output_token_limit is None
        return truncated and not self._wants_json and bool(turn.text.strip()) and not turn.calls

    @property
    def _wants_json(self) -> bool:
        response_format = self._run.request.response_format
        return response_format is not None and response_format.get("type") != "text"

    def _continuing(self, text: str, prompt: Prompt) -> Prompt:
        """Return the prompt with which the model continues ``text``: by prefill, or asked in words."""
        added: list[Message] = [{"role": "assistant", "content": text.rstrip() if self._prefill else text}]
        if not self._prefill:
            added.append({"role": "user", "content": CONTINUE_PROMPT})
        return _with(
            prompt,
            messages=[*prompt.messages, *added],
            keep=[*prompt.keep, *added],
            continued=text if self._prefill else "",
        )

    # -- answers whose worker was lost --------------------------------------------------------------

    async def _continue_lost(self, turn: Turn, prompt: Prompt) -> None:
        """Let the model continue a text whose beginning clients have seen. Its reasoning may repeat, and is hidden."""
        if not self._wants_json:
            limited = _with(prompt, request=_within_limit(prompt.request, turn.text), hide_reasoning=True)
            _append(turn, await self._inferences.stream(self._continuing(turn.text, limited)))
            return
        if not is_json_object(turn.text):
            asked = "Write your answer as one JSON object, and nothing else."
            turn.texts.append(await self._complete(turn.text, asked, prompt, self._run.write))
        turn.finish_reason = "stop"

    async def _complete_calls(self, turn: Turn, prompt: Prompt, calls: Sequence[RestoredToolCall]) -> None:
        """Let the model complete calls of the client's tools. Calls that it had not yet begun are not made."""
        if turn.text.strip():
            prompt = _with(prompt, messages=[*prompt.messages, {"role": "assistant", "content": turn.text}])
        for call in calls:
            arguments = call.arguments
            if not is_json_object(arguments):
                asked = f"Call the tool {call.name}: write the JSON object with its arguments, and nothing else."
                if turn.calls:
                    made = "; ".join(f"{other.name} {other.arguments}" for other in turn.calls)
                    asked = f"You have made these calls, which you must not repeat: {made}. {asked}"
                arguments += await self._complete(arguments, asked, prompt, call.write)
            turn.calls.append(EngineToolCall(call.id, call.name, arguments))
        turn.finish_reason = "tool_calls"

    async def _complete(self, beginning: str, asked: str, prompt: Prompt, write: Callable[[str], None]) -> str:
        """Let the model complete a JSON object whose beginning clients have. Write the rest, and return it.

        The rest is written only if both parts together are a JSON object: clients cannot take the beginning back.
        Raises AgentError if the model fails MAX_REST_TRIES times.
        """
        rests: list[str] = []

        def check(answer: str) -> str:
            rest = rest_of_object(beginning, answer)
            if rest is None:
                return REJECTED
            write(rest)
            rests.append(rest)
            return ACCEPTED

        added: list[Message] = [{"role": "user", "content": asked}]
        if self._prefill and beginning.strip():
            added.append({"role": "assistant", "content": beginning.rstrip()})
        elif beginning:
            added = [{"role": "user", "content": f"{asked} {REST_PROMPT}\n\n{beginning}"}]
        question = _with(
            prompt,
            request=prompt.request.model_copy(update=_NO_LIMITS),
            choice="none",
            client_names=(),
            continued=beginning if len(added) > 1 else "",
            check=check,
        )
        while self._rejected < MAX_REST_TRIES:
            messages = [*prompt.messages, *added]
            await self._inferences.stream(_with(question, messages=messages, keep=[*prompt.keep, *added]))
            if rests:
                return rests[0]
            self._rejected += 1
        message = (
            f"the worker was lost while the model wrote JSON, and the model could not complete: {beginning[:120]!r}"
        )
        raise AgentError(message, code=RESUME_FAILED)


def _with(prompt: Prompt, **changes: Any) -> Prompt:  # noqa: ANN401 -- the fields of Prompt
    return replace(prompt, **changes)


def _append(turn: Turn, more: Turn) -> None:
    turn.texts += more.texts
    turn.calls += more.calls
    turn.finish_reason = more.finish_reason
    turn.echo = more.echo or turn.echo


def _question(messages: Sequence[Message], count: int) -> list[Message]:
    """Return the last ``count`` user messages that people wrote, and the orchestrator's own among them."""
    question: list[Message] = []
    for message in reversed(messages):
        if message["role"] == "user":
            question.insert(0, message)
            count -= message.get("content") != SUMMARY_PROMPT
            if not count:
                break
    return question


def _within_limit(request: ChatCompletionRequest, text: str) -> ChatCompletionRequest:
    """Return the request with the rest of the client's limit of output tokens, after ``text``."""
    limit = request.output_token_limit
    if limit is None:
        return request
    name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    return request.model_copy(update={name: max(1, limit - len(text) // _CHARS_PER_TOKEN)})
