"""Runs of real processes, and the spans that a collector gets of them."""

from tests.telemetry.conftest import CALLER, Scene
from tests.telemetry.received import Received
from tests.telemetry.tree import drawn


def parents(spans: list[Received]) -> dict[str, set[str]]:
    """Return the names of each span's parents, by its name and its service's."""
    by_id = {span.id: span for span in spans}
    found: dict[str, set[str]] = {}
    for span in spans:
        parent = by_id[span.parent].name if span.parent in by_id else span.parent
        found.setdefault(f"{span.process[0]}: {span.name}", set()).add(parent)
    return found


def named(spans: list[Received], name: str) -> list[Received]:
    """Return the spans whose names begin so."""
    return [span for span in spans if span.name.startswith(name)]


async def test_a_run_is_one_trace_across_four_processes(scene: Scene) -> None:
    """Front end, worker, model server and tool server tell one run as one tree, which goes on the caller's trace."""
    await scene.frontend()
    await scene.worker(**await scene.model_and_tools())
    run_id, sent = await scene.stream("the weather, please", {"traceparent": CALLER, "tracestate": "caller=1"})
    assert "sunny" in sent
    queue = scene.processes.queue
    post = "POST /v1/chat/completions"
    spans = await scene.collector.run(run_id, post, "process", "tools/call", "invoke_agent")
    assert {span.trace for span in spans} == {CALLER.split("-")[1]}
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
    }, "\n".join(drawn(spans))
    assert len({span.process for span in spans}) == 4
