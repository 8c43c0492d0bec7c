"""Follows the stream of a run that exists: over broken connections, and while the run waits for people."""

import asyncio
import contextlib
from typing import Final

from agentstream.cli.api_client import ApiClient, run_path
from agentstream.cli.exits import Unreachable
from agentstream.cli.terminal.display import Display

GIVE_UP_S: Final = 60.0  # without a byte; longer than a restart of a front end takes
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 5.0
FIRST_LOOK_S: Final = 0.5  # at a run that waits for people: nothing tells a client that it goes on
MAX_LOOK_S: Final = 5.0


async def follow(api: ApiClient, run_id: str, display: Display, *, wait_for_people: bool) -> None:
    """Show a run after the last frame of ``display``, to its end.

    If the run waits for people, wait until it goes on or, without ``wait_for_people``, return. Raises Refused, Failed,
    or Unreachable after GIVE_UP_S without data.
    """
    clock = asyncio.get_running_loop().time
    path = f"{run_path(run_id)}?stream=true"
    received_at_s: float | None = None
    backoff_s = FIRST_BACKOFF_S
    while True:
        error: Unreachable | None = None
        try:
            async with contextlib.aclosing(api.stream("GET", path, after=display.last_event_id)) as pieces:
                async for messages in pieces:
                    received_at_s, backoff_s = clock(), FIRST_BACKOFF_S
                    if not messages:
                        display.idle()
                    if any(map(display.receive, messages)):
                        display.close()
                        if not (display.parked and wait_for_people):
                            return
                        display.note(f"to answer it: agentstream answer {run_id}")
                        await _until_it_goes_on(api, run_id)
                        break
                if display.parked:
                    continue
        except Unreachable as exc:
            error = exc
        if received_at_s is None or clock() - received_at_s > GIVE_UP_S:
            raise error or Unreachable(f"{api.url} closes the stream before the run has ended")
        display.note(f"{error.message if error else 'the stream ended too early'}; reconnecting")
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)


async def _until_it_goes_on(api: ApiClient, run_id: str) -> None:
    """Return when a run waits for people no longer. A front end that cannot be reached may come back."""
    pause_s = FIRST_LOOK_S
    while True:
        with contextlib.suppress(Unreachable):
            if (await api.get(run_path(run_id)))["status"] != "requires_action":
                return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, MAX_LOOK_S)
