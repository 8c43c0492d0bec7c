"""Any OpenAI-compatible chat completions server, through the official client."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai

from agentstream.engines.base import (
    EngineDelta,
    EngineError,
    EngineToolCall,
    EngineToolCallDelta,
    ToolChoice,
    ToolSchema,
)
from agentstream.engines.spans import inference_span, record_output_messages, record_response
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.telemetry import tracing

# The request's parameters that are the model's to follow, under the names the client sent.
_FORWARDED_PARAMETERS: Final = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
    "user",
    "metadata",
    "reasoning_effort",
)
# Unknown fields are passed on too, but these: empty or off (anything else was refused), they would undo the tools
# that this engine is given.
_DROPPED_FIELDS: Final = frozenset({"functions", "function_call"})

CONNECT_TIMEOUT_S: Final = 10.0  # a server that is there answers the handshake in far less
# The client's own retries: connection errors, 408, 409, 429 and 5xx before the answer begins, with backoff, or after
# the Retry-After that the server asks for, if that is at most 2 minutes; a longer one is not waited for.
MAX_RETRIES: Final = 2
# A shorter key is a stand-in such as "none" and may be an ordinary word of the text.
SHORTEST_SECRET_CHARS: Final = 8
# Of an upstream error text: some proxies answer with a whole web page.
MAX_ERROR_CHARS: Final = 1000
_PORTS: Final = {"http": 80, "https": 443}

log = logging.getLogger(__name__)


class OpenAIEngine:
    """Streams chat completions from ``base_url`` (with its ``/v1``)."""

    name = "openai"

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model: str | None = None,
        *,
        timeout_s: float = 120.0,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        """Make the client; nothing is sent yet.

        ``model`` is asked for instead of the request's. ``timeout_s`` is the longest silence, before the
        first token and between two; reasoning models are silent for a minute or more.
        """
        self._model = model
        self._api_key = api_key or ""
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",  # local servers ask for no key, the client insists on one
            timeout=openai.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            max_retries=max_retries,
        )
        url = self._client.base_url
        self._where = {"server.address": url.host, "server.port": url.port or _PORTS.get(url.scheme)}

    async def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncGenerator[EngineDelta, None]:
        """Yield text, reasoning and calls as they arrive, then one last piece; see ``Engine.stream``.

        Raises EngineError if the server refuses, breaks off, or ends without a finish_reason: text that
        just stops is a failure, not an answer.
        """
        kind = ""
        model = self._model or request.model
        with inference_span("openai", model, request, messages, self._where) as span:
            turn = _ChunkFold()
            try:
                parameters = self._parameters(request, messages, tools, tool_choice)
                chunks = await self._client.chat.completions.create(**parameters, extra_headers=span.carrier())
                kind = chunks.response.headers.get("content-type", "")
                async with chunks:
                    async for chunk in chunks:
                        if piece := turn.receive(chunk):
                            yield piece
            except openai.OpenAIError as exc:
                if turn.finish_reason is None or not isinstance(exc, openai.APIConnectionError):
                    explained = self._explained(exc)
                    span.fail(_error_type(exc), explained)
                    raise EngineError(explained) from exc
                log.info("the model server broke off after the end of its answer: %s", exc)
            except (json.JSONDecodeError, UnicodeDecodeError) as exc:
                message = f"the model server sent something that is not JSON: {exc}"
                raise EngineError(message) from exc
            finally:
                turn.record_on(span)
            if turn.finish_reason is None:
                message = "the model server ended its answer without a finish_reason: it was cut off"
                if not turn.received_any and "event-stream" not in kind:  # a web page, or a server that cannot stream
                    message = f"the model server answered with {kind[:80]!r} where a stream of events was due"
                raise EngineError(message)
            if turn.finish_reason == "error":  # OpenRouter's word for an upstream that failed half-way
                message = "the model server ended its answer with finish_reason 'error'"
                raise EngineError(message)
        yield EngineDelta(
            tool_calls=turn.calls(),
            finish_reason=turn.finish_reason,
            usage=turn.usage,
            echo={"reasoning_content": turn.reasoning_content} if turn.reasoning_content else {},
        )

    async def close(self) -> None:
        """Close the connections to the server."""
        await self._client.close()

    def _parameters(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None,
    ) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "model": self._model or request.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {
                name: value
                for name, value in request.extra.items()
                if name not in _DROPPED_FIELDS and value is not None
            },
        }
        for name in _FORWARDED_PARAMETERS:
            value = getattr(request, name)
            if value is not None:
                parameters[name] = value
        if tools:
            parameters["tools"] = [tool.in_openai_form() for tool in tools]
            if tool_choice is not None:
                parameters["tool_choice"] = tool_choice
            if request.parallel_tool_calls is not None:  # servers refuse it without tools
                parameters["parallel_tool_calls"] = request.parallel_tool_calls
        return parameters

    def _explained(self, exc: openai.OpenAIError) -> str:
        """Return the error's text with the upstream status and words, without our key or the server's address.

        The words matter: ``failure_code`` sorts by "400" and "context length". An address could hold "400".
        """
        text = str(exc)
        if isinstance(exc, openai.APIConnectionError):
            reason = "no answer in time" if isinstance(exc, openai.APITimeoutError) else f"{exc.__cause__ or text}"
            text = f"the connection to the model server failed: {reason}"
        elif isinstance(exc, openai.APIStatusError):
            if " - " not in text and exc.body:  # a body the client saw no message in
                words = exc.body if isinstance(exc.body, str) else json.dumps(exc.body, default=str)
                text = f"{text} - {words}"
            if exc.code == "context_length_exceeded" and "context length" not in text.lower():
                text = f"{text} (context length exceeded)"
        if len(self._api_key) >= SHORTEST_SECRET_CHARS:
            text = text.replace(self._api_key, "***")
        return text[:MAX_ERROR_CHARS]


@dataclass(slots=True)
class _PartialToolCall:
    """A tool call as far as it has arrived."""

    position: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class _ChunkFold:
    """Folds chunks. Tolerant: servers leave out fields, and the client's models then hold None or other types."""

    def __init__(self) -> None:
        self.received_any = False
        self.began_s = time.perf_counter()
        self.first: tuple[float, object, object] | None = None  # when the first chunk came, its id and model
        self.texts: list[str] | None = [] if tracing.content_enabled() else None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        # DeepSeek refuses a conversation whose calls lack the reasoning that led to them; Groq, which says
        # "reasoning", refuses one that has it. So only what came under this name goes back.
        self.reasoning_content = ""
        self._calls: list[_PartialToolCall] = []
        self._by_index: dict[int, _PartialToolCall] = {}

    def receive(self, chunk: object) -> EngineDelta | None:
        """Take a chunk and return what it says, if anything."""
        if not self.received_any:
            self.received_any = True
            self.first = (time.perf_counter(), getattr(chunk, "id", None), getattr(chunk, "model", None))
        if usage := _usage(getattr(chunk, "usage", None)):
            self.usage = usage  # cumulative, where a server sends it with every chunk
        for choice in getattr(chunk, "choices", None) or ():
            if getattr(choice, "index", 0):
                continue  # a second answer nobody asked for
            self.finish_reason = getattr(choice, "finish_reason", None) or self.finish_reason
            delta = getattr(choice, "delta", None)
            parts = tuple(self._add(part) for part in getattr(delta, "tool_calls", None) or ())
            text = _text(delta, "content") or _text(delta, "refusal")
            echoed = _text(delta, "reasoning_content")
            self.reasoning_content += echoed
            reasoning = echoed or _text(delta, "reasoning")
            if self.texts is not None:
                self.texts.append(text)
            return (
                EngineDelta(text=text, reasoning=reasoning, tool_call_deltas=parts)
                if text or reasoning or parts
                else None
            )
        return None

    def record_on(self, span: tracing.Span) -> None:
        """Tell a span what has come so far."""
        first_s, response_id, model = self.first or (None, None, None)
        record_response(
            span,
            usage=self.usage,
            finish_reason=self.finish_reason,
            first_chunk_s=None if first_s is None else first_s - self.began_s,
            response_id=response_id,
            response_model=model,
        )
        if self.texts is not None:
            record_output_messages(span, "".join(self.texts), self.calls(), self.finish_reason or "")

    def calls(self) -> tuple[EngineToolCall, ...]:
        """Return the calls in the order they began; one without an id gets one."""
        return tuple(
            EngineToolCall(call.id or f"call_{number}", call.name, call.arguments)
            for number, call in enumerate(self._calls, 1)
        )

    def _add(self, part: object) -> EngineToolCallDelta:
        function = getattr(part, "function", None)
        name = getattr(function, "name", None) or ""
        arguments = getattr(function, "arguments", None) or ""
        if not isinstance(arguments, str):  # an object, from servers that follow another API
            arguments = json.dumps(arguments)
        index, call_id = getattr(part, "index", None), getattr(part, "id", None) or ""
        call = self._find_call(index, call_id)
        if call is None or _starts_new_call(call, call_id, name, arguments):
            call = _PartialToolCall(len(self._calls))
            self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        known = bool(call.name)
        call.id = call.id or call_id
        call.name = call.name or name
        call.arguments += arguments
        if known:
            return EngineToolCallDelta(call.position, "", "", arguments)
        return EngineToolCallDelta(call.position, call.id, call.name, call.arguments if call.name else "")

    def _find_call(self, index: int | None, call_id: str) -> _PartialToolCall | None:
        """Return the call a part may belong to: by index, else by id, else the latest."""
        if index is not None:
            return self._by_index.get(index)
        same_id = (call for call in self._calls if call_id and call.id == call_id)
        return next(same_id, self._calls[-1] if self._calls else None)


def _error_type(exc: openai.OpenAIError) -> str:
    """Return a failure's kind, one of few: the status, or the client's class for it."""
    return str(exc.status_code) if isinstance(exc, openai.APIStatusError) else type(exc).__name__


def _starts_new_call(call: _PartialToolCall, call_id: str, name: str, arguments: str) -> bool:
    """Whether a part that names a call is not more of ``call``: some servers give every whole call index 0."""
    if (call_id and call.id and call_id != call.id) or (name and call.name and name != call.name):
        return True
    return bool(name and arguments) and _is_json(call.arguments)


def _text(delta: object, name: str) -> str:
    value = getattr(delta, name, None)
    return value if isinstance(value, str) else ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _usage(reported: object) -> Usage | None:
    if reported is None:
        return None
    prompt = getattr(reported, "prompt_tokens", None)
    completion = getattr(reported, "completion_tokens", None)
    total = getattr(reported, "total_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < 0 or completion < 0:
        return None
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total if isinstance(total, int) and total > 0 else prompt + completion,
    )
