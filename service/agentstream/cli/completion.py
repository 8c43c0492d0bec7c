"""Shell completion of run ids."""

import asyncio
from typing import Final

import click

from agentstream.cli.exits import quiet_link
from agentstream.config import load_client_settings
from agentstream.errors import AgentStreamError
from agentstream.protocol.keys import Keys
from agentstream.store.admin.open_runs import OpenRunReader
from agentstream.store.connection.endpoint import Endpoint

TIMEOUT_S: Final = 1.0  # the user waits at the prompt
MAX_SUGGESTIONS: Final = 50


def open_run_ids(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of open runs that start with ``incomplete``; none if REDIS_URL is not set or Redis is down."""
    try:
        return [run_id for run_id in asyncio.run(_open_run_ids()) if run_id.startswith(incomplete)]
    except (AgentStreamError, TimeoutError):
        return []  # shells cannot show an error here


async def _open_run_ids() -> list[str]:
    settings = load_client_settings()
    if settings.redis_url is None:
        return []
    endpoint, keys = Endpoint(settings.redis_url), Keys(settings.key_prefix)
    with quiet_link():
        async with asyncio.timeout(TIMEOUT_S), OpenRunReader(endpoint, keys) as reader:
            listings = await reader.open_runs(settings.served_queues, limit=MAX_SUGGESTIONS)
    return [run.run_id for listing in listings for run in listing.runs if run.run_id]
