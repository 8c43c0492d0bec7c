"""The built-in agent: asks a model and runs the tools that it calls, turn by turn, until the model answers."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentstream.agents.contract import AgentResult, Run, ToolResult
from agentstream.agents.orchestrator.approvals import Approvals
from agentstream.agents.orchestrator.client_tools import ToolOffer
from agentstream.agents.orchestrator.context_window import Message
from agentstream.agents.orchestrator.json_rest import is_json_object
from agentstream.agents.orchestrator.lost import NOTHING_LOST, Lost, read_lost
from agentstream.agents.orchestrator.progress import FAILED_PREFIX, OpenTurn, Progress, read_state, store_progress
from agentstream.agents.orchestrator.tool_runs import AGENT_NAME, ToolRuns
from agentstream.agents.orchestrator.turn import TurnRunner
from agentstream.engines.base import SUMMARY_PROMPT, Engine, EngineError, ToolChoice, ToolSchema
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.tools.toolbox import Toolbox, ToolOutcome

TURN_SEPARATOR: Final = "\n\n"  # the stream inserts it where tools ran or input was taken between two texts

log = logging.getLogger(__name__)

# The tool calls of a turn with such a finish_reason may be incomplete. They are not run.
_TRUNCATED_REASONS: Final = frozenset({"length", "content_filter"})


class Orchestrator:
    """An agent: ``await orchestrator(run)`` streams the answer and returns it.

    One instance serves any number of concurrent runs and keeps no state between them. A run whose worker is lost or
    stopped goes on with another instance.
    """

    name = AGENT_NAME
    resumable = True
    takes_inputs = True

    def __init__(
        self,
        engine: Engine,
        toolbox: Toolbox,
        max_turns: int = 10,
        system_prompt: str | None = None,
        context_tokens: int | None = None,
    ) -> None:
        """Create an agent from a model and its tools. A turn is one answer of the model and the tool calls in it.

        ``system_prompt`` is added to conversations without a system or developer message. ``context_tokens`` is the
        model's context window in tokens: longer conversations are trimmed before they are sent. If it is None, a
        conversation is trimmed only after the model server has refused it. Raises ValueError if ``max_turns`` is
        less than 1.
        """
        if max_turns < 1:
            message = f"max_turns must be at least 1, not {max_turns}"
            raise ValueError(message)
        self._engine = engine
        self._toolbox = toolbox
        self._max_turns = max_turns
        self._system_prompt = system_prompt
        self._context_tokens = context_tokens

    async def __call__(self, run: Run) -> AgentResult:
        """Answer ``run.request``.

        The tools of one turn run concurrently. The result of a failed tool is its error text; the model reads it.

        People are asked about the calls that need approval, about all of a turn at once, when its other calls have
        ended. A call that is denied or not answered in time does not run; the model reads why.

        Messages that people send to the run are taken between two turns. If some have come during an answer, the model
        answers them in a new turn, within ``max_turns``.

        A turn that calls a client's tool ends the run with finish_reason "tool_calls". Own tools that the same turn
        calls are not run, because the client's next request could not contain their results. The model can call them
        again in that request.

        If there is no answer after ``max_turns``, or if the model repeats the same call, the model is asked for a
        summary without tools. If it gives none, the text lists the tools that were tried. The finish_reason is
        "length".

        There is a checkpoint when the calls of a turn start and when they have ended. After the loss of a worker the
        model continues the text that clients have seen, and calls of tools are handled as ``ToolRuns`` says.

        ``metadata`` holds the sum of the usage of all inferences, or nothing if one inference reported no usage.
        Raises EngineError if the model fails, and AgentError if a lost run cannot be continued. A cancel closes the
        request to the model server.
        """
        restored = run.restored
        progress = Progress() if restored is None or restored.state is None else read_state(restored.state)
        lost = NOTHING_LOST if restored is None else read_lost(restored)
        if not lost.agent_started:
            run.emit("agent_turn_start", {"agent": AGENT_NAME, "input": _last_user_text(run.request)})
        messages = [*self._conversation(run.request), *progress.added]
        approvals = Approvals(run, self._toolbox)
        loop = _Loop(
            run=run,
            messages=messages,
            progress=progress,
            lost=lost,
            turns=TurnRunner(self._engine, run, self._context_tokens, progress, lost),
            tools=ToolRuns(run, self._toolbox, progress, lost, approvals),
            offer=ToolOffer(run.request, self._toolbox.schemas()),
            max_turns=self._max_turns,
        )
        text, finish_reason = await loop.answer()
        if not lost.agent_ended:
            turns = progress.turns + (not loop.summed_up)
            run.emit("agent_turn_end", {"agent": AGENT_NAME, "turns": turns})
        usage = progress.usage()
        return AgentResult(
            content=TURN_SEPARATOR.join(part for part in (*progress.texts, text) if part),
            tool_results=list(progress.results.values()),
            metadata=usage.model_dump() if usage else {},
            finish_reason=finish_reason,
        )

    def _conversation(self, request: ChatCompletionRequest) -> list[Message]:
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        if self._system_prompt and not any(message["role"] in {"system", "developer"} for message in messages):
            messages.insert(0, {"role": "system", "content": self._system_prompt})
        return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """The turns of one run. ``messages`` is the conversation so far; it may be trimmed."""

    run: Run
    messages: list[Message]
    progress: Progress
    lost: Lost
    turns: TurnRunner
    tools: ToolRuns
    offer: ToolOffer
    max_turns: int

    @property
    def summed_up(self) -> bool:
        """Whether the model may call no more tools and must sum up."""
        return self.progress.guard.stuck or self.progress.turns >= self.max_turns

    async def answer(self) -> tuple[str, str]:
        """Run the turns until there is an answer. Return its text and its finish_reason."""
        progress, client_names = self.progress, self.offer.client_names
        while progress.open_turn.calls or not self.summed_up:
            if progress.open_turn.calls:
                outcomes = await self.tools.go_on()
            else:
                await self._take_inputs()
                turn = await self.turns.run_turn(self.messages, *self._offered(), client_names)
                if turn.finish_reason in _TRUNCATED_REASONS:
                    return turn.text, turn.finish_reason
                if any(call.name in client_names for call in turn.calls):
                    return turn.text, "tool_calls"
                if not turn.calls:
                    if await self._take_inputs_after(turn.text):
                        continue
                    return turn.text, "stop"
                outcomes = await self.tools.start(turn)
            await self._end_turn(outcomes)
        await self._take_inputs()
        return await self._sum_up(), "length"

    def _offered(self) -> tuple[list[ToolSchema], ToolChoice | None]:
        number = self.progress.turns + 1
        return self.offer.for_turn(number, last=number == self.max_turns)

    async def _take_inputs(self) -> None:
        """Add the messages that people have sent to the conversation, unless the next turn has begun or is the first.

        The checkpoint makes sure that they stand before everything that the model writes after them.
        """
        if self.progress.turns and not self.turns.continues and (messages := await self._inputs()):
            self._add(messages)
            await store_progress(self.run, self.progress)

    async def _take_inputs_after(self, answer: str) -> bool:
        """Take the messages that people have sent during an answer. Return whether the model must answer them.

        After the last turn, and after a JSON answer, which must stay alone, none are taken.
        """
        response_format = self.run.request.response_format or {"type": "text"}
        is_last = self.progress.turns + 1 >= self.max_turns
        if is_last or self.lost.agent_ended or response_format.get("type") != "text":
            return False
        messages = await self._inputs()
        if not messages:
            return False
        self.progress.turns += 1
        self.progress.open_turn = OpenTurn()
        self._add([{"role": "assistant", "content": answer}, *messages] if answer else messages)
        await store_progress(self.run, self.progress)
        return True

    async def _inputs(self) -> list[Message]:
        return [message.model_dump(exclude_none=True) for message in await self.run.inputs()]

    def _add(self, messages: Sequence[Message]) -> None:
        self.progress.added += messages
        self.messages.extend(messages)

    async def _end_turn(self, outcomes: Sequence[ToolOutcome]) -> None:
        """Add the open turn to the conversation, and store a checkpoint."""
        progress = self.progress
        messages = _turn_as_messages(progress.open_turn, outcomes)
        for call, outcome in zip(progress.open_turn.calls, outcomes, strict=True):
            result = ToolResult(outcome.tool, outcome.content, outcome.success, outcome.latency_s)
            progress.results[call.id] = result
        progress.turns += 1
        progress.open_turn = OpenTurn()
        self._add(messages)
        await store_progress(self.run, progress)

    async def _sum_up(self) -> str:
        """Stream and return the model's summary, or a list of the tools that were tried if the model gives none."""
        progress = self.progress
        fallback = _fallback_summary(progress.turns, list(progress.results.values()))
        if self.lost.text == fallback:
            self.turns.take_lost(self.messages)
            return fallback
        tools, _ = self.offer.for_turn(progress.turns, last=progress.turns == self.max_turns)
        prompted = [*self.messages, {"role": "user", "content": SUMMARY_PROMPT}]
        try:
            summary = (await self.turns.run_turn(prompted, tools, "none")).text
        except EngineError as exc:
            if self.turns.output_started:
                raise
            log.warning("the model could not summarise the run: %s", exc)
            summary = ""
        if not summary:
            summary = fallback
            self.run.write(summary)
        return summary


def _turn_as_messages(turn: OpenTurn, outcomes: Sequence[ToolOutcome]) -> list[Message]:
    """Return a turn with tools as messages for the model: the assistant's message, then one message per result."""
    assistant = {
        **turn.echo,
        "role": "assistant",
        "content": turn.text or None,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _json_object(call.arguments)},
            }
            for call in turn.calls
        ],
    }
    tool_messages = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": outcome.content if outcome.success else f"{FAILED_PREFIX}{outcome.content}",
        }
        for call, outcome in zip(turn.calls, outcomes, strict=True)
    ]
    return [assistant, *tool_messages]


def _json_object(arguments: str) -> str:
    """Return the arguments, or ``{}`` if they are no JSON object: chat templates of model servers would fail on them.

    The result of the tool call quotes the malformed arguments.
    """
    return arguments if is_json_object(arguments) else "{}"


def _last_user_text(request: ChatCompletionRequest) -> str:
    return next((message.text for message in reversed(request.messages) if message.role == "user"), "")


def _fallback_summary(count_of_turns: int, results: Sequence[ToolResult]) -> str:
    calls = Counter(result.tool_name for result in results)
    failures = Counter(result.tool_name for result in results if not result.success)
    tried = [
        f"{name} ({count} {'call' if count == 1 else 'calls'}{f', {failures[name]} failed' if failures[name] else ''})"
        for name, count in calls.items()
    ]
    turns = "1 turn" if count_of_turns == 1 else f"{count_of_turns} turns"
    return f"I stopped after {turns} without an answer. I tried: {', '.join(tried)}."
