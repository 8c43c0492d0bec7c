"""The runs of sub-agents."""

import gc
import threading
from typing import Any

import pytest

from agentstream import AgentResult, ChildRun, Run
from agentstream.agents.sub_agents import MAX_DEPTH, MAX_NAME_CHARS
from agentstream.errors import InvalidAgentOutput, RunCancelled
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.telemetry.masking import register_secrets
from agentstream.testing import run_agent
from tests.helpers import RecordingSink

TOOL = {"type": "function", "function": {"name": "f"}}
FIELDS = {
    "model": "m",
    "messages": [{"role": "user", "content": "Compare them."}],
    "tools": [TOOL],
    "response_format": {"type": "json_object"},
    "temperature": 0.5,
}


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def run(sink: RecordingSink) -> Run:
    return Run("chatcmpl-1", ChatCompletionRequest.model_validate(FIELDS), sink)


def test_events_carry_the_path(run: Run, sink: RecordingSink) -> None:
    """Events of a child have the path of names beside their fields, those of its child a longer one, the run's none."""
    researcher = run.child("researcher")
    summariser = researcher.child("summariser")
    data = {"tool": "search", "arguments": "{}"}
    for each in (run, researcher, summariser):
        each.emit("tool_call_start", data)
        each.emit("progress", {})
    assert sink.facts == [
        ("tool_call_start", data),
        ("progress", {}),
        ("tool_call_start", {**data, "agent_path": ["researcher"]}),
        ("progress", {"agent_path": ["researcher"]}),
        ("tool_call_start", {**data, "agent_path": ["researcher", "summariser"]}),
        ("progress", {"agent_path": ["researcher", "summariser"]}),
    ]
    assert data == {"tool": "search", "arguments": "{}"}
    assert (run.agent_path, researcher.agent_path) == ((), ("researcher",))
    assert summariser.agent_path == ("researcher", "summariser")


def test_text_and_reasoning_become_events(run: Run, sink: RecordingSink) -> None:
    """A child's text and reasoning are events of their own types, and its text is there to be passed on."""
    child = run.child("researcher")
    child.write("It is ")
    child.write_reasoning("Hm.")
    child.write("")
    child.write("noon.")
    assert sink.facts == [
        ("agent_text", {"agent_path": ["researcher"], "text": "It is "}),
        ("agent_reasoning", {"agent_path": ["researcher"], "text": "Hm."}),
        ("agent_text", {"agent_path": ["researcher"], "text": "noon."}),
    ]
    run.write(child.text)
    assert sink.facts[-1] == ("text", "It is noon.")


def test_a_child_has_the_parents_request_and_id(run: Run) -> None:
    """The id, the request and the caller of a child are its parent's, and nothing is restored to it."""
    child = run.child("a").child("b")
    assert (child.id, child.request, child.caller) == (run.id, run.request, run.caller)
    assert child.restored is None


@pytest.mark.parametrize(
    "messages", ["Find it.", [{"role": "user", "content": "Find it."}], ({"role": "user", "content": "Find it."},)]
)
def test_a_child_may_get_its_own_messages(run: Run, messages: Any) -> None:
    """With messages a child has its own request, without the client's tools and answer format; the parent's stays."""
    child = run.child("researcher", messages)
    assert [message.text for message in child.request.messages] == ["Find it."]
    assert (child.request.tools, child.request.response_format) == (None, None)
    assert (child.request.model, child.request.temperature) == ("m", 0.5)
    assert [message.text for message in run.request.messages] == ["Compare them."]
    assert run.request.tools


@pytest.mark.parametrize("messages", [7, [7], [{"role": "nobody", "content": "x"}], [{"role": "user"}], b"x"])
def test_malformed_messages_are_refused(run: Run, messages: Any) -> None:
    """Messages that a request could not have are an error that names the parameter."""
    with pytest.raises(InvalidAgentOutput, match=r"run\.child: messages must be a text or a list of messages"):
        run.child("researcher", messages)


@pytest.mark.parametrize("name", ["", " ", "\t", "a\nb", "a\0", "\x85", "\u2028", "\ud83d", "x" * 65, None, 7, b"x"])
def test_wrong_names_are_refused(run: Run, name: Any) -> None:
    """A name that is empty, too long, no text or has control characters is an error that shows the name."""
    with pytest.raises(InvalidAgentOutput, match=rf"run\.child: the name .* 1 to {MAX_NAME_CHARS} characters"):
        run.child(name)


@pytest.mark.parametrize("name", ["x" * 64, "研究员", "web search", "🧑‍🔬", "a/b"])
def test_other_names_are_accepted(run: Run, name: str) -> None:
    """Any other text of up to 64 characters is a name."""
    assert run.child(name).agent_path == (name,)


def test_the_depth_is_bounded(run: Run) -> None:
    """A sub-agent that is too deep is an error that shows its path, so recursion cannot make long paths."""
    for level in range(MAX_DEPTH):
        run = run.child(f"level{level}")
    with pytest.raises(InvalidAgentOutput, match=r"level0/level1/.* is 9 sub-agents deep; the limit is 8"):
        run.child("more")


def test_what_belongs_to_the_answer_is_refused(run: Run, sink: RecordingSink) -> None:
    """A child makes no checkpoint and calls no tool of the client; the errors say who can."""
    child = run.child("researcher")
    with pytest.raises(
        InvalidAgentOutput, match=r"'researcher' has no state of its own. Make checkpoints with the run"
    ):
        child.checkpoint({})
    with pytest.raises(InvalidAgentOutput, match=r"'researcher' cannot call the client's tool 'f'"):
        child.write_tool_call("f", {"a": 1})
    with pytest.raises(InvalidAgentOutput, match="belongs to agentstream"):
        child.emit("run_started", {})
    assert sink.facts == []


def test_a_cancel_reaches_all_children(run: Run, sink: RecordingSink) -> None:
    """After a cancel of the run, children of all depths are cancelled, also those that are made later."""
    child = run.child("a")
    grandchild = run.child("b").child("c")  # its parent is not referenced any more
    gc.collect()
    assert not grandchild.cancelled
    run.cancel()
    late = child.child("late")
    for each in (child, grandchild, late):
        assert each.cancelled
        with pytest.raises(RunCancelled):
            each.emit("progress", {})
        with pytest.raises(RunCancelled):
            each.write("text")
    assert sink.facts == []


def test_half_characters_of_children_are_kept_apart(run: Run, sink: RecordingSink) -> None:
    """A character that is cut in two is joined within one child, and a half that stays is sent when the run ends."""
    first, second = run.child("same"), run.child("same")
    first.write("\ud83d")
    second.write("b\ud83d")
    run.write("c")
    first.write("\ude42")
    run.cancel()
    path = {"agent_path": ["same"]}
    assert sink.facts == [
        ("agent_text", {**path, "text": "b"}),
        ("text", "c"),
        ("agent_text", {**path, "text": "\U0001f642"}),
        ("agent_text", {**path, "text": "\ufffd"}),
    ]


def test_secrets_are_masked(run: Run, sink: RecordingSink) -> None:
    """Known secrets in a child's name, text and events are masked."""
    register_secrets(["sk-very-secret"])
    child = run.child("agent of sk-very-secret")
    child.write("key sk-very-secret")
    child.emit("progress", {"key": "sk-very-secret"})
    assert "sk-very" not in repr(sink.facts)


def test_children_that_are_done_are_released(run: Run) -> None:
    """A run keeps no child that its agent does not use any more, however many there were."""
    kept = run.child("kept")
    for number in range(1000):
        run.child(f"helper {number}").write("text")
    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, ChildRun) and each.id == run.id] == [kept]


def test_threads_may_have_children(run: Run, sink: RecordingSink) -> None:
    """Threads may make children and write with them at the same time; every event has its own path."""

    def work(number: int) -> None:
        child = run.child(f"worker {number}")
        for _ in range(100):
            child.emit("progress", {"number": number})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sink.facts) == 400
    assert all(data["agent_path"] == [f"worker {data['number']}"] for _, data in sink.facts)


async def researcher(run: Run) -> AgentResult:
    """An agent that is also used as a sub-agent."""
    run.emit("tool_call_start", {"tool": "search", "arguments": {"for": run.request.messages[-1].text}})
    await run.drain()
    run.emit("tool_call_end", {"tool": "search", "success": True, "result": "noon"})
    run.write("It is noon.")
    return AgentResult("")


async def manager(run: Run) -> AgentResult:
    """Ask a sub-agent, and pass its text on."""
    run.write("Asking.")
    child = run.child("researcher", "What is the time?")
    await researcher(child)
    run.emit("progress", {"done": 1})
    run.write(child.text)
    return AgentResult("")


def test_the_outcome_of_a_test_shows_the_children() -> None:
    """In ``agentstream.testing`` the events of sub-agents have their path, and their text is not in the answer."""
    outcome = run_agent(manager, "hi")
    assert outcome.text == "Asking.\n\nIt is noon."
    assert [(event.type, event.data.get("agent_path")) for event in outcome.events] == [
        ("tool_call_start", ["researcher"]),
        ("tool_call_end", ["researcher"]),
        ("agent_text", ["researcher"]),
        ("progress", None),
    ]
    assert outcome.events_of("tool_call_start")[0]["arguments"] == {"for": "What is the time?"}
    assert outcome.events_of("agent_text") == [{"agent_path": ["researcher"], "text": "It is noon."}]
