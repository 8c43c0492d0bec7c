"""The demo engine: it needs no model. It recognises a few kinds of questions by fixed rules and calls the real tools.

Use it to try and test the service without a model server: tool calls, streaming, long answers, failures. It calls a
client's tool if the question contains the tool's name. It applies these parameters of the request: max_tokens, stop,
tool_choice and parallel_tool_calls. It ignores the others.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentstream.engines.base import SUMMARY_PROMPT, EngineDelta, EngineError, EngineToolCall, ToolChoice, ToolSchema
from agentstream.engines.spans import inference_span, record_response
from agentstream.errors import MODEL_ERROR
from agentstream.protocol.openai import ChatCompletionRequest, Usage

CHARS_PER_TOKEN = 4  # the seed's rule
# Limits the time of the patterns below, which scan a text several times. A normal question is much shorter.
MAX_QUESTION_CHARS = 20_000
MAX_COUNT = 10_000  # for "count to ...": minutes of streaming, but only 48 KB of replay log
MAX_INTENTS = 20  # calls for one question; people ask for fewer
# The orchestrator starts the message of a failed call with this text.
FAILED_PREFIX = "Error: "

_HOW_TO_CONNECT = (
    "To connect a language model, set OPENAI_BASE_URL to the address of an OpenAI-compatible server, set "
    "OPENAI_API_KEY if the server needs a key, and start again."
)
_EXAMPLES = {
    "calculator": 'arithmetic, such as "what is 17*23"',
    "current_time": 'the time somewhere, such as "the time in Tokyo"',
    "text_statistics": "text statistics, such as 'count the words in \"to be or not to be\"'",
    "send_postcard": "a tool that asks you first, such as 'send a postcard to Ada: greetings from Oslo'",
    "read_url": 'reading a public web page, such as "read https://example.org"',
}


@dataclass(frozen=True, slots=True)
class _Intent:
    """A part of the question that a tool can answer: its position in the text, and the call."""

    position: int
    tool: str
    arguments: dict[str, Any]


class BuiltinEngine:
    """Answers by fixed rules. It replies with an introduction if it does not understand the question."""

    name = "builtin"
    supports_prefill = True

    def __init__(self, *, token_delay_s: float = 0.0) -> None:
        """``token_delay_s`` is the pause after each word, in seconds; 0.02 looks like a real model."""
        self._token_delay_s = token_delay_s

    async def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncGenerator[EngineDelta, None]:
        """Yield the tool calls for the last question or, after their results, an answer word by word.

        The usage counts 4 characters as a token. Raises EngineError if ``tool_choice`` names a tool that is not in
        ``tools``.
        """
        with inference_span("agentstream", request.model, request, messages) as span:
            async with aclosing(self._stream_deltas(request, messages, tools, tool_choice)) as deltas:
                async for delta in deltas:
                    if delta.finish_reason:
                        record_response(span, usage=delta.usage, finish_reason=delta.finish_reason)
                    yield delta

    async def _stream_deltas(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None,
    ) -> AsyncGenerator[EngineDelta, None]:
        question, tail = _last_question(messages)
        offered = {tool.name for tool in tools}
        intents = _parse_intents(question, tools)
        made = _answered_calls(tail)
        forced = _forced_tools(tools, tool_choice)
        if forced and not any(intent.tool == tool.name for intent in intents for tool in forced):
            intents.insert(0, _Intent(-1, forced[0].name, _arguments_for(forced[0], question)))
        calls = [intent for intent in intents if intent.tool in offered and tool_choice != "none"]
        if todo := _pending_intents(calls, made):
            if request.parallel_tool_calls is False:
                todo = todo[:1]
            tool_calls = [
                EngineToolCall(f"call_{number}", intent.tool, json.dumps(intent.arguments, ensure_ascii=False))
                for number, intent in enumerate(todo, made.total() + 1)
            ]
            usage = _usage(messages, "".join(call.arguments for call in tool_calls))
            yield EngineDelta(tool_calls=tool_calls, finish_reason="tool_calls", usage=usage)
            return
        missing = [intent.tool for intent in intents if intent.tool not in offered]
        client_tool = next((tool.name for tool in tools if tool.definition), None)
        introduction = _introduction(offered, client_tool)
        answer = _without_prefill(_answer(question, tail, missing, introduction), messages)
        text, finish_reason = _truncated(answer, request)
        for word in re.findall(r"\s*\S+|\s+$", text):
            yield EngineDelta(text=word)
            await asyncio.sleep(self._token_delay_s)
        yield EngineDelta(finish_reason=finish_reason, usage=_usage(messages, text))

    async def close(self) -> None:
        """Do nothing: this engine holds no connections."""


def _last_question(messages: Sequence[dict[str, Any]]) -> tuple[str, Sequence[dict[str, Any]]]:
    """Return the text of the last user message that is not SUMMARY_PROMPT, and the messages after it."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "user" and messages[index].get("content") != SUMMARY_PROMPT:
            return _text_of(messages[index]), messages[index + 1 :]
    return "", messages


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


# Tool calls


def _answered_calls(tail: Sequence[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Count the calls, by name and arguments, that have a result in the messages after the question."""
    answered = {message.get("tool_call_id") for message in tail if message.get("role") == "tool"}
    return Counter(
        (call["function"]["name"], _canonical(call["function"]["arguments"]))
        for message in tail
        for call in message.get("tool_calls") or ()
        if call["id"] in answered
    )


def _canonical(arguments: str) -> str:
    """Return JSON text with sorted keys and fixed spacing, because clients may send it back in another format."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments


def _pending_intents(intents: Sequence[_Intent], made: Counter[tuple[str, str]]) -> list[_Intent]:
    left, todo = Counter(made), []
    for intent in intents:
        key = (intent.tool, json.dumps(intent.arguments, sort_keys=True))
        if left[key]:
            left[key] -= 1
        else:
            todo.append(intent)
    return todo


def _forced_tools(tools: Sequence[ToolSchema], choice: ToolChoice | None) -> list[ToolSchema]:
    """Return the tools that satisfy ``choice``, so that one of them must be called; empty if no call is required."""
    if choice == "required":
        return [tool for tool in tools if tool.definition] or list(tools)
    if isinstance(choice, str) or choice is None:
        return []
    name = choice["function"]["name"]
    if not (named := [tool for tool in tools if tool.name == name]):
        message = f"Error code: 400 - tool_choice names {name!r}, but the request has no such tool"
        raise EngineError(message, code=MODEL_ERROR, status=400)
    return named


def _usage(messages: Sequence[dict[str, Any]], answer: str) -> Usage:
    prompt = 0
    for message in messages:
        prompt += max(1, len(_text_of(message)) // CHARS_PER_TOKEN)
        for call in message.get("tool_calls") or ():
            prompt += max(1, len(call["function"]["arguments"]) // CHARS_PER_TOKEN)
    completion = max(1, len(answer) // CHARS_PER_TOKEN)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _truncated(text: str, request: ChatCompletionRequest) -> tuple[str, str]:
    """Return the text, cut at the first stop sequence and at the token limit, and its finish_reason."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    for stop in stops:
        if stop and stop in text:
            text = text[: text.index(stop)]
    limit = request.output_token_limit
    if limit is not None and len(text) > limit * CHARS_PER_TOKEN:
        return text[: limit * CHARS_PER_TOKEN], "length"
    return text, "stop"


# Answers


def _answer(question: str, tail: Sequence[dict[str, Any]], missing: Sequence[str], introduction: str) -> str:
    calls = {call["id"]: call["function"] for message in tail for call in message.get("tool_calls") or ()}
    sentences = [
        _result_sentence(calls.get(message.get("tool_call_id"), {}), _text_of(message))
        for message in tail
        if message.get("role") == "tool"
    ]
    sentences += [f"A part of your question needs the tool {name}, which is not available here." for name in missing]
    if sentences:
        return " ".join(sentences)
    if len(question) > MAX_QUESTION_CHARS:
        return f"Your question is too long: I can read up to {MAX_QUESTION_CHARS} characters. {introduction}"
    if count := _COUNT_TO.search(question):
        return _count(int(count[1] or 1), int(count[2]))
    if _GREETING.match(question):
        return f"Hello! {introduction}"
    if _HELP.search(question):
        return introduction
    return f"I did not understand that. {introduction}"


def _without_prefill(answer: str, messages: Sequence[dict[str, Any]]) -> str:
    """Return the answer after its beginning, which is the last message if that is the assistant's."""
    beginning = _text_of(messages[-1]) if messages and messages[-1].get("role") == "assistant" else ""
    return answer.removeprefix(beginning) if answer.startswith(beginning) else ""


def _introduction(offered: set[str], client_tool: str | None) -> str:
    abilities = [example for tool, example in _EXAMPLES.items() if tool in offered]
    if client_tool is not None:
        abilities.append(f'calling your own tool by its name, such as "{client_tool} ..."')
    abilities.append('a long answer, such as "count to 2000"')
    listed = "\n".join(f"- {ability}" for ability in abilities)
    return (
        "I am agentstream's built-in demo engine. I follow fixed rules; I am not a language model. These are the "
        f"things I can do, up to {MAX_INTENTS} of them for one question:\n{listed}\n\n{_HOW_TO_CONNECT}"
    )


def _count(first: int, last: int) -> str:
    if last > MAX_COUNT:
        return f"I can count up to {MAX_COUNT}."
    if first > last:
        return f"I cannot count from {first} to {last}: I only count upwards."
    return " ".join(str(number) for number in range(first, last + 1))


# tool -> (sentence for a result, sentence for a failure)
_SENTENCES = {
    "calculator": ("{subject} = {result}.", "I could not calculate {subject}: {result}."),
    "current_time": ("The time in {subject}: {result}.", "I could not tell the time in {subject}: {result}."),
    "text_statistics": ("Your text: {result}.", "I could not count your text: {result}."),
    "send_postcard": ("Done: {result}.", "I sent no postcard: {result}"),
    "read_url": ("The page {subject}:\n{result}\n", "I could not read {subject}: {result}."),
}


def _result_sentence(call: dict[str, Any], content: str) -> str:
    """Return a sentence for the result of one call, successful or failed."""
    name = call.get("name", "")
    tool = f"The tool {name}" if name else "A tool"
    success, failure = _SENTENCES.get(name, (f"{tool} returned: {{result}}", f"{tool} failed: {{result}}."))
    try:
        values = list(json.loads(call.get("arguments", "{}")).values())
    except (ValueError, AttributeError):  # not JSON, or no object
        values = []
    subject = values[0] if values else "UTC" if name == "current_time" else "that"
    failed = content.startswith(FAILED_PREFIX)
    return (failure if failed else success).format(subject=subject, result=content.removeprefix(FAILED_PREFIX))


# Questions

_COUNT_TO = re.compile(r"\bcount\s+(?:up\s+)?(?:from\s+([0-9]{1,9})\s+)?(?:up\s+)?to\s+([0-9]{1,9})\b", re.IGNORECASE)
_GREETING = re.compile(r"\s*(?:hi|hello|hey|greetings|good (?:morning|afternoon|evening))\b", re.IGNORECASE)
_HELP = re.compile(r"\bhelp\b|\bwhat can you\b|\b(?:who|what) are you\b", re.IGNORECASE)

# The arguments after a tool's name: a JSON object, or the rest of the clause.
_TOOL_ARGUMENTS = re.compile(r"\s*:?\s*(?:with\s+)?\{[^{}]*\}|(?:(?!\s+and\b|,)[^?.!;\n])*", re.IGNORECASE)
_FILLER = re.compile(r"^\s*:?\s*(?:(?:for|in|of|with|to|on|at|about)\s+)?", re.IGNORECASE)

_TEXT = re.compile(
    r"""(?:\b(?:count|how\ many|analy[sz]e)\b[^\n"“:]{0,80}?\b(?:words?|letters?|characters?|sentences?|lines?|text)
          |\b(?:statistics|stats))\b
        (?: [^\n"“:]{0,40}? (?: "([^"]*)" | “([^”]*)” | (?<!\w)'([^']*)'(?!\w) )
          | [^\n"“:]{0,40} :\s* ([^\s"“].*) )""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_POSTCARD = re.compile(
    r"\b(?:send|write|mail)\b[^\n:,]{0,20}?\bpostcard\s+to\s+([^\s:,](?:[^\n:,]{0,60}[^\s:,])?)\s*[:,]\s*([^\n]{1,500})",
    re.IGNORECASE,
)
_URL = re.compile(r"\b(?:read|open|fetch|get|summari[sz]e)\b[^\n]{0,40}?(https?://[^\s\"'<>]+)", re.IGNORECASE)

_PLACE_WORD = r"[^\W\d_][\w'’/+-]*\.?"  # noqa: RUF001 -- the typographic apostrophe is meant
_PLACE = re.compile(
    r"\b(?:time|date|day)\b(?!\s+zone)[^?.!,;:\n]{0,20}?\b(?:in|for)\s+(?:the\s+)?"
    rf"({_PLACE_WORD}(?:[ ]{_PLACE_WORD}){{0,3}})",
    re.IGNORECASE,
)
_AFTER_PLACE = re.compile(
    r"\s(?:and|or|now|right|please|today|then|currently|at|is|but|also|plus|what)\b", re.IGNORECASE
)
_NAME = r"(?!(?:What|How|The|Count|Tell|Calculate|Please|Is|I)\b)[A-Z][\w'’-]*(?:[ ][A-Z][\w'’-]*){0,3}"  # noqa: RUF001
_MORE_PLACES = re.compile(rf"(?:\s*,\s*{_NAME})*,?\s+and\s+(?:in\s+)?{_NAME}")
_TIME = re.compile(
    r"\bwhat(?:['’]s|\s+is)?\s+(?:the\s+)?(?:current\s+)?(?:time|date)\b|\bwhat\s+day\s+is\s+it\b"  # noqa: RUF001
    r"|\bcurrent\s+(?:time|date)\b|\b(?:and|tell\s+me)\s+the\s+time\b",
    re.IGNORECASE,
)

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_FUNCTION = r"\b(?:sqrt|abs|round|floor|ceil|min|max|log10|log|ln|exp|sin|cos|tan)\s*\((?:[^()]|\([^()]*\))*\)"
_PART = rf"(?:{_FUNCTION}|{_NUMBER}|\*\*|//|[-+*/%^×÷−()]|\b(?:pi|e)\b)"  # noqa: RUF001
_EXPRESSION = re.compile(rf"{_PART}(?:\s*{_PART})*", re.IGNORECASE)
_HAS_OPERATION = re.compile(rf"[0-9a-z)]\s*(?:\*\*|[-+*/%^×÷−])[-+*/\s]*[0-9a-z(]|{_FUNCTION}", re.IGNORECASE)  # noqa: RUF001
# 24/7, 3-4 or a date. It is arithmetic only if the question asks to calculate, or begins with it.
_AMBIGUOUS_EXPRESSION = re.compile(r"[0-9]+(?:\s*[-/]\s*[0-9]+)+")
_ASKS_TO_CALCULATE = re.compile(
    r"\bwhat(?:['’]s|\s+is)\b|\b(?:calculate|compute|evaluate|solve|how\s+much|work\s+out)\b",  # noqa: RUF001
    re.IGNORECASE,
)
_ROOT_OF = re.compile(rf"\bsquare\s+root\s+of\s+({_NUMBER})", re.IGNORECASE)
_PERCENT_OF = re.compile(r"(?<=[0-9])\s*(?:%|percent)\s+of\s+(?=[0-9])", re.IGNORECASE)
_OPERATOR_WORD = re.compile(
    r"(?<=[0-9)])\s*(plus|minus|times|multiplied\s+by|divided\s+by|to\s+the\s+power\s+of|x)\s*(?=[-0-9(]|sqrt|pi\b)",
    re.IGNORECASE,
)
_OPERATOR_OF_WORD = {"plus": "+", "minus": "-", "times": "*", "multiplied": "*", "x": "*", "divided": "/", "to": "**"}


def _parse_intents(question: str, tools: Sequence[ToolSchema]) -> list[_Intent]:
    """Return the intents in the order of the question. Later rules do not see text that an earlier rule has matched."""
    if len(question) > MAX_QUESTION_CHARS:
        return []
    intents: list[_Intent] = []
    for rule in (
        partial(_named_tools, tools=tools),
        _find_postcards,
        _find_texts,
        _find_pages,
        _find_times,
        _find_sums,
    ):
        found = list(rule(question))
        intents += [intent for intent, _ in found]
        for _, (start, end) in found:
            question = _blanked(question, start, end)
    return sorted(intents, key=lambda intent: intent.position)[:MAX_INTENTS]


def _blanked(text: str, start: int, end: int) -> str:
    return text[:start] + " " * (end - start) + text[end:]


_Matches = Iterator[tuple[_Intent, tuple[int, int]]]


def _named_tools(question: str, *, tools: Sequence[ToolSchema]) -> _Matches:
    for tool in tools:
        if tool.definition:
            for match in re.finditer(rf"(?<![\w-]){re.escape(tool.name)}(?![\w-])", question, re.IGNORECASE):
                following = _TOOL_ARGUMENTS.match(question, match.end())
                end = following.end() if following else match.end()
                arguments = _arguments_for(tool, question[match.end() : end])
                yield _Intent(match.start(), tool.name, arguments), (match.start(), end)


def _arguments_for(tool: ToolSchema, text: str) -> dict[str, Any]:
    """Return the arguments in ``text``: a JSON object, or else the text itself if the first parameter is a string.

    The first parameter is the first required one, or else the first property.
    """
    text = _FILLER.sub("", text).strip(" \"'“”")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    properties = tool.parameters.get("properties") or {}
    first = next(iter([*tool.parameters.get("required", ()), *properties]), None)
    kind = properties[first].get("type") if first in properties and isinstance(properties[first], dict) else None
    return {first: text} if text and first is not None and kind == "string" else {}


def _find_texts(question: str) -> _Matches:
    for match in _TEXT.finditer(question):
        text = next(group for group in match.groups() if group is not None)
        yield _Intent(match.start(), "text_statistics", {"text": text}), match.span()


def _find_postcards(question: str) -> _Matches:
    for match in _POSTCARD.finditer(question):
        text = match[2].strip().strip("\"'“”")
        if text:
            yield _Intent(match.start(), "send_postcard", {"to": match[1], "text": text}), match.span()


def _find_pages(question: str) -> _Matches:
    for match in _URL.finditer(question):
        yield _Intent(match.start(), "read_url", {"url": match[1].rstrip(".,;:!?)")}), match.span()


def _find_times(question: str) -> _Matches:
    for match in _PLACE.finditer(question):
        place = _AFTER_PLACE.split(match[1] + " ", maxsplit=1)[0].strip().removesuffix(".")
        end = match.start(1) + len(place)
        question = _blanked(question, match.start(), end)
        yield _Intent(match.start(), "current_time", {"place": place}), (match.start(), end)
        if more := _MORE_PLACES.match(question, end):
            for name in re.finditer(_NAME, more[0]):
                start = end + name.start()
                yield _Intent(start, "current_time", {"place": name[0]}), (start, end + name.end())
    for match in _TIME.finditer(question):  # the remaining questions name no place
        yield _Intent(match.start(), "current_time", {}), match.span()


def _find_sums(question: str) -> _Matches:
    beginning = question.lstrip()
    # Words become operators, padded to the same length so that positions stay valid.
    question = _ROOT_OF.sub(lambda match: f"sqrt({match[1]})".ljust(len(match[0])), question)
    question = _PERCENT_OF.sub(lambda match: "/100*".ljust(len(match[0])), question)
    question = _OPERATOR_WORD.sub(
        lambda match: _OPERATOR_OF_WORD[match[1].lower().split()[0]].center(len(match[0])),
        question,
    )
    for match in _EXPRESSION.finditer(question):
        expression = _trimmed(match[0])
        if not _HAS_OPERATION.search(expression):
            continue
        wanted = beginning.startswith(expression) or _ASKS_TO_CALCULATE.search(question)
        if wanted or not _AMBIGUOUS_EXPRESSION.fullmatch(expression):
            yield _Intent(match.start(), "calculator", {"expression": expression}), match.span()


def _trimmed(expression: str) -> str:
    """Return the expression without operators and parentheses that belong to the surrounding sentence."""
    expression = re.sub(r"\s+", " ", expression).strip(" ").lstrip("*/%^×÷) ").rstrip("-+*/%^×÷−( ")  # noqa: RUF001
    while expression.count(")") > expression.count("(") and expression.endswith(")"):
        expression = expression[:-1].rstrip()
    while expression.count("(") > expression.count(")") and expression.startswith("("):
        expression = expression[1:].lstrip()
    return expression
