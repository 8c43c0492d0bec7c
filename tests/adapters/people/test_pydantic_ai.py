"""pydantic-ai's deferred tools as questions to people."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    CallDeferred,
    DeferredToolRequests,
    DeferredToolResults,
    RunContext,
)
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from agentstream.adapters.pydantic_ai import PydanticAIAgent
from agentstream.adapters.resuming import UNKNOWN_OUTCOME
from tests.adapters.people.parked_runs import TIMED_OUT, ParkedRun

pytestmark = pytest.mark.usefixtures("collected")

Turn = list[tuple[str, str]]  # the names and ids of the calls of one answer


class Mailer:
    """An agent with tools that need approval, whose model makes these calls and then reports their results."""

    def __init__(self, *turns: Turn, **options: Any) -> None:
        self.ran: list[str] = []
        self.asked_model = 0

        async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
            self.asked_model += 1
            turn = sum(message.kind == "response" for message in messages)
            if turn < len(turns):
                for index, (name, call_id) in enumerate(turns[turn]):
                    yield {index: DeltaToolCall(name, f'{{"to": "{call_id}"}}', tool_call_id=call_id)}
            else:
                parts = [part for message in messages for part in message.parts]
                yield "; ".join(str(part.content) for part in parts if part.part_kind == "tool-return")

        agent = Agent(FunctionModel(stream_function=stream), **options)

        @agent.tool_plain
        def weather(to: str) -> str:
            self.ran.append("weather")
            return f"sunny for {to}"

        @agent.tool_plain(requires_approval=True)
        def send_mail(to: str) -> str:
            self.ran.append("send_mail")
            return f"sent to {to}"

        @agent.tool
        def delete(context: RunContext[None], to: str) -> str:
            if not context.tool_call_approved:
                raise ApprovalRequired
            self.ran.append("delete")
            return f"deleted {to}"

        @agent.tool_plain
        def phone(to: str) -> str:
            raise CallDeferred(metadata={"number": to})

        self.run = ParkedRun(PydanticAIAgent(agent))


async def test_calls_are_asked_at_once_and_the_others_are_not_repeated() -> None:
    """Calls that need approval are asked together; a call beside them runs once, and each call has its own decision."""
    mailer = Mailer([("weather", "w"), ("send_mail", "a"), ("send_mail", "b")])
    questions = await mailer.run.attempt()
    assert [question["id"] for question in questions] == ["a", "b"]
    assert mailer.ran == ["weather"]
    await mailer.run.attempt({"a": {"approve": False, "reason": "too late"}, "b": {"approve": True}})
    assert mailer.ran == ["weather", "send_mail"]
    assert "too late" in mailer.run.answer
    assert "sent to b" in mailer.run.answer
    assert mailer.asked_model == 2
    events = mailer.run.tools()
    assert sorted(events) == sorted(
        [("start", "weather", None), ("end", "weather", True)]
        + [("start", "send_mail", None), ("waiting", "send_mail", None)] * 2
        + [("end", "send_mail", True), ("end", "send_mail", False)]
    )


async def test_a_tool_that_asks_while_it_runs() -> None:
    """A tool that raises ApprovalRequired runs again when it is approved; its call starts once."""
    mailer = Mailer([("delete", "x")])
    (question,) = await mailer.run.attempt()
    assert (question["kind"], question["payload"]) == ("approval", {"tool": "delete", "arguments": '{"to": "x"}'})
    await mailer.run.attempt({"x": {"approve": True}})
    assert mailer.run.tools() == [("start", "delete", None), ("waiting", "delete", None), ("end", "delete", True)]
    assert mailer.run.answer == "deleted x"


async def test_people_give_the_result_of_a_deferred_tool() -> None:
    """A tool that raises CallDeferred asks for its result; the question has its arguments and metadata."""
    mailer = Mailer([("phone", "p1"), ("phone", "p2")])
    first, second = await mailer.run.attempt()
    assert (first["kind"], first["payload"]) == (
        "deferred_tool",
        {"tool": "phone", "arguments": '{"to":"p1"}', "metadata": {"number": "p1"}},
    )
    await mailer.run.attempt({first["id"]: "hello", second["id"]: {"kind": "tool-failed", "said": 1}})
    assert mailer.run.answer == "hello; {'kind': 'tool-failed', 'said': 1}"


async def test_nobody_answers() -> None:
    """If nobody answers in time, the model reads so, for an approval and for a result."""
    mailer = Mailer([("send_mail", "a"), ("phone", "p")])
    await mailer.run.attempt()
    await mailer.run.attempt({"a": TIMED_OUT, "p": TIMED_OUT})
    assert mailer.ran == []
    assert mailer.run.answer.count("nobody answered in time") == 2


@pytest.mark.parametrize("call_id", ["a", "7 b"])
async def test_an_id_that_a_model_uses_again_is_asked_again(call_id: str) -> None:
    """The answer to a call is not the answer to a later call with the same id."""
    mailer = Mailer([("send_mail", call_id)], [("send_mail", call_id)])
    (first,) = await mailer.run.attempt()
    (second,) = await mailer.run.attempt({first["id"]: {"approve": True}})
    assert mailer.ran == ["send_mail"]
    assert second["id"] != first["id"]
    assert await mailer.run.attempt({second["id"]: {"approve": False}}) == []
    assert mailer.ran == ["send_mail"]


async def test_an_approved_tool_is_not_repeated_after_a_loss() -> None:
    """If the worker is lost after the answer, the approved tool does not run again: the model reads what is known."""
    mailer = Mailer([("weather", "w"), ("send_mail", "a")])
    await mailer.run.attempt()
    await mailer.run.attempt({"a": {"approve": True}}, lost_after="tool_call_end")
    assert mailer.ran == ["weather", "send_mail"]
    stored = list(mailer.run.facts)
    await mailer.run.attempt()
    assert mailer.run.answer == "sunny for w; sent to a"

    mailer.run.facts = [fact for fact in stored if fact[0] != "tool_call_end" or fact[1]["tool"] == "weather"]
    await mailer.run.attempt()
    assert mailer.run.answer == f"sunny for w; {UNKNOWN_OUTCOME}"
    assert mailer.ran == ["weather", "send_mail"]


async def test_an_answer_after_the_tools_is_not_written_twice() -> None:
    """If the worker is lost in the answer after an approval, the next attempt does not repeat the text."""
    mailer = Mailer([("send_mail", "a")])
    await mailer.run.attempt()
    await mailer.run.attempt({"a": {"approve": True}}, lost_after="text")
    await mailer.run.attempt()
    assert mailer.run.answer.startswith("sent to a")
    assert mailer.ran == ["send_mail"]


async def test_an_output_of_deferred_requests_asks_too() -> None:
    """An agent whose output may be DeferredToolRequests, and an agent in one attempt, work likewise."""
    mailer = Mailer([("send_mail", "a")], output_type=[str, DeferredToolRequests])
    assert await mailer.run.attempt(in_place={"approve": True}) == []
    assert mailer.run.answer == "sent to a"


async def test_a_handler_of_the_agent_is_asked_first() -> None:
    """A call that the agent's own handler decides is no question; people are asked about the others."""

    def handler(_: RunContext[None], requests: DeferredToolRequests) -> DeferredToolResults:
        return DeferredToolResults(
            approvals={call.tool_call_id: True for call in requests.approvals if call.tool_name == "delete"}
        )

    mailer = Mailer([("delete", "d")], capabilities=[HandleDeferredToolCalls(handler=handler)])
    assert await mailer.run.attempt() == []
    assert mailer.ran == ["delete"]
