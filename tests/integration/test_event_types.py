"""Events of agents' own types and of sub-agents, with real processes and the stock client."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.helpers import TIMEOUT_S, conformance_cases, decode, texts
from tests.integration.conftest import Client, Stream
from tests.processes import Processes

CHAT = "/v1/chat/completions"
ORIGIN = "https://app.example"
ALL_TYPES = {"X-Agent-Event-Types": "all"}
SUMMARY = ["researcher", "summariser"]
ANSWER = ["Asking.", "\n\n", "I found ", "noon."]
# The events of the manager that every client gets, and all of them: the type and the path.
STANDARD: list[tuple[str, Any]] = [
    ("agent_turn_start", ["researcher"]),
    ("tool_call_start", ["researcher"]),
    ("tool_call_end", ["researcher"]),
    ("inference_start", SUMMARY),
    ("tool_results", None),
]
EVERY: list[tuple[str, Any]] = [
    ("progress", None),
    *STANDARD[:3],
    ("progress", ["researcher"]),
    ("agent_text", ["researcher"]),
    STANDARD[3],
    ("agent_reasoning", SUMMARY),
    ("agent_text", SUMMARY),
    ("note", None),
    STANDARD[4],
]


def emitted(messages: Stream) -> list[tuple[str, Any]]:
    """Return type and path of the agent events in a stream, in any format and any API."""
    found = []
    for name, data in messages:
        if data == "[DONE]" or (name or "").startswith("response."):
            continue
        if name is not None:
            own = data.get("data", data)
            found.append((name.removeprefix("agentstream."), own.get("agent_path")))
        elif (event := data.get("agent_event")) is not None:
            found.append((event["type"], event.get("agent_path")))
    return found


@dataclass
class Site:
    """Two front ends and a worker of the manager. The second one sends ``progress`` to every client."""

    url: str
    telling_url: str
    client: Client

    async def ask(self, path: str = CHAT, *, query: str = "", **headers: str) -> tuple[str, bytes]:
        """Return the id of a new run and the bytes of its stream."""
        body: dict[str, Any] = {"model": "m1", "stream": True}
        body |= {"input": "go"} if "responses" in path else {"messages": [{"role": "user", "content": "go"}]}
        async with self.client.session.post(f"{self.url}{path}{query}", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            stream = await response.read()
        first = decode(stream)[0][1]
        return first.get("response", first)["id"], stream

    async def again(self, url: str, path: str, query: str = "", **headers: str) -> bytes:
        """Return the bytes of the stream of an existing run, from another front end."""
        async with self.client.session.get(f"{url}{path}?stream=true{query}", headers=headers) as response:
            assert response.status == 200, await response.text()
            return await response.read()


async def _start(processes: Processes) -> tuple[str, str]:
    agents = "m1=child_agents:manager, threaded=child_agents:threaded, recorded=agents:recorded_case"
    url, telling_url, _ = await asyncio.gather(
        processes.frontend(AGENTSTREAM_AGENTS=agents, AGENTSTREAM_CORS_ORIGINS=ORIGIN),
        processes.frontend(AGENTSTREAM_AGENTS=agents, AGENTSTREAM_EVENT_TYPES="progress"),
        processes.worker(AGENTSTREAM_AGENTS=agents),
    )
    return url, telling_url


@pytest.fixture(scope="module")
def urls(
    broker_url: str, broker_runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The front ends of the module; they and their worker start once."""
    processes = Processes(broker_url, tmp_path_factory.mktemp("event-types"))
    try:
        yield broker_runner.run(_start(processes))
    finally:
        broker_runner.run(processes.__aexit__())


@pytest.fixture
def site(urls: tuple[str, str], client: Client) -> Site:
    return Site(*urls, client)


@pytest.mark.parametrize("event_format", ["named", "raw", "chunk", "off"])
async def test_sub_agents_are_seen_in_every_format(site: Site, event_format: str) -> None:
    """The events of sub-agents come under their path in every format, and their text only to clients that ask."""
    _, plain = await site.ask(**{"X-Agent-Events": event_format})
    _, full = await site.ask(**{"X-Agent-Events": event_format}, **ALL_TYPES)
    assert emitted(decode(plain)) == ([] if event_format == "off" else STANDARD)
    assert emitted(decode(full)) == ([] if event_format == "off" else EVERY)
    assert texts(decode(plain)) == texts(decode(full)) == ANSWER


async def test_the_responses_api_sends_the_types_that_were_asked_for(site: Site) -> None:
    """The Responses API sends agent events to a client that asks for types; the stream resumes with the same types."""
    path = "/v1/responses"
    assert emitted(decode((await site.ask(path))[1])) == []
    response_id, whole = await site.ask(path, **ALL_TYPES)
    assert emitted(decode(whole)) == EVERY
    [progress] = [d for name, d in decode(whole) if name == "agentstream.progress" and d["data"]["found"] == 1]
    assert progress["data"] == {"found": 1, "id": "own", "agent_path": ["researcher"]}
    numbers = [data["sequence_number"] for _, data in decode(whole)]
    assert numbers == list(range(len(numbers)))
    frames = whole.split(b"\n\n")
    rest = await site.again(site.telling_url, f"{path}/{response_id}", "&starting_after=9", **ALL_TYPES)
    assert rest == b"\n\n".join(frames[10:])
    assert "".join(d["delta"] for name, d in decode(whole) if name == "response.output_text.delta") == "".join(ANSWER)


async def test_a_resumed_stream_may_ask_for_other_types(site: Site) -> None:
    """A client that resumes with the same types gets the same bytes, and with other types every later frame of them."""
    run_id, whole = await site.ask(**ALL_TYPES)
    frames = whole.split(b"\n\n")
    for position in range(1, len(frames) - 2):
        cursor = frames[position].split(b"\n")[0].removeprefix(b"id: ").decode()
        same = await site.again(site.telling_url, f"{CHAT}/{run_id}", **ALL_TYPES, **{"Last-Event-ID": cursor})
        assert same == b"\n\n".join(frames[position + 1 :]), cursor
    plain = await site.again(site.url, f"{CHAT}/{run_id}")
    assert emitted(decode(plain)) == STANDARD
    notes = await site.again(site.url, f"{CHAT}/{run_id}", "&agent_event_types=note&starting_after=1-2", **ALL_TYPES)
    assert emitted(decode(notes)) == [*STANDARD[:4], ("note", None), STANDARD[4]]


async def test_a_deployment_chooses_the_default(site: Site) -> None:
    """A front end sends the types of its setting to all clients, unless they choose; an empty choice is none."""
    run_id, plain = await site.ask()
    assert emitted(decode(plain)) == STANDARD
    path = f"{CHAT}/{run_id}"
    with_progress = [event for event in EVERY if event[0] == "progress" or event in STANDARD]
    assert emitted(decode(await site.again(site.telling_url, path))) == with_progress
    assert emitted(decode(await site.again(site.telling_url, path, "&agent_event_types=", **ALL_TYPES))) == STANDARD
    assert emitted(decode(await site.again(site.telling_url, path, **ALL_TYPES))) == EVERY
    assert emitted(decode(await site.again(site.telling_url, path, "&agent_events=off"))) == []


async def test_several_lists_are_one(site: Site) -> None:
    """Types may be in one list or in several headers or parameters, and the query wins."""
    _, two = await site.ask(query="?agent_event_types=progress,&agent_event_types=note", **ALL_TYPES)
    assert {name for name, _ in emitted(decode(two))} - {name for name, _ in STANDARD} == {"progress", "note"}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ("run_started", "event type 'run_started' cannot be asked for"),
        ("progress,text", "event type 'text' cannot be asked for"),
        ("all,run_completed", "event type 'run_completed' cannot be asked for"),
        ("pro gress", "event type 'pro gress' is not valid"),
        (",".join(f"t{number}" for number in range(51)), "51 event types are too many"),
    ],
)
async def test_wrong_types_are_refused(site: Site, path: str, types: str, reason: str) -> None:
    """Internal types, malformed names and long lists get a 400 that names the value and the parameter."""
    body = {"model": "m1", "input": "x", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": True}
    fields = {"/v1/completions": ("model", "prompt"), "/v1/responses": ("model", "input"), CHAT: ("model", "messages")}
    sent = {name: body[name] for name in (*fields[path], "stream")}
    for query, headers in (("", {"X-Agent-Event-Types": types}), (f"?agent_event_types={types}", {})):
        async with site.client.session.post(f"{site.url}{path}{query}", json=sent, headers=headers) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"], error["type"]) == (400, "agent_event_types", "invalid_request_error")
        assert reason in error["message"]


async def test_an_existing_run_refuses_wrong_types(site: Site) -> None:
    """Reading a run refuses wrong types too, if it is streamed."""
    run_id, _ = await site.ask()
    url = f"{site.url}{CHAT}/{run_id}?agent_event_types=run_failed"
    async with site.client.session.get(f"{url}&stream=true") as response:
        assert response.status == 400
    async with site.client.session.get(url) as response:
        assert response.status == 200


async def test_browsers_may_ask_for_types(site: Site) -> None:
    """A preflight of an allowed origin allows the header with the types."""
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-agent-event-types",
    }
    async with site.client.session.options(site.url + CHAT, headers=asked) as response:
        assert "x-agent-event-types" in response.headers["Access-Control-Allow-Headers"].lower()


@pytest.mark.parametrize(
    ("types", "expected"),
    [("", []), ("progress,agent_text", ["progress", "progress", "agent_text I found ", "agent_text Noon."])],
)
async def test_the_stock_client_reads_a_sub_agents_events(site: Site, types: str, expected: list[str]) -> None:
    """The openai client gets the types that it asks for with extra_headers, and without them nothing unknown."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", timeout=TIMEOUT_S) as api:
        stream = await api.chat.completions.create(
            model="m1",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            extra_headers={"X-Agent-Events": "chunk", "X-Agent-Event-Types": types},
        )
        chunks = [chunk async for chunk in stream]
    found = [(chunk.model_extra or {}).get("agent_event") for chunk in chunks]
    own = [event for event in found if event and event["type"] not in dict(STANDARD)]
    assert [f"{event['type']} {event.get('text', '')}".removesuffix(" ") for event in own] == [
        text.removesuffix(" ") for text in expected
    ]
    assert [text for chunk in chunks if (text := chunk.choices[0].delta.content)] == ANSWER


async def test_the_stock_client_of_the_responses_api_gets_the_types(site: Site) -> None:
    """The openai client's stream of a response has the types that it asked for with extra_headers."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", timeout=TIMEOUT_S) as api:
        stream = await api.responses.create(
            model="m1", input="go", stream=True, extra_headers={"X-Agent-Event-Types": "progress"}
        )
        types: list[str] = [event.type async for event in stream]
    assert types.count("agentstream.progress") == 2
    assert types[-1] == "response.completed"


async def test_the_stock_client_with_named_events_sees_only_chunks(site: Site) -> None:
    """A stock client that asks for all types in the default format still reads the whole answer from valid chunks."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", timeout=TIMEOUT_S) as api:
        stream = await api.chat.completions.create(
            model="m1", messages=[{"role": "user", "content": "go"}], stream=True, extra_headers=ALL_TYPES
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(ANSWER)
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [3]


async def test_threads_have_sub_agents_too(site: Site) -> None:
    """The sub-agents of an agent in a thread give the same events."""
    messages = await site.client.stream(site.url, "go", headers=ALL_TYPES, model="threaded")
    assert emitted(messages) == EVERY
    assert texts(messages) == ANSWER


@pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case["name"])
async def test_a_recorded_case_gets_only_the_types_that_were_asked_for(site: Site, case: dict[str, Any]) -> None:
    """A recorded case with all types is the recorded stream, and between its frames the events of other types."""
    request: dict[str, Any] = {"query": "?agent_events=raw", "model": "recorded", "user": case["name"]}
    plain = await site.client.stream(site.url, "x", **request)
    full = await site.client.stream(site.url, "x", **request, headers=ALL_TYPES)
    known = {frame["event"] for frame in case["expected"]}
    assert [name for name, _ in plain] == [frame["event"] for frame in case["expected"]]
    assert [name for name, _ in full if name in known] == [name for name, _ in plain]
    added = [(name, data) for name, data in full if name not in known]
    assert added == [(kind, data) for kind, data in case["agent"]["events"] if kind not in known]
