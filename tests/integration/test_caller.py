"""What an agent knows of its caller, through real processes."""

import hashlib
import json

from tests.integration.conftest import Client
from tests.processes import Processes

KEY = "sk-marked-key"
HEADERS = "X-User-Id, x-tenant, X-Leak, X-Missing"


async def test_an_agent_knows_who_asks(processes: Processes, client: Client) -> None:
    """The agent gets the hash of the key, the request's id and the allowed headers, and no other header and no key."""
    url = await processes.frontend(AGENTSTREAM_API_KEYS=KEY, AGENTSTREAM_CALLER_HEADERS=HEADERS)
    worker = await processes.worker("author_agents:who", AGENTSTREAM_LOG_LEVEL="debug")
    sent = {
        "Authorization": f"Bearer {KEY}",
        "X-Request-Id": "asked.1",
        "X-User-ID": "marked-ada",
        "X-Tenant": "marked-north",
        "X-Leak": f"key {KEY}",
        "X-Other": "marked-other",
    }
    body = {"model": "m1", "messages": [{"role": "user", "content": "who?"}]}
    answer = await client.post(url, body, **sent)
    completion = await answer.json()
    key_hash, request_id, headers, shown = json.loads(completion["choices"][0]["message"]["content"])
    assert key_hash == hashlib.sha256(KEY.encode()).hexdigest()
    assert request_id == answer.headers["X-Request-Id"] == "asked.1"
    assert headers == {"x-user-id": "marked-ada", "x-tenant": "marked-north"}
    assert "marked" not in shown
    for process in processes.started:
        assert "marked" not in process.output
    await worker.until("the run ended")


async def test_an_agent_knows_no_headers_without_the_setting(processes: Processes, client: Client) -> None:
    """Without the setting and without keys, the agent knows the id of the request alone."""
    url = await processes.frontend()
    await processes.worker("author_agents:who")
    body = {"model": "m1", "messages": [{"role": "user", "content": "who?"}]}
    answer = await client.post(url, body, **{"X-User-Id": "ada"})
    completion = await answer.json()
    assert json.loads(completion["choices"][0]["message"]["content"])[:3] == ["", answer.headers["X-Request-Id"], {}]
