"""The HTTP API of real processes: refused requests, CORS, health checks, metrics, models and the playground page."""

import asyncio
import contextlib
import gzip
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from agentstream.protocol.keys import Keys
from agentstream.telemetry import names as metric_names
from tests.integration.conftest import Client
from tests.processes import Processes

CHAT = "/v1/chat/completions"
KEY = "sk-Right"
AUTH = {"Authorization": f"Bearer {KEY}"}
JSON = {"Content-Type": "application/json"}
PAGE = "https://page.example"
MODELS = ("m1", "org/m2")
MAX_BODY_BYTES = 4096
MAX_MESSAGES = 5
ABSENT = object()


def request_body(text: str = "fine", **fields: Any) -> dict[str, Any]:
    """Return a valid request changed by ``fields``; a field with the value ABSENT is removed."""
    body = {"model": "m1", "messages": [{"role": "user", "content": text}], **fields}
    return {name: value for name, value in body.items() if value is not ABSENT}


def part(kind: str) -> list[dict[str, Any]]:
    """Return messages with one content part of this type."""
    return [{"role": "user", "content": [{"type": kind, kind: {}}]}]


@dataclass(frozen=True)
class Site:
    """A front end and a worker with their broker."""

    url: str
    queue: str
    broker: Redis

    def enqueued(self) -> tuple[int, int]:
        """Return how many jobs were ever added to the queue, and how many runs the broker has."""
        jobs = self.broker.xinfo_stream(Keys().jobs(self.queue))
        return jobs["entries-added"], sum(1 for _ in self.broker.scan_iter(Keys().run("chatcmpl-*"), count=1000))


@pytest.fixture(scope="module")
def site(broker_url: str, broker_runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A front end with low limits, and a worker whose agent does what the message names."""
    queue = f"test-{secrets.token_hex(6)}"
    stack = contextlib.AsyncExitStack()

    async def start() -> str:
        processes = await stack.enter_async_context(Processes(broker_url, tmp_path_factory.mktemp("site")))
        await processes.worker("misbehaving_async", AGENTSTREAM_QUEUE=queue, AGENTSTREAM_DRAIN_TIMEOUT_S="0")
        return await processes.frontend(
            AGENTSTREAM_QUEUE=queue,
            AGENTSTREAM_API_KEYS=f"sk-other,{KEY}",
            AGENTSTREAM_CORS_ORIGINS=f"{PAGE},https://other.example",
            AGENTSTREAM_MODELS=",".join(MODELS),
            AGENTSTREAM_MAX_BODY_BYTES=str(MAX_BODY_BYTES),
            AGENTSTREAM_MAX_MESSAGES=str(MAX_MESSAGES),
        )

    try:
        url = broker_runner.run(start())
        with Redis.from_url(broker_url) as broker:
            yield Site(url, queue, broker)
    finally:
        broker_runner.run(stack.aclose())


async def error_of(response: aiohttp.ClientResponse, status: int) -> dict[str, Any]:
    """Return the error of a refused request; assert its status and OpenAI's shape."""
    assert response.status == status, await response.text()
    assert response.content_type == "application/json"
    assert response.headers["X-Request-Id"].startswith("req_")
    body = await response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert error["code"]
    return error


Refuse = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def refuse(site: Site, client: Client) -> Refuse:
    """Send a request, assert that it is refused with this status and that nothing is enqueued, and return its error."""

    async def send(status: int, data: Any, headers: dict[str, str] | None = None, query: str = "") -> dict[str, Any]:
        before = site.enqueued()
        data = json.dumps(data) if isinstance(data, dict) else data
        post = client.session.post(site.url + CHAT + query, data=data, headers={**JSON, **AUTH, **(headers or {})})
        async with post as response:
            error = await error_of(response, status)
        assert site.enqueued() == before
        return error

    return send


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"{", "not valid JSON", id="broken off"),
        pytest.param(b"", "not valid JSON", id="empty"),
        pytest.param(b'{"model": "\xff"}', "UTF-8", id="not UTF-8"),
        pytest.param(b'{"model": "\\ud800"}', "surrogate", id="lone surrogate"),
        pytest.param(b'{"model": "m1\0"}', "not valid JSON", id="raw NUL"),
        pytest.param(b'{"seed": 1e999}', "infinity", id="infinite number"),
        pytest.param(b'{"seed": ' + b"9" * 3000 + b"}", "infinity", id="3,000 digits"),
        pytest.param(b'{"seed": NaN}', "not valid JSON", id="NaN"),
        pytest.param(b'{"messages":' + b"[" * 1500 + b"]" * 1500 + b"}", "depth", id="1,500 levels"),
    ],
)
async def test_a_body_that_is_not_json_is_refused(refuse: Refuse, body: bytes, words: str) -> None:
    """A body that is not JSON gets 400 invalid_json, and the message gives the position of the error."""
    error = await refuse(400, body)
    assert error["code"] == "invalid_json"
    assert words in error["message"]
    assert re.search(r"char \d+", error["message"])


@pytest.mark.parametrize("body", ["[]", "null", "5", '"text"'])
async def test_a_body_that_is_not_an_object_is_refused(refuse: Refuse, body: str) -> None:
    """A JSON body that is not an object gets 400."""
    assert "JSON object" in (await refuse(400, body))["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "text/json", "application/octet-stream"])
async def test_a_body_not_declared_as_json_is_refused(refuse: Refuse, content_type: str) -> None:
    """A content type other than JSON gets 415, and the message says which one to send."""
    error = await refuse(415, request_body(), {"Content-Type": content_type})
    assert "'Content-Type: application/json'" in error["message"]
    assert content_type in error["message"]


async def test_a_body_that_does_not_decompress_is_refused(refuse: Refuse) -> None:
    """A body that does not match its Content-Encoding gets 400."""
    error = await refuse(400, b"abcde", {"Content-Encoding": "gzip", "Connection": "close"})
    assert "gzip" in error["message"]


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


@pytest.mark.parametrize("sent", ["with Content-Length", "chunked", "compressed"])
async def test_a_body_over_the_limit_is_refused(refuse: Refuse, sent: str) -> None:
    """A body over the limit gets 413 however it is sent, and the message gives the limit."""
    data = json.dumps(request_body("x" * MAX_BODY_BYTES)).encode()
    if sent == "chunked":
        error = await refuse(413, pieces(data))
    elif sent == "compressed":
        error = await refuse(413, gzip.compress(data), {"Content-Encoding": "gzip"})
    else:
        error = await refuse(413, data)
    assert f"{MAX_BODY_BYTES} bytes" in error["message"]
    assert error["code"] == "request_too_large"


USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": ABSENT}, "model", "required"),
        ({"model": None}, "model", "valid string"),
        ({"model": ["m1"]}, "model", "valid string"),
        ({"model": ""}, "model", "at least 1"),
        ({"model": "m" * 257}, "model", "at most 256"),
        ({"model": "m1\r"}, "model", "control characters"),
        ({"model": "m1\n"}, "model", "control characters"),
        ({"model": "m1\ndata: x"}, "model", "control characters"),
        ({"model": "m1\0"}, "model", "control characters"),
        ({"model": "m\x1b1"}, "model", "control characters"),
        ({"messages": ABSENT}, "messages", "required"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "x"}, "messages", "valid list"),
        ({"messages": [USER] * 6}, "messages", "limit is 5"),
        ({"messages": ["x"]}, "messages[0]", "dictionary"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role", "'developer', 'user'"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "needs content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]", "needs content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        ({"messages": part("input_audio")}, "messages[0].content[0]", "'text', 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tool_call_id"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
        ({"n": 2}, "n", "be 1"),
        ({"n": 0}, "n", "be 1"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": 2**70}, "max_completion_tokens", "integer"),
        ({"seed": 10**30}, "seed", "integer"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": 5}, "stop", "string"),
        ({"metadata": "x"}, "metadata", "dictionary"),
        ({"response_format": "json"}, "response_format", "dictionary"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "'function'"),
        ({"tools": {"type": "function"}}, "tools", "list"),
        ({"tool_choice": "required"}, "tool_choice", "only allowed with tools"),
        ({"tool_choice": "sometimes"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools.tools", "Field"),
        ({"functions": [{"name": "f"}], "tools": [TOOL]}, "functions", "either tools or functions"),
        ({"function_call": {"name": "f"}}, "function_call", "only allowed with functions"),
        ({"audio": {"voice": "x"}}, "audio", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "only the text"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"store": True}, "store", "not supported"),
    ],
    ids=lambda value: json.dumps(value, default=lambda _: "absent")[:60] if isinstance(value, dict) else "",
)
async def test_a_wrong_field_is_refused_by_name(refuse: Refuse, fields: dict[str, Any], param: str, words: str) -> None:
    """A wrong or unsupported field gets 400, and the error names the field and says what is allowed."""
    error = await refuse(400, request_body(**fields))
    assert error["param"] == param
    assert words in error["message"]
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("levels", [70, 1000])
async def test_a_body_nested_too_deep_is_refused(refuse: Refuse, levels: int) -> None:
    """A body nested deeper than 64 levels gets 400, even if the deep value is in an unknown field."""
    nested = '{"model":"m1","messages":[{"role":"user","content":"x"}],"extra":' + "[" * levels + "]" * levels + "}"
    assert "deeper than 64 levels" in (await refuse(400, nested))["message"]


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ("?agent_events=json", {}, "agent_events"),
        ("", {"X-Agent-Events": "NAMED"}, "agent_events"),
        ("", {"X-Agent-Errors": "loud"}, "X-Agent-Errors"),
    ],
)
async def test_an_unknown_event_format_or_error_form_is_refused(
    refuse: Refuse, query: str, headers: dict[str, str], param: str
) -> None:
    """An unknown event format or error form gets 400, and the message lists the known ones."""
    error = await refuse(400, request_body(stream=True), headers, query)
    assert error["param"] == param
    assert "use " in error["message"]


@pytest.mark.parametrize(
    "given",
    [None, "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY.lower()}", f"Bearer {KEY}x", "Bearer sk-other,"],
)
async def test_a_caller_without_a_valid_key_is_refused(site: Site, client: Client, given: str | None) -> None:
    """A missing key, a wrong key or another scheme gets 401 on every API route, before anything else is checked."""
    before = site.enqueued()
    headers = JSON | ({} if given is None else {"Authorization": given})
    for method, path in [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/m1"), ("GET", "/v1/models/none")]:
        data = b"{" if method == "POST" else None
        async with client.session.request(method, site.url + path, data=data, headers=headers) as response:
            error = await error_of(response, 401)
        assert error["code"] == "invalid_api_key"
        assert KEY.lower() not in error["message"].lower()
    assert site.enqueued() == before


async def test_the_scheme_of_a_key_is_not_case_sensitive(site: Site, client: Client) -> None:
    """The scheme is accepted in upper and lower case (RFC 9110), and each configured key is valid."""
    for given in (f"bearer {KEY}", f"BEARER {KEY}", "Bearer sk-other"):
        async with client.session.get(f"{site.url}/v1/models", headers={"Authorization": given}) as response:
            assert response.status == 200


@pytest.mark.parametrize("path", ["/v1/complete", "/v1/chat/completions/", "/page/app.py", "/page/%2e%2e/app.py"])
async def test_an_unknown_route_is_not_found(site: Site, client: Client, path: str) -> None:
    """A route that does not exist gets 404 in OpenAI's shape."""
    async with client.session.post(site.url + path, json=request_body(), headers=AUTH) as response:
        error = await error_of(response, 404)
    assert error["code"] == "not_found"
    assert "no such route: POST /" in error["message"]


async def test_a_wrong_method_gets_405_with_the_right_one(site: Site, client: Client) -> None:
    """A method that the route does not have gets 405, and the message and the Allow header name the right one."""
    async with client.session.put(site.url + CHAT, json=request_body(), headers=AUTH) as response:
        error = await error_of(response, 405)
        assert error["code"] == "method_not_allowed"
        assert "use POST" in error["message"]
        assert response.headers["Allow"] == "POST"


async def test_the_last_of_two_equal_fields_counts(site: Site, client: Client) -> None:
    """If a field is given twice, both the validation and the agent use its last value."""
    data = json.dumps(request_body()).replace("{", '{"model": 5, ', 1)
    async with client.session.post(site.url + CHAT, data=data, headers=JSON | AUTH) as response:
        assert (await response.json())["model"] == "m1"


async def send(client: Client, site: Site, method: str, path: str, **more: Any) -> aiohttp.ClientResponse:
    """Return the answer to a request from a page of ``more["origin"]``, after its body has been read."""
    headers = {"Origin": more.pop("origin"), **more.pop("headers", {})}
    async with client.session.request(method, site.url + path, headers=headers, **more) as response:
        await response.read()
        return response


async def answers_to(client: Client, site: Site, origin: str) -> dict[str, aiohttp.ClientResponse]:
    """Return one answer of each kind that a page can get."""
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    stream = request_body(stream=True)
    return {
        "preflight": await send(client, site, "OPTIONS", CHAT, origin=origin, headers=preflight),
        "models": await send(client, site, "GET", "/v1/models", origin=origin, headers=AUTH),
        "no key": await send(client, site, "POST", CHAT, origin=origin, json=stream),
        "no route": await send(client, site, "GET", "/nothing", origin=origin),
        "whole": await send(client, site, "POST", CHAT, origin=origin, json=request_body(), headers=AUTH),
        "stream": await send(client, site, "POST", CHAT, origin=origin, json=stream, headers=AUTH),
    }


async def test_an_allowed_page_may_read_every_answer(site: Site, client: Client) -> None:
    """Answers, errors and streams have the CORS headers for an allowed origin, and its preflight needs no key."""
    answers = await answers_to(client, site, PAGE)
    for name, response in answers.items():
        assert response.headers["Access-Control-Allow-Origin"] == PAGE, name
        assert response.headers["Vary"] == "Origin", name
    assert [response.status for response in answers.values()] == [204, 200, 401, 404, 200, 200]
    preflight = answers["preflight"].headers
    assert {"GET", "POST"} <= set(preflight["Access-Control-Allow-Methods"].split(", "))
    assert {"authorization", "content-type"} <= words_of(preflight["Access-Control-Allow-Headers"])


def words_of(header: str) -> set[str]:
    return {word.strip().lower() for word in header.split(",")}


async def test_another_page_may_read_nothing(site: Site, client: Client) -> None:
    """No answer to an origin that is not allowed has a CORS header."""
    for name, response in (await answers_to(client, site, "https://page.example.evil.test")).items():
        assert not [header for header in response.headers if header.startswith("Access-Control-")], name


async def test_the_openai_client_works_in_a_browser(site: Site, client: Client) -> None:
    """A preflight allows all headers that openai-node sends, and pages may read the headers that control retries."""
    stainless = {f"x-stainless-{name}" for name in ("arch", "lang", "os", "package-version", "retry-count", "runtime")}
    asked = stainless | {"authorization", "content-type", "x-stainless-runtime-version", "x-stainless-timeout"}
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ",".join(sorted(asked))}
    preflight = await send(client, site, "OPTIONS", CHAT, origin=PAGE, headers=headers)
    assert asked <= words_of(preflight.headers["Access-Control-Allow-Headers"])
    answer = await send(client, site, "POST", CHAT, origin=PAGE, json=request_body("raises"), headers=AUTH)
    assert answer.headers["X-Should-Retry"] == "false"
    exposed = words_of(answer.headers["Access-Control-Expose-Headers"])
    assert {"x-request-id", "retry-after", "x-should-retry"} <= exposed


async def test_health_needs_no_key(site: Site, client: Client) -> None:
    """The health routes answer without a key, and the readiness answer has the number of workers."""
    async with client.session.get(f"{site.url}/health/live") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    async with client.session.get(f"{site.url}/health/ready") as response:
        assert response.status == 200
        body = await response.json()
    assert list(body.pop("queues").values()) == [{"workers": 1, "queued": 0}]
    assert body == {"status": "ok", "redis": "ok", "workers": 1}


async def test_metrics_are_prometheus_text(site: Site, client: Client) -> None:
    """The metrics are valid Prometheus text and count requests by route and status; unknown routes share one label."""
    for path in ("/health/live", "/unknown/1", "/unknown/2"):
        async with client.session.get(site.url + path):
            pass
    async with client.session.get(f"{site.url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(await response.text())
    samples = [sample for family in families for sample in family.samples]
    plain = {sample.name: sample.value for sample in samples if set(sample.labels) <= {"queue"}}
    assert plain[metric_names.WORKERS_ALIVE] == 1
    assert plain[metric_names.BROKER_RECONNECTS] == 0
    assert {metric_names.OPEN_RUNS, metric_names.QUEUED, metric_names.GAPS} <= set(plain)
    requests = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in samples
        if sample.name == metric_names.REQUESTS
    }
    assert requests["/health/live", "200"] >= 1
    assert requests["unknown", "404"] >= 2
    assert not [route for route, _ in requests if "unknown/" in route]


async def test_models_are_listed_and_found_by_name(site: Site) -> None:
    """The openai client lists the configured models and retrieves each, even if its name contains a slash."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0) as sdk:
        assert [model.id async for model in sdk.models.list()] == list(MODELS)
        for name in MODELS:
            assert (await sdk.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError, match="no such model: 'm3'") as caught:
            await sdk.models.retrieve("m3")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/markdown.js", "text/javascript"),
        ("/page/style.css", "text/css"),
    ],
)
async def test_the_page_is_served_behind_a_strict_policy(
    site: Site, client: Client, path: str, content_type: str
) -> None:
    """The files of the page need no key, and have a content type and a strict content security policy."""
    async with client.session.get(site.url + path) as response:
        assert response.status == 200
        assert response.content_type == content_type
        assert await response.read()
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "'unsafe-" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
