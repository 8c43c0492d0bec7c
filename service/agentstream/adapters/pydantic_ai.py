"""Runs a pydantic-ai agent.

In your own module::

    from agentstream.adapters.pydantic_ai import PydanticAIAgent

    agent = PydanticAIAgent(Agent("openai:gpt-5"))  # AGENTSTREAM_AGENT=my_module:agent

The answer is the streamed text of the agent's model. A structured output is written at the end, as JSON. Options may
depend on the run: ``PydanticAIAgent(agent, deps=lambda run: Deps(run.caller.key_hash))``.

The agent is resumable. The message history is stored before each inference and before the tools of each answer. If the
worker is lost, another one continues with it. An answer that was cut is continued by the model, and a tool that was
interrupted is reported to the model instead of a result.
"""

from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from agentstream.adapters.per_run import options_for
from agentstream.adapters.resuming import CONTINUE_PROMPT, NOT_RUN, UNKNOWN_OUTCOME, keep, kept, rest_of, shown_text
from agentstream.adapters.run_reporter import RunReporter, as_text, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError, missing_extra
from agentstream.protocol.openai import ChatMessage, ImagePart, TextPart

try:
    from pydantic_ai import (
        Agent,
        BinaryContent,
        FunctionToolCallEvent,
        FunctionToolResultEvent,
        ImageUrl,
        ModelMessage,
        ModelMessagesTypeAdapter,
        ModelRequest,
        ModelResponse,
        NativeOutput,
        PartDeltaEvent,
        PartStartEvent,
        PromptedOutput,
        SystemPromptPart,
        TextPartDelta,
        ToolCallPart,
        ToolReturnPart,
        UserContent,
        UserPromptPart,
    )
    from pydantic_ai import TextPart as ModelText
    from pydantic_ai.capabilities import ReinjectSystemPrompt
    from pydantic_core import to_json
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "pydantic-ai")) from exc


ADAPTER: Final = "pydantic_ai"
# For pydantic-ai itself the other options may be functions of its own context.
PER_RUN: Final = frozenset(
    {"deps", "model", "usage_limits", "usage", "toolsets", "conversation", "conversation_id", "timeout", "workspace"}
)


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
        options["capabilities"] = [ReinjectSystemPrompt(), *options.get("capabilities", ())]
        history, shown = _begin(run, reporter, saved, options.get("output_type", self._agent.output_type))
        if saved is not None and isinstance(history[-1], ModelResponse) and not history[-1].tool_calls:
            return reporter.result()  # the answer is complete
        answer = _text_of(history[-1]) if history else ""
        is_continued = False
        is_first = True  # the state from which this attempt began is stored
        async with self._agent.iter(message_history=history, **options) as steps:
            async for step in steps:
                if Agent.is_model_request_node(step):
                    if not is_first:
                        await _save(run, reporter, [*steps.ctx.state.message_history, step.request])
                    is_first = False
                    is_continued = _is_continued(step.request)
                    answer = await _infer(run, reporter, step, steps.ctx)
                elif Agent.is_call_tools_node(step):
                    if is_continued and not (answer or step.model_response.tool_calls):
                        return reporter.result()  # nothing was missing; pydantic-ai would ask the model again
                    if not is_first:
                        await _save(run, reporter, steps.ctx.state.message_history)
                    is_first = False
                    await _call_tools(run, reporter, step, steps.ctx)
        if steps.result is None:
            message = "the pydantic-ai agent ended without a result"
            raise AgentError(message)
        output = steps.result.output
        if output != answer:  # a structured output, or a text that an output validator changed
            text = output if isinstance(output, str) else to_json(output, fallback=str).decode()
            run.write(rest_of(text, shown))
        return reporter.result()


async def _save(run: Run, reporter: RunReporter, messages: list[ModelMessage]) -> None:
    """Make a checkpoint: the next attempt continues with these messages."""
    dumped = ModelMessagesTypeAdapter.dump_python(messages, mode="json")
    await keep(run, ADAPTER, {"messages": dumped, "reporter": reporter.saved()})


def _loaded(dumped: list[Any]) -> list[ModelMessage]:
    return ModelMessagesTypeAdapter.validate_json(orjson.dumps(dumped))  # bytes are base64 only in JSON


def _begin(
    run: Run, reporter: RunReporter, saved: dict[str, Any] | None, output_type: object
) -> tuple[list[ModelMessage], str]:
    """Return the messages with which this attempt begins, and the part of the output that clients have seen.

    The messages contain everything else that clients have seen: results of tools, then the start of an answer.
    """
    history = conversation(run.request.messages) if saved is None else _loaded(saved["messages"])
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


async def _call_tools(run: Run, reporter: RunReporter, step: Any, context: Any) -> None:  # noqa: ANN401 -- generic in the agent's types
    """Let the agent run the tools that its model called."""
    async with step.stream(context) as events:
        async for event in events:
            if isinstance(event, FunctionToolCallEvent):
                call = event.part
                reporter.tool_start(call.tool_call_id, call.tool_name, call.args or "{}", call.tool_call_id)
                await run.drain()  # the tool starts when this loop asks for the next event
            elif isinstance(event, FunctionToolResultEvent):
                part = event.part
                success = getattr(part, "outcome", "failed") == "success"  # a retry part has no outcome in old versions
                reporter.tool_end(part.tool_call_id, as_text(part.content), success=success)


def conversation(messages: list[ChatMessage]) -> list[ModelMessage]:
    """Convert a conversation to pydantic-ai's form. The last message is the one to answer."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    turns: list[ModelMessage] = []
    for message in messages:
        if message.role == "assistant":
            calls = [
                ToolCallPart(call.function.name, call.function.arguments or "{}", call.id)
                for call in message.tool_calls or ()
            ]
            turns.append(ModelResponse([*([ModelText(message.text)] if message.text else []), *calls]))
            continue
        part: SystemPromptPart | UserPromptPart | ToolReturnPart
        if message.role in {"system", "developer"}:
            part = SystemPromptPart(message.text)
        elif message.role == "tool":
            call_id = message.tool_call_id or ""
            part = ToolReturnPart(names.get(call_id, ""), message.text, call_id)
        else:
            part = UserPromptPart(_content(message))
        if turns and isinstance(turns[-1], ModelRequest):
            turns[-1] = ModelRequest([*turns[-1].parts, part])
        else:
            turns.append(ModelRequest([part]))
    return turns


def _content(message: ChatMessage) -> str | list[UserContent]:
    """Return the text and the images of a user message; raises ValueError for a malformed data URL."""
    if not isinstance(message.content, list):
        return message.text
    content: list[UserContent] = []
    for part in message.content:
        if isinstance(part, TextPart):
            content.append(part.text)
        elif isinstance(part, ImagePart):
            url = part.image_url.url
            inline = urlsplit(url).scheme == "data"
            content.append(BinaryContent.from_data_uri(url) if inline else ImageUrl(url))
    return content
