"""Killing and restoring a resumable agent at each place: right agents pass, and wrong ones fail with a clear error."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import agentstream
from agentstream import AgentResult, Restored, Run
from agentstream.errors import InvalidAgentOutput
from agentstream.testing import run_agent, run_agent_async, run_agent_with_kills, run_agent_with_kills_async

WORDS = ["one", "two", "three", "four", "five"]
SPELLED = "".join(f"{word} " for word in WORDS)


def rest_after(run: Run) -> list[str]:
    """Return the words that the client has not seen; the state counts those before the checkpoint."""
    restored = run.restored or Restored(state=0)
    return WORDS[(restored.state or 0) + restored.text.count(" ") :]


@agentstream.resumable
async def on_loop(run: Run) -> AgentResult:
    for word in rest_after(run):
        run.write(f"{word} ")
        await asyncio.sleep(0)
        if word in {"two", "four"}:
            await run.checkpoint(WORDS.index(word) + 1)
    return AgentResult("")


@agentstream.resumable
def in_thread(run: Run) -> AgentResult:
    for word in rest_after(run):
        run.write(f"{word} ")
        time.sleep(0)
        if word in {"two", "four"}:
            run.checkpoint(WORDS.index(word) + 1)
    return AgentResult("")


@agentstream.resumable
async def async_words(run: Run) -> AsyncIterator[str]:
    for word in rest_after(run):
        yield f"{word} "
        if word in {"two", "four"}:
            await run.checkpoint(WORDS.index(word) + 1)


@agentstream.resumable
def words(run: Run) -> Iterator[str]:
    for word in rest_after(run):
        yield f"{word} "
        if word in {"two", "four"}:
            run.checkpoint(WORDS.index(word) + 1)


class Speller:
    """An object that is a resumable agent."""

    resumable = True

    async def __call__(self, run: Run) -> AgentResult:
        return await on_loop(run)


class Opened:
    """Starts an agent for each worker, and counts the starts."""

    def __init__(self) -> None:
        self.starts = 0

    def factory(self) -> Any:
        @asynccontextmanager
        async def lifespan() -> AsyncIterator[Any]:
            self.starts += 1
            yield on_loop

        return lifespan()


@pytest.mark.parametrize(
    "agent",
    [on_loop, in_thread, async_words, words, Speller(), Opened().factory],
    ids=["async", "plain", "async generator", "generator", "object", "factory"],
)
def test_an_agent_of_every_shape_is_killed_everywhere(agent: Any) -> None:
    """Each shape of agent is killed after each of its events and again and again, and its answer is whole."""
    runs = run_agent_with_kills(agent, "spell")
    assert [run.outcome.text for run in runs] == [SPELLED] * 8  # 5 words, 2 checkpoints, and one run of many kills
    assert [run.killed_after[0] for run in runs[:3]] == ["the text 'one '", "the text 'two '", "checkpoint 1"]
    assert runs[2].restored == [Restored(state=2)]
    assert runs[3].restored == [Restored(state=2, text="three ")]
    assert len(runs[7].killed_after) == len(runs[7].restored) > 2


def test_kills_at_checkpoints_only() -> None:
    """With at="every checkpoint", the worker is killed after checkpoints and nowhere else."""
    runs = run_agent_with_kills(in_thread, "spell", at="every checkpoint")
    assert [run.killed_after for run in runs] == [["checkpoint 1"], ["checkpoint 2"], ["checkpoint 1"]]
    assert [run.restored for run in runs[:2]] == [[Restored(state=2)], [Restored(state=4)]]


def test_an_agent_with_a_start_is_started_for_each_attempt() -> None:
    """A factory is called for each attempt, as in another worker, so that nothing in its memory survives."""
    opened = Opened()
    runs = run_agent_with_kills(opened.factory, "spell", at="every checkpoint")
    whole_runs = 2  # the first one, and the one that no kill reached; each search for kills ends so
    assert opened.starts >= whole_runs + sum(len(run.killed_after) + 1 for run in runs)


async def test_an_async_test_awaits_the_kills() -> None:
    """In an async test, run_agent_with_kills_async uses the loop of the test."""
    assert len(await run_agent_with_kills_async(async_words, "spell")) == 8
    with pytest.raises(RuntimeError, match=r"await run_agent_with_kills_async\(\.\.\.\)"):
        run_agent_with_kills(async_words, "spell")


# -- agents that do it wrong ------------------------------------------------------------------------


@agentstream.resumable
async def ignores_text(run: Run) -> AgentResult:
    for word in WORDS[(run.restored.state or 0) if run.restored else 0 :]:
        run.write(f"{word} ")
        if word == "two":
            await run.checkpoint(2)
    return AgentResult("")


@agentstream.resumable
def skips_a_word(run: Run) -> Iterator[str]:
    rest = rest_after(run)
    yield from (f"{word} " for word in (rest[1:] if run.restored else rest))


@agentstream.resumable
def says_hello_again(run: Run) -> Iterator[str]:
    if run.restored:
        yield "As I said: "
    yield from (f"{word} " for word in rest_after(run))


@agentstream.resumable
def forgets_older_text(run: Run) -> Iterator[str]:
    """Continue rightly once, but store in its checkpoint only what this attempt itself wrote."""
    rest = rest_after(run)
    for number, word in enumerate(rest, 1):
        yield f"{word} "
        run.checkpoint(number)


@agentstream.resumable
async def thinks_again(run: Run) -> AgentResult:
    run.write_reasoning("hm ")
    run.write("so")
    return AgentResult("")


@agentstream.resumable
async def calls_the_client_again(run: Run) -> AgentResult:
    run.write_tool_call("get_weather", {"city": "Oslo"})
    return AgentResult("")


@agentstream.resumable
async def changes_its_reason(run: Run) -> AgentResult:
    if run.restored is None:
        run.write("so")
    return AgentResult("", finish_reason="length" if run.restored else "stop")


@pytest.mark.parametrize(
    ("agent", "error"),
    [
        (ignores_text, "killed after the text 'one ', the text 'one ' is shown twice\n"),
        (skips_a_word, "killed after the text 'one ', the text 'two ' is lost\n"),
        (says_hello_again, "killed after the text 'one ', the text 'As I said: ' is shown too much\n"),
        (thinks_again, "killed after the reasoning 'hm ', the "),
        (
            calls_the_client_again,
            'killed after a part of the call \'{"city":"Oslo"}\', the calls of the client\'s tools',
        ),
        (changes_its_reason, "the finish reason differ: without a kill stop, with the kill length"),
        (forgets_older_text, "killed after the text 'one ', then after checkpoint 1"),
    ],
    ids=["ignores text", "skips", "greets again", "thinks again", "calls again", "other reason", "forgets"],
)
def test_a_wrong_agent_fails_with_the_place_and_the_text(agent: Any, error: str) -> None:
    """An agent that repeats or loses text, reasoning or calls after a kill fails; the error shows where and what."""
    with pytest.raises(AssertionError) as failed:
        run_agent_with_kills(agent, "spell")
    assert error in str(failed.value)


def test_the_error_shows_both_answers_and_what_was_restored() -> None:
    """The error of doubled text has the whole answer, the answer with the kill, and what the agent got back."""
    with pytest.raises(AssertionError) as failed:
        run_agent_with_kills(ignores_text, "spell")
    assert str(failed.value).splitlines()[1:] == [
        f"  without a kill: {SPELLED!r}",
        f"  with the kill:  'one ' and then {SPELLED!r}",
        "  run.restored:   state None, text 'one ', 0 events",
        "Clients keep what they have seen. Continue after run.restored.text.",
    ]


def test_an_agent_that_cannot_continue_is_refused() -> None:
    """An agent that is not resumable, or sends nothing and stores nothing, cannot pass by accident."""

    async def plain(run: Run) -> AgentResult:
        run.write("x")
        return AgentResult("")

    @agentstream.resumable
    async def silent(_run: Run) -> AgentResult:
        return AgentResult("done")

    with pytest.raises(AssertionError, match=r"not resumable.*`agentstream\.resumable`"):
        run_agent_with_kills(plain, "x")
    with pytest.raises(AssertionError, match="sent no event"):
        run_agent_with_kills(silent, "x")
    with pytest.raises(AssertionError, match="made no checkpoint"):
        run_agent_with_kills(skips_a_word, "x", at="every checkpoint")
    with pytest.raises(ValueError, match='expected "every event"'):
        run_agent_with_kills(on_loop, "x", at="each event")  # type: ignore[arg-type]


def test_a_state_that_is_no_json_is_refused() -> None:
    """A checkpoint of a value that JSON cannot hold raises InvalidAgentOutput, which names the place in the state."""

    @agentstream.resumable
    async def stores_a_set(run: Run) -> AgentResult:
        await run.checkpoint({"seen": {1, 2}})
        return AgentResult("")

    with pytest.raises(InvalidAgentOutput, match=r"seen"):
        run_agent_with_kills(stores_a_set, "x")


def test_an_error_of_the_second_attempt_says_where_the_first_was_killed() -> None:
    """The exception of an agent that cannot read its state has a note with the kill and what was restored."""

    @agentstream.resumable
    async def reads_it_wrong(run: Run) -> AgentResult:
        if run.restored is not None:
            run.write(run.restored.state["number"])
        await run.checkpoint({"page": 1})
        return AgentResult("")

    with pytest.raises(KeyError, match="number") as failed:
        run_agent_with_kills(reads_it_wrong, "x")
    (note,) = failed.value.__notes__
    assert note.startswith("The worker was killed after checkpoint 1; then run.restored was Restored(state={'page': 1}")


# -- tools ------------------------------------------------------------------------------------------


def with_tool(*, look: bool) -> Callable[[Run], Any]:
    """Return an agent that runs a tool. If the tool was interrupted, ``look`` says that it does not run it again."""

    @agentstream.resumable
    async def agent(run: Run) -> AgentResult:
        seen = run.restored.events if run.restored else ()
        ended = [event.data["result"] for event in seen if event.type == "tool_call_end"]
        began = any(event.type == "tool_call_start" for event in seen)
        result = ended[0] if ended else "unknown"
        if not (ended or (began and look)):
            run.emit("tool_call_start", {"tool": "pay", "arguments": {"b": 1, "a": 2}})
            await run.drain()
            result = "paid"
        if not ended:
            run.emit("tool_call_end", {"tool": "pay", "success": True, "latency": 0.1, "result": result})
        if not (run.restored and run.restored.text):
            run.write(f"result: {result}")
        return AgentResult("")

    return agent


def test_an_interrupted_tool_may_change_the_answer() -> None:
    """An agent that reports an interrupted tool as unknown passes, although its answer then differs."""
    runs = run_agent_with_kills(with_tool(look=True), "x")
    assert runs[0].killed_after == ["tool_call_start of 'pay'"]
    assert runs[0].outcome.text == "result: unknown"
    assert runs[1].outcome.text == "result: paid"


def test_a_tool_that_runs_twice_fails() -> None:
    """An agent that runs a tool again fails, with the name and the arguments, unless the tool is idempotent."""
    with pytest.raises(AssertionError) as failed:
        run_agent_with_kills(with_tool(look=False), "x")
    assert "killed after tool_call_start of 'pay', the agent runs the tool 'pay' again" in str(failed.value)
    assert '{"a":2,"b":1}' in str(failed.value)
    assert "it ran when the worker was killed" in str(failed.value)
    runs = run_agent_with_kills(with_tool(look=False), "x", idempotent_tools=["pay"])
    assert runs[0].outcome.text == "result: paid"


def test_a_tool_that_had_ended_does_not_run_again() -> None:
    """An agent that forgets the result of a tool and runs it again fails at the kill after the end of the tool."""

    @agentstream.resumable
    async def forgets_the_result(run: Run) -> AgentResult:
        if not run.restored or run.restored.events[-1].type == "tool_call_end":
            run.emit("tool_call_start", {"tool": "pay", "arguments": {}})
            run.emit("tool_call_end", {"tool": "pay", "success": True, "latency": 0.1, "result": "paid"})
        return AgentResult("paid")

    with pytest.raises(AssertionError, match=r"killed after tool_call_end of 'pay', .* again \(it had ended before"):
        run_agent_with_kills(forgets_the_result, "x")


def test_a_tool_that_is_forgotten_fails() -> None:
    """An agent that does not run a tool any more after a kill before the tool fails."""

    @agentstream.resumable
    async def forgets(run: Run) -> AgentResult:
        if run.restored is None:
            run.write("I pay. ")
            run.emit("tool_call_start", {"tool": "pay", "arguments": {}})
            run.emit("tool_call_end", {"tool": "pay", "success": True, "latency": 0.1, "result": "paid"})
        return AgentResult("")

    with pytest.raises(AssertionError, match=r"killed after the text 'I pay\. ', the agent never runs the tool 'pay'"):
        run_agent_with_kills(forgets, "x")


def test_half_a_call_of_the_clients_tool_is_continued() -> None:
    """The arguments of a client's tool are whole if the agent continues the restored call."""

    @agentstream.resumable
    async def asks(run: Run) -> AgentResult:
        arguments = ['{"city"', ': "O', 'slo"}']
        if run.restored and run.restored.tool_calls:
            (call,) = run.restored.tool_calls
            rest = "".join(arguments)[len(call.arguments) :]
            call.write(rest)
        else:
            writer = run.write_tool_call("get_weather", id="a")
            for piece in arguments:
                writer.write(piece)
        return AgentResult("")

    runs = run_agent_with_kills(asks, "x")
    assert {run.outcome.tool_calls[0].arguments for run in runs} == {'{"city": "Oslo"}'}
    assert all(run.outcome.finish_reason == "tool_calls" for run in runs)


# -- how the kill works -----------------------------------------------------------------------------


def test_nothing_after_the_kill_counts() -> None:
    """An agent that catches every error and writes on after the kill changes nothing."""

    @agentstream.resumable
    async def stubborn(run: Run) -> AgentResult:
        for word in rest_after(run):
            with contextlib.suppress(BaseException):  # as some frameworks do
                run.write(f"{word} ")
        return AgentResult("")

    assert {run.outcome.text for run in run_agent_with_kills(stubborn, "x")} == {SPELLED}


def test_usage_adds_up_over_the_attempts() -> None:
    """The usage of a run counts the text of all its attempts, also that before the checkpoint."""
    usage = run_agent(on_loop, "x").usage
    assert usage.completion_tokens > 1
    assert [run.outcome.usage for run in run_agent_with_kills(on_loop, "x")] == [usage] * 8


def test_one_attempt_is_restored() -> None:
    """``restored`` becomes run.restored, and the outcome begins with it, as at the client."""
    outcome = run_agent(on_loop, "spell", restored=Restored(state=2, text="three "))
    assert outcome.pieces == ["three ", "four ", "five "]
    assert outcome.text == "three four five "
    assert run_agent(words, "spell", restored=Restored(state=4)).text == "five "


async def test_a_restored_attempt_needs_a_resumable_agent_and_json() -> None:
    """``restored`` is refused for an agent that no worker would restore, and its state must be JSON."""

    async def plain(_run: Run) -> AgentResult:
        return AgentResult("")

    with pytest.raises(ValueError, match="not resumable"):
        await run_agent_async(plain, "x", restored=Restored(text="a"))
    with pytest.raises(InvalidAgentOutput, match="not JSON"):
        await run_agent_async(on_loop, "x", restored=Restored(state={1}))
