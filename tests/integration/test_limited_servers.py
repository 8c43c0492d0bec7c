"""Redis servers that refuse optional commands (HELLO, CLIENT), as managed and old servers do."""

from pathlib import Path

import pytest

from agentstream.processes.broker import ServerChoice
from tests.cli.conftest import agentstream
from tests.deploy.servers import SERVERS, run_server
from tests.faults.clients import AGENT, http_client, request
from tests.processes import ROOT, Processes


@pytest.mark.parametrize("choice", SERVERS, ids=lambda choice: choice.executable.name)
@pytest.mark.parametrize(
    ("refused", "query"),
    [(["HELLO"], "?protocol=3"), (["CLIENT"], "?protocol=2"), (["HELLO", "CLIENT"], "")],
    ids=["HELLO", "CLIENT", "both"],
)
async def test_the_service_works_without_optional_commands(
    choice: ServerChoice, refused: list[str], query: str, tmp_path: Path
) -> None:
    """A server without HELLO or CLIENT, with a password, serves runs, streams, ``ps`` and ``doctor``."""
    options = [option for name in refused for option in ("--rename-command", name, "")]
    async with run_server(choice, tmp_path, "--requirepass", "s3cret-word", *options) as port, http_client() as client:
        redis_url = f"redis://:s3cret-word@127.0.0.1:{port}/0{query}"
        async with Processes(redis_url, tmp_path) as processes:
            url = await processes.frontend()
            await processes.worker(AGENT, PYTHONPATH=str(ROOT))
            assert (await client.post(url, request(["answer", "fine"])))[0] == 200
            assert b'"content":"0 ' in await client.whole(url, request(["say", 1]))
            assert (await client.call("GET", f"{url}/health/ready"))[0] == 200
            settings = {"REDIS_URL": redis_url, "AGENTSTREAM_QUEUE": processes.queue}
            listed = await agentstream("ps", **settings)
            assert listed.code == 0, listed
            report = await agentstream("doctor", "--url", url, "--json", **settings)
            assert '"stream", "level": "ok"' in report.out, report
        shown = "".join(process.output for process in processes.started)
        falls_back = "HELLO" in refused and query != "?protocol=2"
        assert ("Add ?protocol=2 to REDIS_URL" in shown) == falls_back
        assert "s3cret-word" not in shown + listed.err + report.err


async def test_a_server_that_refuses_scripts_names_the_change(tmp_path: Path) -> None:
    """A server without SCRIPT ends a worker with the reason and the permission to give."""
    async with (
        run_server(SERVERS[0], tmp_path, "--rename-command", "SCRIPT", "") as port,
        Processes(f"redis://127.0.0.1:{port}/0", tmp_path) as processes,
    ):
        process = await processes.start("worker", AGENTSTREAM_BROKER_WAIT_S="1")
        assert await process.ended() != 0
        assert "allow this Redis user SCRIPT LOAD and EVALSHA" in process.output
