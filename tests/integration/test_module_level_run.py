"""The modules of agents are imported before the event loop of the worker runs."""

from tests.helpers import texts
from tests.integration.conftest import Client
from tests.processes import Processes


async def test_an_agents_module_may_use_asyncio_run(processes: Processes, client: Client) -> None:
    """A module that loads its tools with ``asyncio.run`` is imported, and its agent answers with them."""
    url = await processes.frontend()
    await processes.worker("module_level_agents:lists_tools")
    assert "".join(texts(await client.stream(url, "go"))) == "hammer, saw"


async def test_an_import_error_names_file_and_line(processes: Processes) -> None:
    """A worker whose agent's module fails exits with code 2 and one line that has the file and the line."""
    process = await processes.start("worker", AGENTSTREAM_AGENT="faulty_module:agent")
    assert await process.ended() == 2
    assert "No module named 'no_such_helper', at " in process.output
    assert "faulty_module.py, line 3 " in process.output
    assert "Traceback" not in process.output
