"""Runs of real processes, and the spans that a collector receives from them."""

import asyncio
import json
import signal
from collections.abc import Callable

import pytest

from tests.helpers import TIMEOUT_S
from tests.telemetry.collector import ReceivedSpan
from tests.telemetry.conftest import CALLER, Deployment
from tests.telemetry.trace_tree import format_trace


def parents(spans: list[ReceivedSpan]) -> dict[str, set[str]]:
    """Return the names of each span's parents, under the name of its service and its own name."""
    by_id = {span.id: span for span in spans}
    found: dict[str, set[str]] = {}
    for span in spans:
        parent = by_id[span.parent].name if span.parent in by_id else span.parent
        found.setdefault(f"{span.process[0]}: {span.name}", set()).add(parent)
    return found


def named(spans: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    """Return the spans whose name begins with ``name``."""
    return [span for span in spans if span.name.startswith(name)]


async def test_a_run_is_one_trace_across_four_processes(deployment: Deployment) -> None:
    """Front end, worker, model server and tool server record a run as one tree that continues the caller's trace."""
    await deployment.frontend()
    await deployment.worker(**await deployment.model_and_tools())
    trace = CALLER.split("-")[1]
    _, sent = await deployment.stream("the weather, please", {"traceparent": CALLER, "tracestate": "caller=1"})
    assert "sunny" in sent
    queue = deployment.processes.queue
    post = "POST /v1/chat/completions"
    received = await deployment.collector.until(lambda spans: sum(span.trace == trace for span in spans) == 11)
    spans = [span for span in received if span.trace == trace]
    assert parents(spans) == {
        f"agentstream-frontend: {post}": {CALLER.split("-")[2]},
        f"agentstream-frontend: send {queue}": {post},
        f"agentstream-worker: process {queue}": {f"send {queue}"},
        "agentstream-worker: invoke_agent orchestrator": {f"process {queue}"},
        "agentstream-worker: chat m1": {"invoke_agent orchestrator"},
        "agentstream-worker: execute_tool forecast__weather": {"invoke_agent orchestrator"},
        "agentstream-worker: MCP send tools/call weather": {"execute_tool forecast__weather"},
        "tools-server: tools/call weather": {"MCP send tools/call weather"},
        f"model-server: {post}": {"chat m1"},
    }, "\n".join(format_trace(spans))
    assert len({span.process for span in spans}) == 4
    assert len({span.resource["service.instance.id"] for span in spans}) == 4
    kinds = {span.name.split()[0]: span.kind for span in spans if span.process[0].startswith("agentstream")}
    expected = {"POST": "server", "send": "producer", "process": "consumer", "invoke_agent": "internal"}
    assert kinds == expected | {"chat": "client", "execute_tool": "internal", "MCP": "client"}
    assert not any(span.failed for span in spans)
    assert all(span.begin_s <= span.end_s for span in spans)


async def test_spans_have_the_attributes_of_the_conventions(deployment: Deployment) -> None:
    """Spans have the attributes of the conventions, such as run id, usage and server address, but no content."""
    await deployment.frontend()
    await deployment.worker(**await deployment.model_and_tools())
    answer = await deployment.ask("the weather in Secretville, please", temperature=0.5, max_tokens=99)
    spans = await deployment.collector.run(answer["id"], "process", "tools/call")
    [request] = [span for span in named(spans, "POST") if span.process[0] == "agentstream-frontend"]
    [process], [agent], [tool] = (named(spans, name) for name in ("process", "invoke_agent", "execute_tool"))
    first, second = named(spans, "chat")
    assert request.attributes["agentstream.run.id"] == answer["id"]
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/chat/completions"
    assert process.attributes["agentstream.run.id"] == answer["id"]
    assert process.attributes["agentstream.run.status"] == "completed"
    assert process.attributes["agentstream.run.attempt"] == 1
    assert 0 <= process.attributes["agentstream.queue.wait_s"] < 20
    assert process.attributes["messaging.destination.name"] == deployment.processes.queue
    assert agent.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert agent.attributes["gen_ai.agent.name"] == "orchestrator"
    assert (agent.attributes["gen_ai.usage.input_tokens"], agent.attributes["gen_ai.usage.output_tokens"]) == (40, 14)
    assert tool.attributes["gen_ai.tool.name"] == "forecast__weather"
    assert tool.attributes["gen_ai.tool.call.id"] == "call-1"
    assert first.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m1",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.response.model": "m-2026",
        "gen_ai.response.id": "answer-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 7,
        "server.address": "127.0.0.1",
    }
    assert expected.items() <= second.attributes.items()
    assert second.attributes["gen_ai.response.time_to_first_chunk"] > 0
    written = str([(span.attributes, span.message) for span in spans])
    assert not any(text in written for text in ("Secretville", "Oslo", "sunny"))


async def test_spans_hold_content_if_a_variable_allows_it(deployment: Deployment) -> None:
    """If a variable allows content, spans hold the texts of user, model and tool in the form of the conventions."""
    await deployment.frontend()
    settings = await deployment.model_and_tools()
    await deployment.worker(**settings, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")
    answer = await deployment.ask("the weather in Secretville, please")
    spans = await deployment.collector.run(answer["id"], "process")
    _, second = named(spans, "chat")
    [tool] = named(spans, "execute_tool")
    user, assistant, result = json.loads(second.attributes["gen_ai.input.messages"])
    assert user == {"role": "user", "parts": [{"type": "text", "content": "the weather in Secretville, please"}]}
    call = {"type": "tool_call", "id": "call-1", "name": "forecast__weather", "arguments": '{"city": "Oslo"}'}
    assert assistant == {"role": "assistant", "parts": [call]}
    assert result["parts"] == [{"type": "tool_call_response", "id": "call-1", "response": "sunny in Oslo"}]
    answer_message = {
        "role": "assistant",
        "parts": [{"type": "text", "content": "It is sunny."}],
        "finish_reason": "stop",
    }
    assert json.loads(second.attributes["gen_ai.output.messages"]) == [answer_message]
    assert tool.attributes["gen_ai.tool.call.arguments"] == '{"city": "Oslo"}'
    assert tool.attributes["gen_ai.tool.call.result"] == "sunny in Oslo"
    await deployment.ask("refuse, please")
    spans = await deployment.collector.until(
        lambda spans: any(span.failed and span.name == "chat m1" for span in spans)
    )
    assert "I was asked: refuse, please" in next(span.message for span in spans if span.failed)


async def test_a_failed_run_shows_where_it_failed(deployment: Deployment) -> None:
    """The inference has the model server's status, agent and job have the failure code, and no span has its text."""
    await deployment.frontend()
    await deployment.worker(**await deployment.model_and_tools())
    run_id, sent = await deployment.stream("refuse, please")
    assert "agent_error" in sent
    spans = await deployment.collector.run(run_id, "process")
    failed = {span.name.split()[0]: span.attributes["error.type"] for span in spans if span.failed}
    code = failed["process"]
    assert failed == {"chat": "400", "invoke_agent": code, "process": code}
    assert code in sent
    assert not any(span.message for span in spans)
    assert named(spans, "process")[0].attributes["agentstream.run.status"] == "failed"


async def test_a_cancelled_run_is_no_failure_and_its_cancel_is_linked(deployment: Deployment) -> None:
    """The spans of a cancelled run are not failed, and the request that cancelled it links to its trace."""
    await deployment.frontend()
    await deployment.worker(**await deployment.model_and_tools())
    answer = await deployment.ask("hang, please", background=True)
    await deployment.collector.until(lambda spans: any(span.name.startswith("send") for span in spans))
    await deployment.call("POST", f"/v1/chat/completions/{answer['id']}/cancel")
    spans = await deployment.collector.run(answer["id"], "process")
    assert not any(span.failed for span in spans if span.process[0] == "agentstream-worker")
    assert named(spans, "process")[0].attributes["agentstream.run.status"] == "cancelled"
    [cancel] = named(
        await deployment.collector.until(_has("POST /v1/chat/completions/{run_id}/cancel")),
        "POST /v1/chat/completions/{",
    )
    assert cancel.attributes["agentstream.run.id"] == answer["id"]
    assert cancel.trace != spans[0].trace
    assert cancel.links == [(send.trace, send.id) for send in named(spans, "send")]


async def test_a_cancelled_inference_is_recorded(deployment: Deployment) -> None:
    """If the client disconnects, the request records an incomplete stream and the inference a cancellation."""
    await deployment.frontend()
    await deployment.worker(**await deployment.model_and_tools())
    body = {"model": "m1", "messages": [{"role": "user", "content": "hang, please"}], "stream": True}
    async with deployment.session.post(f"{deployment.url}/v1/chat/completions", json=body) as response:
        while b'"I "' not in await response.content.readline():
            pass
    spans = await deployment.collector.until(_has("process"))
    spans = await deployment.collector.until(_has("POST /v1/chat/completions"))
    [request] = [span for span in named(spans, "POST") if span.process[0] == "agentstream-frontend"]
    assert request.attributes["agentstream.stream.whole"] is False
    [chat] = named(spans, "chat")
    assert chat.attributes["agentstream.cancelled"] is True
    assert not chat.failed


async def test_attempts_are_siblings_in_one_trace(deployment: Deployment) -> None:
    """After a worker is killed, the second attempt has the same parent as the first."""
    gate = deployment.folder / "gate"
    await deployment.frontend()
    first = await deployment.worker("gated", GATE=str(gate))
    answer = await deployment.ask("wait", background=True)
    await first.until("gated run")
    second = await deployment.worker("gated", GATE=str(gate))
    first.kill()
    await second.until("gated run")
    gate.touch()
    spans = await deployment.collector.run(answer["id"], "process")
    [attempt] = named(spans, "process")
    assert attempt.process[1] == second.pid
    assert attempt.attributes["agentstream.run.attempt"] == 2
    assert attempt.attributes["agentstream.run.status"] == "completed"
    assert attempt.parent == named(spans, "send")[0].id


async def test_a_lost_worker_is_recorded_by_the_next(deployment: Deployment) -> None:
    """A run that cannot be retried ends in a failed span of the worker that took it over."""
    await deployment.frontend()
    first = await deployment.worker("gated", GATE=str(deployment.folder / "never"))
    answer = await deployment.ask("text", background=True)
    await first.until("gated run")
    second = await deployment.worker("gated", GATE=str(deployment.folder / "never"))
    await _written(deployment, answer["id"])
    first.kill()
    spans = await deployment.collector.run(answer["id"], "process")
    [attempt] = named(spans, "process")
    assert attempt.process[1] == second.pid
    assert attempt.failed
    assert attempt.attributes["error.type"] == "worker_lost"
    assert not named(spans, "invoke_agent")


async def test_a_stopped_worker_sends_its_last_spans(deployment: Deployment) -> None:
    """A stopping worker hands its run back, and its attempt is in the trace beside the next one."""
    gate = deployment.folder / "gate"
    await deployment.frontend()
    first = await deployment.worker(
        "gated", GATE=str(gate), AGENTSTREAM_DRAIN_TIMEOUT_S="0.1", OTEL_BSP_SCHEDULE_DELAY="60000"
    )
    answer = await deployment.ask("wait", background=True)
    await first.until("gated run")
    second = await deployment.worker("gated", GATE=str(gate))
    first.send_signal(signal.SIGTERM)
    assert await first.ended() == 0
    await second.until("gated run")
    gate.touch()
    spans = await deployment.collector.until(lambda spans: len(named(spans, "process")) == 2)
    ended = {span.attributes["agentstream.run.attempt"]: span for span in named(spans, "process")}
    assert [ended[number].attributes["agentstream.run.status"] for number in (1, 2)] == ["hand_back", "completed"]
    assert ended[1].trace == ended[2].trace
    assert ended[1].parent == ended[2].parent
    assert answer["id"] == ended[1].attributes["agentstream.run.id"]


@pytest.mark.parametrize("agent", ["on_the_loop", "in_a_thread"])
async def test_spans_of_an_agent_are_inside_its_call(deployment: Deployment, agent: str) -> None:
    """A span that an agent makes, on the loop or in a thread, is a child of the span of its call."""
    await deployment.frontend()
    await deployment.worker(agent)
    answer = await deployment.ask("anything")
    spans = await deployment.collector.run(answer["id"], "process", "own work")
    [own], [call] = named(spans, "own work"), named(spans, "invoke_agent")
    assert call.name == f"invoke_agent {agent}"
    assert own.parent == call.id
    assert answer["choices"][0]["message"]["content"] == f"{own.trace} {own.id}"


async def test_an_agent_may_bring_its_own_provider(deployment: Deployment) -> None:
    """A provider that an agent's module has set up gets the worker's spans, in the same trace."""
    await deployment.frontend()
    nowhere = dict.fromkeys(deployment.env, "")
    await deployment.processes.worker(
        "tests.telemetry.own_provider:agent", **nowhere, MY_COLLECTOR=deployment.collector.url
    )
    answer = await deployment.ask("anything")
    spans = await deployment.collector.run(answer["id"], "process", "invoke_agent")
    services = {span.name.split()[0]: span.process[0] for span in spans}
    assert services["POST"] == services["send"] == "agentstream-frontend"
    assert services["process"] == services["invoke_agent"] == "mine"


async def test_a_program_finds_the_context_in_its_environment(deployment: Deployment) -> None:
    """A program that runs as an agent gets the trace context of the call in TRACEPARENT."""
    await deployment.frontend()
    await deployment.worker("program")
    answer = await deployment.ask("anything")
    [call] = named(await deployment.collector.run(answer["id"], "process", "invoke_agent"), "invoke_agent")
    assert answer["choices"][0]["message"]["content"].startswith(f"00-{call.trace}-{call.id}-")


async def test_only_requests_of_the_api_have_spans(deployment: Deployment) -> None:
    """Requests of the API have spans, linked to the trace of their run, but probes, metrics and the page have none."""
    await deployment.frontend()
    await deployment.worker("on_the_loop")
    answer = await deployment.ask("anything")
    run = f"/v1/chat/completions/{answer['id']}"
    for path in (
        "/health/live",
        "/health/ready",
        "/metrics",
        "/",
        "/page/app.js",
        "/v1/models",
        "/v1/models/org/m1",
        run,
        f"{run}?stream=true",
    ):
        await deployment.call("GET", path)
    await deployment.call("GET", "/v1/chat/completions/nothing")

    def complete(spans: list[ReceivedSpan]) -> bool:
        return len([span for span in spans if span.kind == "server"]) >= 6

    spans = await deployment.collector.until(complete)
    requests = [span for span in spans if span.kind == "server"]
    names = sorted((span.name, span.attributes["http.response.status_code"]) for span in requests)
    get = "GET /v1/chat/completions/{run_id}"
    assert names == [
        *[(get, 200), (get, 200), (get, 404)],
        *[("GET /v1/models", 200), ("GET /v1/models/{model}", 404), ("POST /v1/chat/completions", 200)],
    ]
    [send] = named(spans, "send")
    looks = [span for span in requests if span.name == get and span.attributes["http.response.status_code"] == 200]
    assert all(span.links == [(send.trace, send.id)] for span in looks)
    assert len({span.trace for span in requests}) == 6


async def test_a_wrong_trace_context_begins_a_new_trace(deployment: Deployment) -> None:
    """A malformed traceparent is ignored, as W3C asks, and the request gets its own trace."""
    await deployment.frontend()
    await deployment.worker("on_the_loop")
    wrong = ["00-0-0-01", f"ff-{CALLER[3:]}", f"00-{'0' * 32}{CALLER[35:]}", f"{CALLER}-more", "x" * 3000, ""]
    traces = set()
    for sent in wrong:
        answer = await deployment.ask("anything", {"traceparent": sent})
        assert answer["choices"]
        spans = await deployment.collector.run(answer["id"], "process")
        assert [span.parent for span in named(spans, "POST")] == [""]
        traces |= {span.trace for span in spans}
    assert len(traces) == len(wrong)
    assert CALLER.split("-")[1] not in traces


async def test_the_callers_sampling_decision_counts(deployment: Deployment) -> None:
    """A request whose caller does not sample its trace makes no spans, and the next request does."""
    await deployment.frontend()
    await deployment.worker("on_the_loop")
    unsampled = await deployment.ask("anything", {"traceparent": f"{CALLER[:-2]}00"})
    kept = await deployment.ask("anything")
    await deployment.collector.run(kept["id"], "process", "own work")
    ids = unsampled["choices"][0]["message"]["content"]
    assert ids.split()[0] == CALLER.split("-")[1]
    assert {span.attributes.get("agentstream.run.id") for span in deployment.collector.spans} == {kept["id"], None}
    assert CALLER.split("-")[1] not in {span.trace for span in deployment.collector.spans}


def _has(name: str) -> Callable[[list[ReceivedSpan]], bool]:
    return lambda spans: bool(
        [span for span in spans if span.name.startswith(name) and span.process[0].startswith("agentstream")]
    )


async def _written(deployment: Deployment, run_id: str) -> None:
    """Return when some text of the run is stored."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            answer = await deployment.call("GET", f"/v1/chat/completions/{run_id}")
            if answer["choices"][0]["message"]["content"]:
                return
            await asyncio.sleep(0.02)
