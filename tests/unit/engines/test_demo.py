"""The demo engine: the questions it understands, its tool calls and its answers."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from agentstream.engines.base import EngineDelta, EngineError, ToolChoice, ToolSchema
from agentstream.engines.demo import MAX_INTENTS, MAX_QUESTION_CHARS, BuiltinEngine
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.tools.postcard import Postcard
from agentstream.tools.toolbox import Toolbox, default_tools

ALL_TOOLS = Toolbox(default_tools(read_url=True), 1).schemas()
QUICK_S = 1.0  # the slowest question that we found takes 70 ms

Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


async def pieces_of(
    *messages: Message,
    tools: Sequence[ToolSchema] = ALL_TOOLS,
    choice: ToolChoice | None = None,
    **parameters: Any,
) -> list[EngineDelta]:
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [user("unused")], **parameters})
    return [piece async for piece in BuiltinEngine().stream(request, messages, tools, choice)]


async def calls_of(question: str, **options: Any) -> list[tuple[str, dict[str, str]]]:
    pieces = await pieces_of(user(question), **options)
    return [(call.name, json.loads(call.arguments)) for call in pieces[-1].tool_calls]


async def answer_to(*messages: Message, **options: Any) -> str:
    return "".join(piece.text for piece in await pieces_of(*messages, **options))


def called(*calls: tuple[str, dict[str, str]]) -> Message:
    """Return the assistant's message with these tool calls; their ids are c1, c2 ..."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for number, (name, arguments) in enumerate(calls, 1)
        ],
    }


def result(number: int, content: str) -> Message:
    return {"role": "tool", "tool_call_id": f"c{number}", "content": content}


def calculator(expression: str) -> tuple[str, dict[str, str]]:
    return "calculator", {"expression": expression}


def time_in(place: str) -> tuple[str, dict[str, str]]:
    return "current_time", {"place": place}


def statistics(text: str) -> tuple[str, dict[str, str]]:
    return "text_statistics", {"text": text}


NOW: tuple[str, dict[str, str]] = ("current_time", {})


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("what is 17*23?", [calculator("17*23")]),
        ("17*23", [calculator("17*23")]),
        ("What is 17 times 23", [calculator("17 * 23")]),
        ("7 x 8", [calculator("7 * 8")]),
        ("what is (2+3)*4 = ?", [calculator("(2+3)*4")]),
        ("what is -3+4", [calculator("-3+4")]),
        ("1,234 * 2, and 5^2", [calculator("1,234 * 2"), calculator("5^2")]),
        ("square root of 16 plus 2", [calculator("sqrt(16) + 2")]),
        ("what is 15% of 80?", [calculator("15/100*80")]),
        ("max(1, 2, 3) + sqrt(2)", [calculator("max(1, 2, 3) + sqrt(2)")]),
        ("what is 24/7", [calculator("24/7")]),
        ("I work 24/7", []),
        ("see you on 2026-11-24", []),
        ("the time in Tokyo", [time_in("Tokyo")]),
        ("What time is it in new york right now?", [time_in("new york")]),
        ("the time in Tokyo, Paris and London", [time_in("Tokyo"), time_in("Paris"), time_in("London")]),
        ("What day is it in St. Petersburg?", [time_in("St. Petersburg")]),
        ("what time is it?", [NOW]),
        ("What's the date today?", [NOW]),
        ('count the words in "to be or not to be"', [statistics("to be or not to be")]),
        ("how many characters are in 'hello world'?", [statistics("hello world")]),
        ("Text statistics of “a 1+1 b”, please", [statistics("a 1+1 b")]),
        ("count the words in: a b\nc", [statistics("a b\nc")]),
        ("read https://example.org/a?b=1-2.", [("read_url", {"url": "https://example.org/a?b=1-2"})]),
        ("what is 17*23, and the time in Tokyo?", [calculator("17*23"), time_in("Tokyo")]),
        ("the time in Tokyo and what is 17*23?", [time_in("Tokyo"), calculator("17*23")]),
        (
            'count the words in "3*4 in Rome", then 3*4, and what time is it in Rome?',
            [statistics("3*4 in Rome"), calculator("3*4"), time_in("Rome")],
        ),
        ("1/0 and the time in Atlantis", [calculator("1/0"), time_in("Atlantis")]),
        ("Why is the sky blue?", []),
    ],
)
async def test_questions_become_tool_calls_in_the_order_asked(
    question: str,
    expected: list[tuple[str, dict[str, str]]],
) -> None:
    """One turn has a call for each part of the question that is understood, in the order of the question."""
    assert await calls_of(question) == expected


@pytest.mark.parametrize(
    ("question", "arguments"),
    [
        ("send a postcard to Ada: greetings from Oslo", {"to": "Ada", "text": "greetings from Oslo"}),
        ('Please write a postcard to Ada Lovelace, "17*23 = ?"', {"to": "Ada Lovelace", "text": "17*23 = ?"}),
    ],
)
async def test_it_sends_a_postcard_after_approval(question: str, arguments: dict[str, str]) -> None:
    """A question for a postcard becomes one call of the tool that needs approval; its text is no question."""
    card = Postcard()
    tools = [*ALL_TOOLS, ToolSchema(card.name, card.description, card.parameters)]
    assert await calls_of(question, tools=tools) == [("send_postcard", arguments)]
    made = called(("send_postcard", arguments))
    denied = "Error: send_postcard was not run: a person denied it."
    assert await answer_to(user(question), made, result(1, denied), tools=tools) == (
        "I sent no postcard: send_postcard was not run: a person denied it."
    )


async def test_a_turn_with_tool_calls_has_no_text() -> None:
    """A turn with tool calls is one piece without text; it has a finish_reason, distinct ids and the usage."""
    (piece,) = await pieces_of(user("what is 17*23, and the time in Tokyo?"))
    assert (piece.text, piece.finish_reason) == ("", "tool_calls")
    assert len({call.id for call in piece.tool_calls}) == 2
    assert piece.usage is not None


async def test_only_offered_tools_are_called() -> None:
    """A tool that is not offered is not called, and the answer says that it is missing."""
    only_time = [tool for tool in ALL_TOOLS if tool.name == "current_time"]
    question = "what is 17*23, and the time in Tokyo?"
    assert await calls_of(question, tools=only_time) == [time_in("Tokyo")]
    answer = await answer_to(user(question), called(time_in("Tokyo")), result(1, "noon"), tools=only_time)
    assert answer == (
        "The time in Tokyo: noon. A part of your question needs the tool calculator, which is not available here."
    )


async def test_one_call_a_turn_if_the_client_wants_no_parallel_calls() -> None:
    """With parallel_tool_calls false each turn has one call."""
    question = user("what is 17*23, and the time in Tokyo?")
    first = [question, called(calculator("17*23")), result(1, "391")]
    pieces = await pieces_of(*first, parallel_tool_calls=False)
    assert [call.name for call in pieces[-1].tool_calls] == ["current_time"]
    assert await calls_of("what is 17*23, and the time in Tokyo?", parallel_tool_calls=False) == [calculator("17*23")]


async def test_the_answer_states_each_result() -> None:
    """The answer has one sentence for each result, in the order of the calls."""
    question = 'what is 17*23, the time in Tokyo, and how many words are in "a b"?'
    calls = called(calculator("17*23"), time_in("Tokyo"), statistics("a b"))
    answer = await answer_to(user(question), calls, result(1, "391"), result(2, "noon"), result(3, "2 words"))
    assert answer == "17*23 = 391. The time in Tokyo: noon. Your text: 2 words."


async def test_failures_are_reported_as_failures() -> None:
    """The answer reports a failed tool as a failure, with the reason."""
    question = "what is 1/0, and the time in Atlantis?"
    calls = called(calculator("1/0"), time_in("Atlantis"))
    failed = [result(1, "Error: division by zero"), result(2, "Error: no time zone is known for 'Atlantis'")]
    assert await answer_to(user(question), calls, *failed) == (
        "I could not calculate 1/0: division by zero. "
        "I could not tell the time in Atlantis: no time zone is known for 'Atlantis'."
    )


async def test_results_of_unknown_tools_are_reported() -> None:
    """Results of unknown tools, with unusual arguments or unknown call ids, are reported too."""
    strange: Message = {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "[1]"}}],
    }
    answer = await answer_to(user("Rain?"), strange, result(1, "{dry}"), result(2, "Error: no"))
    assert answer == "The tool weather returned: {dry} A tool failed: no."


async def test_only_the_last_question_counts() -> None:
    """Earlier questions and their results are ignored."""
    history = [user("what is 1+1"), called(calculator("1+1")), result(1, "2"), {"role": "assistant", "content": "2"}]
    pieces = await pieces_of(*history, user("what is 2+2"))
    assert [call.arguments for call in pieces[-1].tool_calls] == ['{"expression": "2+2"}']


async def test_text_parts_are_read() -> None:
    """A question in content parts is understood, and images in it are ignored."""
    parts = [{"type": "text", "text": "what is "}, {"type": "image_url"}, {"type": "text", "text": "2+2"}]
    pieces = await pieces_of({"role": "user", "content": parts})
    assert [call.name for call in pieces[-1].tool_calls] == ["calculator"]


@pytest.mark.parametrize("question", ["Why is the sky blue?", "hello", "help", "what can you do?", ""])
async def test_it_says_that_it_is_a_demo(question: str) -> None:
    """To a question that it does not understand, it replies what it is, what it can do and how to connect a model."""
    answer = await answer_to(user(question))
    for expected in ("demo engine", "not a language model", "17*23", "Tokyo", "count the words", "OPENAI_BASE_URL"):
        assert expected in answer


async def test_it_names_only_abilities_it_has() -> None:
    """The introduction does not mention tools that are not offered."""
    answer = await answer_to(user("help"), tools=[])
    assert "Tokyo" not in answer
    assert "count to 2000" in answer


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("count to 200", " ".join(map(str, range(1, 201)))),
        ("Please count from 3 up to 5", "3 4 5"),
        ("count from 9 to 5", "I cannot count from 9 to 5: I only count upwards."),
        ("count to 10001", "I can count up to 10000."),
    ],
)
async def test_it_counts_on_request(question: str, expected: str) -> None:
    """It counts from one number up to another, within a limit."""
    assert await answer_to(user(question)) == expected


@pytest.mark.parametrize(
    ("begun", "rest"), [("1 2", " 3 4"), ("1 2 3 4", ""), ("Well, 1", "")], ids=["begun", "whole", "other"]
)
async def test_an_answer_is_continued(begun: str, rest: str) -> None:
    """If the last message is the assistant's, only the text after it comes, and the answer ends well."""
    pieces = await pieces_of(user("count to 4"), {"role": "assistant", "content": begun})
    assert "".join(piece.text for piece in pieces) == rest
    assert pieces[-1].finish_reason == "stop"


async def test_text_comes_word_by_word_and_ends_with_usage() -> None:
    """Each word is a separate piece, and the last piece has finish_reason stop and counts 4 characters as a token."""
    question = user("count to 3, if you would be so kind")
    assert await pieces_of(question) == [
        EngineDelta(text="1"),
        EngineDelta(text=" 2"),
        EngineDelta(text=" 3"),
        EngineDelta(finish_reason="stop", usage=Usage(prompt_tokens=8, completion_tokens=1, total_tokens=9)),
    ]


async def test_limits_of_the_request_are_kept() -> None:
    """max_tokens truncates the answer with finish_reason length, and a stop sequence ends it."""
    truncated = await pieces_of(user("count to 200"), max_tokens=2)
    assert ("".join(piece.text for piece in truncated), truncated[-1].finish_reason) == ("1 2 3 4 ", "length")
    stopped = await pieces_of(user("count to 200"), stop=[" 7", " 4"])
    assert ("".join(piece.text for piece in stopped), stopped[-1].finish_reason) == ("1 2 3", "stop")


async def test_a_delay_between_words_is_kept() -> None:
    """With token_delay_s at least this time passes after each word."""
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [user("count to 5")]})
    started = time.perf_counter()
    assert [piece async for piece in BuiltinEngine(token_delay_s=0.01).stream(request, [user("count to 5")], [])]
    assert time.perf_counter() - started >= 0.05


@pytest.mark.parametrize(
    "piece",
    ["sqrt(", "1,111", "count words '", 'count words "', "1+", "(", "time in ", "A, ", "read ", "and A "],
)
async def test_no_question_takes_long(piece: str) -> None:
    """Questions that are built to make the regular expressions backtrack are answered quickly."""
    question = user(piece * (MAX_QUESTION_CHARS // len(piece)))
    started = time.perf_counter()
    await pieces_of(question)
    assert time.perf_counter() - started < QUICK_S


async def test_limits_of_a_question_are_kept() -> None:
    """One question makes at most MAX_INTENTS calls, and the answer to a question that is too long names the limit."""
    assert len(await calls_of("what is 1+1, " * 50)) == MAX_INTENTS
    answer = await answer_to(user("1+1 " * MAX_QUESTION_CHARS))
    assert answer.startswith("Your question is too long: I can read up to 20000 characters.")


# A client's own tools

CITY = {"type": "object", "properties": {"days": {"type": "integer"}, "city": {"type": "string"}}, "required": ["city"]}


def clients(name: str, parameters: dict[str, Any] | None = None) -> ToolSchema:
    definition = {"type": "function", "function": {"name": name}}
    return ToolSchema(name, "", parameters or {}, definition)


WITH_CLIENTS = [clients("get_weather", CITY), clients("ping"), *ALL_TOOLS]


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        ("get_weather for New York, please", [("get_weather", {"city": "New York"})]),
        ('Use GET_WEATHER {"city": "Oslo", "days": 2}!', [("get_weather", {"city": "Oslo", "days": 2})]),
        ("get_weather", [("get_weather", {})]),
        ("ping the server", [("ping", {})]),
        ("get_weather: Bergen and ping", [("get_weather", {"city": "Bergen"}), ("ping", {})]),
        ("what is 1+1 and ping", [("calculator", {"expression": "1+1"}), ("ping", {})]),
        ("skipping get_weathers", []),
    ],
)
async def test_a_clients_tool_is_called_by_its_name(question: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    """A client's tool that the question names is called with the object or the words after its name."""
    assert await calls_of(question, tools=WITH_CLIENTS) == calls


async def test_after_a_clients_result_the_other_calls_follow() -> None:
    """A call with a result is not repeated, even if the client sends its arguments back in another format."""
    question = user("what is 1+1 and get_weather for Oslo")
    first = called(("get_weather", {"city": "Oslo"}))
    first["tool_calls"][0]["function"]["arguments"] = '{ "city":"Oslo" }'
    pieces = await pieces_of(question, first, result(1, "rain"), tools=WITH_CLIENTS)
    assert [call.name for call in pieces[-1].tool_calls] == ["calculator"]
    both = called(("get_weather", {"city": "Oslo"}), ("calculator", {"expression": "1+1"}))
    answer = await answer_to(question, both, result(1, "rain"), result(2, "2"), tools=WITH_CLIENTS)
    assert answer == "The tool get_weather returned: rain 1+1 = 2."


@pytest.mark.parametrize(
    ("choice", "called_tool"),
    [("required", "get_weather"), ({"type": "function", "function": {"name": "ping"}}, "ping"), ("auto", None)],
)
async def test_a_forced_choice_is_followed(choice: ToolChoice, called_tool: str | None) -> None:
    """A required or named tool is called even if the question does not need it, and auto forces no call."""
    names = [name for name, _ in await calls_of("hello", tools=WITH_CLIENTS, choice=choice)]
    assert names == ([called_tool] if called_tool else [])


async def test_a_choice_of_an_unknown_tool_is_refused() -> None:
    """A tool_choice that names a tool that is not offered raises the error of a model server, with status 400."""
    with pytest.raises(EngineError, match=r"400 - tool_choice names 'telepathy'"):
        await calls_of("hello", choice={"type": "function", "function": {"name": "telepathy"}})


async def test_the_introduction_explains_a_clients_tools() -> None:
    """The introduction explains how to call a client's tool, but only if the request has one."""
    assert 'your own tool by its name, such as "get_weather ..."' in await answer_to(user("help"), tools=WITH_CLIENTS)
    assert "your own tool" not in await answer_to(user("help"))
