"""The engine for any OpenAI-compatible chat completions server; it uses the official ``openai`` client."""

import json
import logging
import os
import re
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
from agentstream.engines.proxies import proxy_of, unusable_proxy
from agentstream.engines.spans import inference_span, record_output_messages, record_response
from agentstream.errors import MODEL_ERROR, UPSTREAM_FAILED, UPSTREAM_TIMEOUT, StartupError, upstream_failure
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.telemetry import tracing
from agentstream.telemetry.masking import mask_error, register_secrets

# Parameters of the client's request that are sent to the model server under the same names, as are unknown fields.
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

CONNECT_TIMEOUT_S: Final = 10.0  # a running server completes the handshake much faster
# Retries by the openai client, before the answer begins: after connection errors and the statuses 408, 409, 429 and
# 5xx. It waits with backoff, or for the server's Retry-After if that is at most 2 minutes. With a longer Retry-After
# it does not retry.
MAX_RETRIES: Final = 2
# Limit for the text of an upstream error: some proxies answer with a whole web page.
MAX_ERROR_CHARS: Final = 1000
# How servers are asked to continue the last message, which is the assistant's: fields of that message, and of the body.
PREFILLS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "plain": ({}, {}),  # llama.cpp, OpenRouter: the order of the messages is enough
    "prefix": ({"prefix": True}, {}),  # Mistral, DeepSeek
    "vllm": ({}, {"continue_final_message": True, "add_generation_prompt": False}),  # vLLM, SGLang
}
_PORTS: Final = {"http": 80, "https": 443}
_FROM_PROXY: Final = (407, 502, 503, 504)  # statuses that a proxy also answers itself

log = logging.getLogger(__name__)


class OpenAIEngine:
    """Streams chat completions from the server at ``base_url``, which includes ``/v1``."""

    name = "openai"

    def __init__(  # noqa: PLR0913 -- one argument per setting
        self,
        base_url: str,
        api_key: str | None,
        model: str | None = None,
        *,
        timeout_s: float = 120.0,
        max_retries: int = MAX_RETRIES,
        prefill: str | None = None,
    ) -> None:
        """Create the client; this sends nothing.

        ``prefill`` is one of PREFILLS, the way in which the server is asked to continue an assistant's message. It is
        None if the server cannot do that.

        ``model`` replaces the model name of the requests. ``timeout_s`` is the longest wait for the first token and
        between two tokens, in seconds; reasoning models may need a minute or more. ``max_retries`` is the number of
        retries before the answer begins. Raises StartupError if the proxy variables of the environment are wrong.
        """
        self._model = model
        self._prefill = prefill
        self.supports_prefill = prefill is not None
        register_secrets([api_key or ""])
        try:
            self._client = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=api_key or "none",  # the client requires a key, also for local servers that need none
                timeout=openai.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
                max_retries=max_retries,
            )
        except OSError as exc:
            reason = (
                "the client of the model server cannot read the certificates that SSL_CERT_FILE or SSL_CERT_DIR names: "
                f"{exc.strerror or exc}; give it files that user {os.geteuid()} may read, or unset the variables"
            )
            raise StartupError(reason) from exc
        except Exception as exc:  # httpx raises several classes for wrong URLs and for a missing package
            reason = unusable_proxy() or (
                "the client of the model server does not start with OPENAI_BASE_URL and the variables HTTP_PROXY, "
                f"HTTPS_PROXY, ALL_PROXY and NO_PROXY: {mask_error(str(exc) or type(exc).__name__)}"
            )
            raise StartupError(reason) from exc
        self._proxy = proxy_of(base_url)
        url = self._client.base_url
        self._where = {"server.address": url.host, "server.port": url.port or _PORTS.get(url.scheme)}

    async def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncGenerator[EngineDelta, None]:
        """Yield text, reasoning and calls while they arrive, then one last piece; see ``Engine.stream``.

        Raises EngineError if the server refuses the request, the connection breaks, or the answer ends without a
        finish_reason: such an answer is incomplete.
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
                    raise _engine_error(exc, explained) from exc
                log.info("the connection to the model server broke after the end of the answer: %s", exc)
            except (json.JSONDecodeError, UnicodeDecodeError) as exc:
                message = f"the model server sent invalid JSON: {exc}"
                raise EngineError(message) from exc
            finally:
                turn.record_on(span)
            if turn.finish_reason is None:
                message = "the model server ended its answer without a finish_reason: the answer is incomplete"
                if not turn.received_any and "event-stream" not in kind:  # a web page, or a server that cannot stream
                    message = f"the model server answered with content type {kind[:80]!r}, not with an event stream"
                raise EngineError(message)
            if turn.finish_reason == "error":  # OpenRouter sends it if its upstream fails during the answer
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
            "extra_body": {name: value for name, value in request.extra.items() if value is not None},
        }
        if self._prefill and messages and messages[-1].get("role") == "assistant":
            in_message, in_body = PREFILLS[self._prefill]
            parameters["messages"][-1] = {**messages[-1], **in_message}
            parameters["extra_body"] = {**in_body, **parameters["extra_body"]}
        for name in _FORWARDED_PARAMETERS:
            value = getattr(request, name)
            if value is not None:
                parameters[name] = value
        if tools:
            parameters["tools"] = [tool.in_openai_form() for tool in tools]
            if tool_choice is not None:
                parameters["tool_choice"] = tool_choice
            if request.parallel_tool_calls is not None:  # only here: servers refuse it without tools
                parameters["parallel_tool_calls"] = request.parallel_tool_calls
        return parameters

    def _explained(self, exc: openai.OpenAIError) -> str:
        """Return the error's text with the upstream status and message, without secrets and the server's address.

        If the request went through a proxy, and the error may be the proxy's, the text names it.

        ``errors.failure_text`` searches the text for "400" and "context length". An address could contain "400".
        """
        text = str(exc)
        if isinstance(exc, openai.APIConnectionError):
            reason = "no answer in time" if isinstance(exc, openai.APITimeoutError) else f"{exc.__cause__ or text}"
            text = f"the connection to the model server failed: {reason}"
        elif isinstance(exc, openai.APIStatusError):
            if " - " not in text and exc.body:  # the client found no message in the body
                body = exc.body if isinstance(exc.body, str) else json.dumps(exc.body, default=str)
                text = f"{text} - {body}"
            if exc.code == "context_length_exceeded" and "context length" not in text.lower():
                text = f"{text} (context length exceeded)"
        text = mask_error(text)[:MAX_ERROR_CHARS]
        may_be_proxy = not isinstance(exc, openai.APIStatusError) or exc.status_code in _FROM_PROXY
        return f"{text} (through the proxy {self._proxy})" if self._proxy and may_be_proxy else text


@dataclass(slots=True)
class _PartialToolCall:
    """The received part of a tool call."""

    position: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class _ChunkFold:
    """Combines chunks into an answer.

    It expects incomplete chunks: servers omit fields, and the client's objects then have None or other types there.
    """

    def __init__(self) -> None:
        self.received_any = False
        self.began_s = time.perf_counter()
        self.first: tuple[float, object, object] | None = None  # arrival time, id and model of the first chunk
        self.texts: list[str] | None = [] if tracing.content_enabled() else None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        # DeepSeek sends "reasoning_content" and requires it back beside the calls. Groq sends "reasoning" and refuses
        # a conversation that contains it. So only "reasoning_content" is sent back.
        self.reasoning_content = ""
        self._calls: list[_PartialToolCall] = []
        self._by_index: dict[int, _PartialToolCall] = {}

    def receive(self, chunk: object) -> EngineDelta | None:
        """Add a chunk; return its content, or None if it has none."""
        if not self.received_any:
            self.received_any = True
            self.first = (time.perf_counter(), getattr(chunk, "id", None), getattr(chunk, "model", None))
        if usage := _usage(getattr(chunk, "usage", None)):
            self.usage = usage  # the latest: servers that send it with every chunk send the sum so far
        for choice in getattr(chunk, "choices", None) or ():
            if getattr(choice, "index", 0):
                continue  # another answer; the request asks for one
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
        """Set the span's attributes from the chunks received so far."""
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
        """Return the calls in the order of their first pieces. A call without an id gets ``call_<number>``."""
        return tuple(
            EngineToolCall(call.id or f"call_{number}", call.name, call.arguments)
            for number, call in enumerate(self._calls, 1)
        )

    def _add(self, part: object) -> EngineToolCallDelta:
        function = getattr(part, "function", None)
        name = getattr(function, "name", None) or ""
        arguments = getattr(function, "arguments", None)
        if not isinstance(arguments, str):  # some servers send an object, as in other APIs
            arguments = "" if arguments is None else json.dumps(arguments)
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
        """Return the call that a piece may belong to: the one with its index, or else its id, or else the latest."""
        if index is not None:
            return self._by_index.get(index)
        same_id = (call for call in self._calls if call_id and call.id == call_id)
        return next(same_id, self._calls[-1] if self._calls else None)


def _engine_error(exc: openai.OpenAIError, explained: str) -> EngineError:
    """Return the error with the failure code and the status for clients."""
    if isinstance(exc, openai.APITimeoutError):
        return EngineError(explained, code=MODEL_ERROR, status=UPSTREAM_TIMEOUT)
    if isinstance(exc, openai.APIConnectionError):
        return EngineError(explained, code=MODEL_ERROR, status=UPSTREAM_FAILED)
    code: Any = getattr(exc, "code", None)
    # An error in the middle of a stream has no HTTP status. Some servers repeat the status as its code.
    in_stream = int(code) if re.fullmatch(r"[45]\d\d", str(code)) else UPSTREAM_FAILED
    status = exc.status_code if isinstance(exc, openai.APIStatusError) else in_stream
    failure, shown_status = upstream_failure(status, explained, code)
    return EngineError(explained, code=failure, status=shown_status)


def _error_type(exc: openai.OpenAIError) -> str:
    """Return the span's ``error.type``: the HTTP status, or the name of the client's exception class."""
    return str(exc.status_code) if isinstance(exc, openai.APIStatusError) else type(exc).__name__


def _starts_new_call(call: _PartialToolCall, call_id: str, name: str, arguments: str) -> bool:
    """Return whether a piece begins a new call instead of continuing ``call``.

    The index does not decide it, because some servers send several complete calls with index 0.
    """
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
