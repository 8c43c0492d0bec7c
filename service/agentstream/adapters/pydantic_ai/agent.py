"""The agent that runs a pydantic-ai agent, once for each run."""

from typing import Any, Final

from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    NativeOutput,
    PartDeltaEvent,
    PartStartEvent,
    PromptedOutput,
    TextPartDelta,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai import TextPart as ModelText
from pydantic_ai.capabilities import HandleDeferredToolCalls, ReinjectSystemPrompt
from pydantic_core import to_json

from agentstream.adapters.asking import QuestionIds
from agentstream.adapters.per_run import options_for
from agentstream.adapters.pydantic_ai.conversation import conversation
from agentstream.adapters.pydantic_ai.deferred import Deferred
from agentstream.adapters.pydantic_ai.saving import ADAPTER, Saving, loaded
from agentstream.adapters.resuming import CONTINUE_PROMPT, NOT_RUN, UNKNOWN_OUTCOME, kept, rest_of, shown_text
from agentstream.adapters.run_reporter import RunReporter, as_text, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError

# For pydantic-ai itself the other options may be functions of its own context.
PER_RUN: Final = frozenset(
    {"deps", "model", "usage_limits", "usage", "toolsets", "conversation", "conversation_id", "timeout", "workspace"}
)


_COMPLETE: Final = object()


class PydanticAIAgent:
    """An agent: ``await agent(run)`` runs the pydantic-ai agent once.

    One instance serves any number of concurrent runs.
    """

    resumable = True

    def __init__(self, agent: Agent[Any, Any], **options: Any) -> None:  # noqa: ANN401 -- pydantic-ai's own
        """``options``, for example ``deps`` and ``usage_limits``, are passed to ``agent.iter``.

        An option in ``PER_RUN`` may be a function of the run, for example ``deps=lambda run: Deps(run.caller)``. The
        function may be async.
        """
        self._agent = agent
        self._options = options

    async def __call__(self, run: Run) -> AgentResult:
        """Run the pydantic-ai agent and return the result. Exceptions of pydantic-ai are raised unchanged.

        A system message in the request replaces the agent's ``system_prompt``, but not its ``instructions``. Raises
        AgentError if the agent ends without a result, or if a JSON answer was cut in an earlier attempt.
        """
        saved = kept(run, ADAPTER)
        reporter = RunReporter(run, self._agent.name or "pydantic-ai", saved and saved["reporter"])
        reporter.turn_start()
        options = await options_for(self._options, PER_RUN, run)
        question_ids = QuestionIds(saved.get("question_ids", ()) if saved else ())
        saving = Saving(run, reporter, question_ids.used)
        deferred = Deferred(run, reporter, question_ids, saving)
        asks = HandleDeferredToolCalls(handler=deferred.handle)
        options["capabilities"] = [ReinjectSystemPrompt(), *options.get("capabilities", ()), asks]
        results: DeferredToolResults | None = None
        if saved is not None and saved.get("asking") is not None:
            history, shown = loaded(saved["messages"]), ""
            history, results = await deferred.go_on(history, saved["asking"])
        else:
            history, shown = _begin(run, reporter, saved, options.get("output_type", self._agent.output_type))
        if saved is not None and isinstance(history[-1], ModelResponse) and not history[-1].tool_calls:
            return reporter.result()  # the answer is complete
        execution = _Execution(run, reporter, saving, deferred, _text_of(history[-1]) if history else "")
        while True:
            output = await execution.follow(self._agent, history, results, options)
            if not isinstance(output, DeferredToolRequests):
                break
            history = execution.messages
            results = await deferred.ask(history, output)
        if output is _COMPLETE:
            return reporter.result()
        answer = execution.answer
        if output != answer:  # a structured output, or a text that an output validator changed
            text = output if isinstance(output, str) else to_json(output, fallback=str).decode()
            run.write(rest_of(text, shown))
        return reporter.result()


class _Execution:
    """Follows pydantic-ai's runs of the agent, one after another."""

    def __init__(self, run: Run, reporter: RunReporter, saving: Saving, deferred: Deferred, answer: str) -> None:
        """``answer`` is the text of the last message."""
        self._run = run
        self._reporter = reporter
        self._saving = saving
        self._deferred = deferred
        self._is_first = True  # the state from which this attempt began is stored
        self.answer = answer
        self.messages: list[ModelMessage] = []  # after the last run

    async def follow(
        self,
        agent: Agent[Any, Any],
        history: list[ModelMessage],
        results: DeferredToolResults | None,
        options: dict[str, Any],
    ) -> object:
        """Run the agent and return its output; _COMPLETE if nothing was missing from the answer."""
        is_continued = False
        async with agent.iter(message_history=history, deferred_tool_results=results, **options) as steps:
            async for step in steps:
                if Agent.is_model_request_node(step):
                    if not self._is_first:
                        await self._saving.save([*steps.ctx.state.message_history, step.request])
                    self._is_first = False
                    is_continued = _is_continued(step.request)
                    self.answer = await _infer(self._run, self._reporter, step, steps.ctx)
                elif Agent.is_call_tools_node(step):
                    if is_continued and not (self.answer or step.model_response.tool_calls):
                        return _COMPLETE  # nothing was missing; pydantic-ai would ask the model again
                    if not self._is_first:
                        await self._saving.save(steps.ctx.state.message_history)
                    self._is_first = False
                    await _call_tools(self._run, self._reporter, self._deferred, step, steps.ctx)
        if steps.result is None:
            message = "the pydantic-ai agent ended without a result"
            raise AgentError(message)
        self.messages = steps.result.all_messages()
        self._is_first = True
        return steps.result.output


def _begin(
    run: Run, reporter: RunReporter, saved: dict[str, Any] | None, output_type: object
) -> tuple[list[ModelMessage], str]:
    """Return the messages with which this attempt begins, and the part of the output that clients have seen.

    The messages contain everything else that clients have seen: results of tools, then the start of an answer.
    """
    history = conversation(run.request.messages) if saved is None else loaded(saved["messages"])
    shown = shown_text(run)
    calls = history[-1].tool_calls if history and isinstance(history[-1], ModelResponse) else []
    if saved is not None and isinstance(history[-1], ModelResponse) and not reporter.has_seen_calls:
        return history, shown  # pydantic-ai runs the calls
    if calls and reporter.has_seen_calls:
        reporter.end_interrupted(UNKNOWN_OUTCOME)
        results = {call.tool_call_id: reporter.ended.get(call.tool_call_id, NOT_RUN) for call in calls}
        parts = [ToolReturnPart(call.tool_name, results[call.tool_call_id], call.tool_call_id) for call in calls]
        history.append(ModelRequest(parts))
    if shown:
        if isinstance(output_type, NativeOutput | PromptedOutput):
            message = "the run cannot be continued: its worker was lost in the middle of an answer in JSON"
            raise AgentError(message)
        history += [ModelResponse([ModelText(shown)]), ModelRequest([UserPromptPart(CONTINUE_PROMPT)])]
    return history, ""


def _is_continued(request: ModelRequest) -> bool:
    """Return whether the model is asked to continue an answer that was cut."""
    last = request.parts[-1] if request.parts else None
    return isinstance(last, UserPromptPart) and last.content == CONTINUE_PROMPT


def _text_of(message: ModelMessage) -> str:
    return "".join(part.content for part in message.parts if isinstance(part, ModelText))


async def _infer(run: Run, reporter: RunReporter, step: Any, context: Any) -> str:  # noqa: ANN401 -- generic in the agent's types
    """Stream one answer of the model and return its text."""
    model = context.deps.model
    reporter.inference_start(model.model_name, model.system)
    texts: list[str] = []
    async with step.stream(context) as stream:
        async for event in stream:
            if isinstance(event, PartStartEvent) and isinstance(event.part, ModelText):
                text = event.part.content
            elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                text = event.delta.content_delta
            else:
                continue
            texts.append(text)
            run.write(text)
            await run.drain()
        response = stream.response
    used = usage_of(response.usage.input_tokens, response.usage.output_tokens)
    reporter.inference_end(response.model_name or model.model_name, used, response.finish_reason)
    return "".join(texts)


async def _call_tools(run: Run, reporter: RunReporter, deferred: Deferred, step: Any, context: Any) -> None:  # noqa: ANN401 -- generic in the agent's types
    """Let the agent run the tools that its model called."""
    deferred.results.clear()
    async with step.stream(context) as events:
        async for event in events:
            if isinstance(event, FunctionToolCallEvent):
                call = event.part
                reporter.tool_start(call.tool_call_id, call.tool_name, call.args or "{}", call.tool_call_id)
                await run.drain()  # the tool starts when this loop asks for the next event
            elif isinstance(event, FunctionToolResultEvent):
                part = event.part
                deferred.results.append(part)
                success = getattr(part, "outcome", "failed") == "success"  # a retry part has no outcome in old versions
                reporter.tool_end(part.tool_call_id, as_text(part.content), success=success)
