"""Model names with slashes, colons, spaces, percent signs and letters of every script, in every route."""

import json
from urllib.parse import quote

import openai
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from agentstream.telemetry import names as metric_names
from tests.helpers import texts
from tests.integration.conftest import Client
from tests.processes import Process, Processes

NAMES = (
    "meta-llama/Llama-3.1-8B",
    "hf.co/org/model/v2:Q4_K_M",
    "qwen2:7b",
    "my model",
    "50%off",
    "a%2Fb",
    "a%20b?c#d&e",
    "modèle/ü😀",
    "模型",
    "..",
    'quo"te\\back',
)


async def start(processes: Processes, **settings: str) -> tuple[str, Process]:
    """Start a front end that lists the names and a worker that answers with the request's model; return both."""
    frontend = await processes.start(
        "frontend", AGENTSTREAM_PORT="0", AGENTSTREAM_MODELS=",".join(NAMES), AGENTSTREAM_LOG_LEVEL="debug", **settings
    )
    url = (await frontend.until(r"serving on (http://[^\s\"]+)"))[1]
    await processes.worker("whoami")
    return url, frontend


def encoded(url: str, name: str, safe: str = "") -> URL:
    """Return the URL of a model. Its dots are encoded too: otherwise ".." would be a part of the path's syntax."""
    return URL(f"{url}/v1/models/{quote(name, safe=safe).replace('.', '%2E')}", encoded=True)


async def test_every_name_is_listed_and_found(processes: Processes, client: Client) -> None:
    """Every name is listed and retrieved, with slashes encoded or not, and any other name gets 404 model_not_found."""
    url, _ = await start(processes)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        assert [model.id async for model in sdk.models.list()] == list(NAMES)
        for name in NAMES:
            if name != "..":  # the client refuses it
                assert (await sdk.models.retrieve(name)).id == name
    for name in NAMES:
        for safe in ("", "/", "/:"):
            if name == ".." and safe:
                continue  # dots that are not encoded are a part of the path's own syntax
            path = URL(f"{url}/v1/models/{quote(name, safe=safe).replace('.', '%2E')}", encoded=True)
            async with client.session.get(path) as response:
                assert (await response.json())["id"] == name, (name, safe)
    for unknown in ("a%2Fb", "no/such/model", "%ff", "%00", "x" * 5000, "%2F", "m%0d%0aX:%20y", "a//b"):
        async with client.session.get(URL(f"{url}/v1/models/{unknown}", encoded=True)) as response:
            assert response.status == 404, unknown
            error = (await response.json())["error"]
        assert error["code"] == "model_not_found", unknown
        assert len(error["message"]) < 300


async def test_every_name_is_served_and_no_metric_or_line_is_broken(processes: Processes, client: Client) -> None:
    """All APIs answer for every name unchanged; metric labels hold route patterns, and each log line is valid JSON."""
    url, frontend = await start(processes, AGENTSTREAM_LOG_FORMAT="json")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        for name in NAMES:
            chat = await sdk.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
            assert chat.model == name
            assert (chat.choices[0].message.content or "").startswith(f"{name} ")
            assert (await sdk.completions.create(model=name, prompt="x")).model == name
            assert (await sdk.responses.create(model=name, input="x")).model == name
            assert "".join(texts(await client.stream(url, "x", model=name))).startswith(f"{name} ")
            async with client.session.get(encoded(url, name)) as response:
                assert response.status == 200, name
    async with client.session.get(f"{url}/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    routes = {
        sample.labels["route"]
        for family in families
        for sample in family.samples
        if sample.name == metric_names.REQUESTS
    }
    assert "/v1/models/{model}" in routes
    assert all(route.startswith(("/v1/", "/metrics")) for route in routes), routes
    await frontend.stop()
    lines = [json.loads(line) for line in frontend.output.splitlines()]
    logged = {line["route"] for line in lines if "route" in line}
    assert "/v1/models/{model}" in logged
    assert logged <= routes | {"/metrics"}
