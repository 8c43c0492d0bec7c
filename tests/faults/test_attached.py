"""Several clients of one run on one front end."""

import asyncio
from pathlib import Path

from tests.faults.clients import AGENT, frames, http_client, request, run_id_of
from tests.helpers import TIMEOUT_S
from tests.processes import Processes


async def test_attached_clients_get_the_same_bytes(processes: Processes, tmp_path: Path) -> None:
    """Each client attached to a running run gets the same bytes, even after another client has disconnected."""
    url, gate = await processes.frontend(), tmp_path / "gate"
    await processes.worker(AGENT)
    body = request(["say", 5], ["gate", str(gate)], ["tool"], ["say", 20], background=True)
    async with http_client() as client, asyncio.timeout(2 * TIMEOUT_S), client.streaming(url, body) as first:
        began = await first.until(b'"content":"4 ')
        run_id = run_id_of(began)
        async with client.streaming(url, run_id=run_id) as second:
            attached = await second.until(b'"content":"4 ')
            async with client.streaming(url, run_id=run_id) as third:
                await third.until(b'"content":"4 ')
            gate.touch()
            rests = await asyncio.gather(first.rest(), second.rest())
        whole = await client.whole(url, run_id=run_id)
    assert frames(began + rests[0]) == frames(attached + rests[1]) == frames(whole)
    assert whole.endswith(b"data: [DONE]\n\n")
    assert whole.count(b'"content":"19 ') == 1
