"""The tools that need no network, and the toolbox that calls them."""

import asyncio
import time
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from agentstream.tools import current_time
from agentstream.tools.base import ToolError
from agentstream.tools.calculator import Calculator, evaluate, format_number
from agentstream.tools.current_time import CurrentTime
from agentstream.tools.text_statistics import TextStatistics
from agentstream.tools.toolbox import MAX_RESULT_CHARS, Toolbox, default_tools

NOW = datetime(2026, 11, 24, 0, 15, 3, tzinfo=UTC)
# The slowest expression that we found takes 10 ms; the rest is for a busy machine.
QUICK_S = 0.5


def value_of(expression: str) -> str:
    return format_number(evaluate(expression))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("17*23", "391"),
        ("0.1+0.2", "0.3"),
        ("1/3+1/3+1/3", "1"),
        ("10/4", "2.5"),
        ("10/5", "2"),
        ("391.0", "391"),
        (".5 + 1.", "1.5"),
        ("1.5e-3", "0.0015"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("2 - 3 - 4", "-5"),
        ("100 / 10 / 2", "5"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("2^3^2", "512"),
        ("--3", "3"),
        ("7 % 3", "1"),
        ("-7 // 2", "-4"),
        ("3 \N{MULTIPLICATION SIGN} 4 \N{DIVISION SIGN} 2 \N{MINUS SIGN} 1", "5"),
        ("17*23 =", "391"),
        ("2**200", str(2**200)),
        ("0**0", "1"),
        ("(-1)**1000000000001", "-1"),
    ],
)
def test_arithmetic_follows_the_usual_rules(expression: str, expected: str) -> None:
    """Operators have Python's precedence, exact values stay exact, and results show no floating-point errors."""
    assert value_of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("sqrt(16)", "4"),
        ("sqrt(10**40)", str(10**20)),
        ("sqrt(2)**2", "2"),
        ("abs(-3)", "3"),
        ("round(2.5)", "3"),
        ("round(2.675, 2)", "2.68"),
        ("round(-1234, -2)", "-1200"),
        ("floor(-2.5)", "-3"),
        ("ceil(2.1)", "3"),
        ("min(3, 1, 2)", "1"),
        ("MAX(3, 1, 2)", "3"),
        ("ln(e)", "1"),
        ("log(8, 2)", "3"),
        ("log10(0.001)", "-3"),
        ("exp(0)", "1"),
        ("sin(pi)", "0"),
        ("cos(pi)", "-1"),
        ("tan(pi/4)", "1"),
    ],
)
def test_functions_return_the_expected_value(expression: str, expected: str) -> None:
    """Every function and constant has the value that people expect, and halves are rounded away from zero."""
    assert value_of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1,234 * 2", "2468"),
        ("1,234,567.5", "1234567.5"),
        ("max(1,234)", "234"),
        ("max((1,234), 5)", "1234"),
    ],
)
def test_a_comma_separates_thousands_or_arguments(expression: str, expected: str) -> None:
    """The text 1,234 is two numbers between the arguments of a function, and one number elsewhere."""
    assert value_of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "expected a number"),
        ("1 +", "expected a number"),
        ("1 2", "expected an operator"),
        ("(1", "expected '\\)'"),
        ("1)", "expected an operator"),
        ("1,23", "comma"),
        ("0,123", "comma"),
        ("__import__('os')", "not arithmetic"),
        ("foo(1)", "unknown name 'foo'"),
        ("sqrt", "expected '\\('"),
        ("round(1, 2, 3)", "takes 1 to 2 values"),
        ("1/0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("sqrt(-1)", "sqrt is not defined for -1"),
        ("log(0)", "log is not defined for 0"),
        ("log(5, 1)", "log is not defined for 5, 1"),
        ("tan(pi/2)", "tan is not defined"),
        ("(-8) ** (1/3)", "fractional power"),
        ("1e-400", "too close to zero"),
    ],
)
def test_a_wrong_expression_is_explained(expression: str, reason: str) -> None:
    """A wrong expression raises ToolError with the reason."""
    with pytest.raises(ToolError, match=reason):
        value_of(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "9**-9**9",
        "1e999999999",
        "1e-999999999",
        "2**13001",
        "*".join(["(9**4000)"] * 40),
        "exp(1000)",
        "10**400 * pi",
        "(" * 60 + "1" + ")" * 60,
        "-" * 400 + "1",
        "2**" * 160 + "2",
        "1+" * 300 + "1",
    ],
)
def test_abuse_is_refused_quickly(expression: str) -> None:
    """Huge powers, deep nesting and long expressions are refused before they use much time or memory."""
    started = time.perf_counter()
    with pytest.raises(ToolError, match=r"too large|nested|characters"):
        value_of(expression)
    assert time.perf_counter() - started < QUICK_S


def test_the_slowest_expressions_are_quick() -> None:
    """A sum of fractions with large denominators, the slowest allowed expression, is calculated within QUICK_S."""
    expression = "+".join(f"1/7**{4400 + number}" for number in range(45))
    started = time.perf_counter()
    evaluate(expression)
    assert time.perf_counter() - started < QUICK_S


async def test_the_calculator_answers_as_a_tool() -> None:
    """The tool calculates the expression in its arguments."""
    assert await Calculator().run({"expression": "17*23"}) == "391"


# The time


async def time_in(place: str | None) -> str:
    return await CurrentTime(lambda: NOW).run({} if place is None else {"place": place})


async def test_the_time_is_utc_unless_a_place_is_named() -> None:
    """Without a place the tool returns the date and time in UTC."""
    assert await time_in(None) == "Tuesday 24 November 2026, 00:15:03 (UTC)"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("Asia/Tokyo", "Tuesday 24 November 2026, 09:15:03 (Asia/Tokyo, UTC+09:00)"),
        ("Tokyo", "Tuesday 24 November 2026, 09:15:03 (Asia/Tokyo, UTC+09:00)"),
        (" tokyo ", "Tuesday 24 November 2026, 09:15:03 (Asia/Tokyo, UTC+09:00)"),
        ("new york", "Monday 23 November 2026, 19:15:03 (America/New_York, UTC-05:00)"),
        ("San Francisco", "Monday 23 November 2026, 16:15:03 (America/Los_Angeles, UTC-08:00)"),
        ("São Paulo", "Monday 23 November 2026, 21:15:03 (America/Sao_Paulo, UTC-03:00)"),
        ("Paris, France", "Tuesday 24 November 2026, 01:15:03 (Europe/Paris, UTC+01:00)"),
        ("the UK", "Tuesday 24 November 2026, 00:15:03 (Europe/London, UTC+00:00)"),
        ("India", "Tuesday 24 November 2026, 05:45:03 (Asia/Kolkata, UTC+05:30)"),
        ("Port-au-Prince", "Monday 23 November 2026, 19:15:03 (America/Port-au-Prince, UTC-05:00)"),
        ("UTC+2", "Tuesday 24 November 2026, 02:15:03 (UTC+02:00)"),
        ("GMT-3:30", "Monday 23 November 2026, 20:45:03 (UTC-03:30)"),
    ],
)
async def test_places_are_found_by_the_names_people_use(place: str, expected: str) -> None:
    """IANA zones, cities, countries and offsets are found with any case, accents and separators."""
    assert await time_in(place) == expected


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("Atlantis", "no time zone is known for 'Atlantis'"),
        ("../../etc/passwd", "no time zone is known"),
        ("Eastern", "no time zone is known"),
        ("the USA", "several time zones; name a city, such as New York"),
        ("UTC+15", "offsets go up to 14"),
    ],
)
async def test_an_ambiguous_place_is_refused_with_advice(place: str, reason: str) -> None:
    """For an unknown place or a country with several time zones, ToolError says which names are possible."""
    with pytest.raises(ToolError, match=reason):
        await time_in(place)


async def test_every_place_in_the_table_has_a_zone() -> None:
    """The time zone of every place in the table exists."""
    for place in current_time._PLACES:
        assert "2026" in await time_in(place), place


@pytest.fixture
def no_system_zones() -> Iterator[None]:
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()
    current_time._zones_by_key.cache_clear()
    yield
    zoneinfo.reset_tzpath()
    zoneinfo.ZoneInfo.clear_cache()
    current_time._zones_by_key.cache_clear()


@pytest.mark.usefixtures("no_system_zones")
async def test_zones_are_known_without_a_system_database() -> None:
    """On a machine without a time zone database the tzdata package is used."""
    assert "09:15:03" in await time_in("Tokyo")


# Text statistics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The quick fox. The 3.14 don't!\nlast",
            (
                "7 words, 35 characters (29 without spaces), 2 lines, 3 sentences; "
                "most frequent words: the (2), quick (1), fox (1), 3.14 (1), don't (1)"
            ),
        ),
        ("hello", "1 word, 5 characters (5 without spaces), 1 line, 1 sentence; most frequent words: hello (1)"),
        ("", "0 words, 0 characters (0 without spaces), 0 lines, 0 sentences"),
        ("?!", "0 words, 2 characters (2 without spaces), 1 line, 0 sentences"),
        (
            'He said "no." Then...',
            (
                "4 words, 21 characters (18 without spaces), 1 line, 2 sentences; "
                "most frequent words: he (1), said (1), no (1), then (1)"
            ),
        ),
    ],
)
async def test_text_is_counted(text: str, expected: str) -> None:
    """Words, characters, lines, sentences and the most frequent words are counted, and a number is one word."""
    assert await TextStatistics().run({"text": text}) == expected


async def test_a_long_run_of_marks_is_counted_quickly() -> None:
    """A text that is built to make the sentence pattern backtrack is counted as quickly as other texts."""
    started = time.perf_counter()
    await TextStatistics().run({"text": "." * 199_999 + "x"})
    assert time.perf_counter() - started < QUICK_S


async def test_text_over_the_limit_is_refused() -> None:
    """A text that would block the event loop for too long raises ToolError with the limit."""
    with pytest.raises(ToolError, match="at most 200000"):
        await TextStatistics().run({"text": "a" * 200_001})


# The toolbox


class Echo:
    """A tool that returns its text, or does what the test chooses."""

    name = "echo"
    description = "Returns the text."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "times": {"type": "integer"},
            "factor": {"type": ["number", "null"]},
            "style": {"enum": ["loud", "quiet"]},
        },
        "required": ["text"],
        "additionalProperties": False,
    }

    def __init__(self, behaviour: object = None) -> None:
        self._behaviour = behaviour
        self.started = asyncio.Event()

    async def run(self, arguments: dict[str, Any]) -> Any:
        self.started.set()
        if isinstance(self._behaviour, BaseException):
            raise self._behaviour
        if self._behaviour is Ellipsis:
            await asyncio.get_running_loop().create_future()
        return arguments["text"] if self._behaviour is None else self._behaviour


def toolbox(behaviour: object = None, timeout_s: float = 10) -> Toolbox:
    return Toolbox([Echo(behaviour)], timeout_s)


async def test_a_call_returns_the_tools_text_and_its_duration() -> None:
    """The outcome of a successful call has the tool's text and the duration in seconds."""
    outcome = await toolbox().call("echo", '{"text": "hi", "times": 2, "factor": null, "style": "loud"}')
    assert (outcome.tool, outcome.content, outcome.success) == ("echo", "hi", True)
    assert 0 <= outcome.latency_s < QUICK_S


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["hi"]', "must be one JSON object, not list"),
        ("", "text is required"),
        ('{"text": "hi", "volume": 3, "times": "two"}', "volume is unknown (known: text, times, factor, style)"),
        ('{"text": 3}', "text must be string, not integer"),
        ('{"text": "hi", "times": true}', "times must be integer, not boolean"),
        ('{"text": "hi", "times": 1.5}', "times must be integer, not number"),
        ('{"text": "hi", "factor": "2"}', "factor must be number or null, not string"),
        ('{"text": "hi", "style": "odd"}', 'style must be one of ["loud","quiet"]'),
    ],
)
async def test_wrong_arguments_never_reach_the_tool(arguments: str, reason: str) -> None:
    """If the arguments are no JSON object or violate the schema, the tool does not run and the outcome says why."""
    outcome = await toolbox(RuntimeError("must not run")).call("echo", arguments)
    assert not outcome.success
    assert reason in outcome.content


async def test_all_wrong_arguments_are_reported_at_once() -> None:
    """One outcome lists all wrong arguments, so that the model can correct all of them in its next call."""
    outcome = await toolbox().call("echo", '{"times": "two", "volume": 3}')
    assert outcome.content.count(";") == 2


async def test_an_unknown_tool_is_answered_with_the_known_ones() -> None:
    """The outcome of a call of an unknown tool lists the known tools."""
    outcome = await toolbox().call("telepathy", "{}")
    assert not outcome.success
    assert outcome.content == "there is no tool called 'telepathy'; the tools are: echo"


async def test_a_tools_own_error_is_passed_on_as_it_is() -> None:
    """The message of a ToolError is the content of the failed outcome."""
    outcome = await toolbox(ToolError("ask for less")).call("echo", '{"text": ""}')
    assert (outcome.success, outcome.content) == (False, "ask for less")


@pytest.mark.parametrize("fault", [KeyError("x"), TimeoutError("its own"), ExceptionGroup("two", [ValueError("y")])])
async def test_any_exception_of_a_tool_is_a_failed_outcome(fault: Exception) -> None:
    """Any exception of a tool, also its own TimeoutError, becomes a failed outcome with the exception's name."""
    outcome = await toolbox(fault).call("echo", '{"text": ""}')
    assert not outcome.success
    assert outcome.content.startswith(f"echo failed: {type(fault).__name__}")


async def test_a_tool_that_takes_too_long_is_stopped() -> None:
    """A call is cancelled at its time limit, and the outcome names the limit."""
    outcome = await toolbox(..., timeout_s=0.01).call("echo", '{"text": ""}')
    assert (outcome.success, outcome.content) == (False, "echo took longer than 0.01 s and was stopped")


@pytest.mark.parametrize(
    ("result", "content"),
    [(42, "42"), ({"ok": True, 1: {2}}, '{"ok":true,"1":[2]}'), ([Decimal("1.5")], '["1.5"]')],
)
async def test_a_result_that_is_not_text_becomes_json(result: object, content: str) -> None:
    """If a tool returns a value that is no text, the model reads it as JSON."""
    outcome = await toolbox(result).call("echo", '{"text": ""}')
    assert (outcome.success, outcome.content) == (True, content)


async def test_a_result_that_cannot_be_json_is_a_failure() -> None:
    """If a tool returns an object that cannot be JSON, the outcome is a failure that names its type."""
    outcome = await toolbox(object()).call("echo", '{"text": ""}')
    assert not outcome.success
    assert outcome.content.startswith("echo returned object, which cannot be written as JSON")


async def test_a_long_result_is_cut_with_a_note() -> None:
    """A result that is too long keeps its beginning and gets a note with its full length."""
    outcome = await toolbox("x" * (MAX_RESULT_CHARS + 5)).call("echo", '{"text": ""}')
    assert outcome.content == "x" * MAX_RESULT_CHARS + "\n[cut: 20000 of 20005 characters shown]"


async def test_cancelling_a_call_cancels_it() -> None:
    """A cancelled call raises CancelledError and has no outcome."""
    tool = Echo(...)
    task = asyncio.create_task(Toolbox([tool], 10).call("echo", '{"text": ""}'))
    await tool.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_two_tools_of_one_name_are_refused() -> None:
    """A toolbox with two tools of the same name cannot be created."""
    with pytest.raises(ValueError, match="same name"):
        Toolbox([Echo(), Echo()], 1)


def test_only_read_url_uses_the_network() -> None:
    """The default tools need no network, and read_url is added only on request."""
    offline = ["calculator", "current_time", "text_statistics"]
    assert [schema.name for schema in Toolbox(default_tools(), 1).schemas()] == offline
    assert [schema.name for schema in Toolbox(default_tools(read_url=True), 1).schemas()] == [*offline, "read_url"]


def test_every_schema_refuses_unknown_arguments() -> None:
    """The parameters of each built-in tool are an object with described properties and without additional ones."""
    for schema in Toolbox(default_tools(read_url=True), 1).schemas():
        assert schema.parameters["type"] == "object"
        assert schema.parameters["additionalProperties"] is False
        assert all("description" in parameter for parameter in schema.parameters["properties"].values())
