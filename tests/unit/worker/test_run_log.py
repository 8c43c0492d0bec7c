"""What a worker logs of runs."""

import asyncio
import logging
from typing import cast

import pytest

from agentstream.protocol.events import RUN_COMPLETED
from agentstream.store.bus.bus import Bus
from agentstream.worker import run_log as runlog
from agentstream.worker.run_log import RunLog

STREAMED = (RUN_COMPLETED, {"content": None, "usage": {"prompt_tokens": 1, "completion_tokens": 2}})


class AwayBus:
    """A bus whose broker does not answer."""

    async def history(self, _run_id: str) -> None:
        await asyncio.Event().wait()


async def test_an_answer_that_cannot_be_read_back_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With content on and the broker away, the line says so after a bounded time: the slot is not kept for it."""
    caplog.set_level(logging.DEBUG, "agentstream.worker.run_log")
    monkeypatch.setattr(runlog, "HISTORY_TIMEOUT_S", 0.01)
    lines = RunLog(content=True)
    async with asyncio.timeout(5):
        await lines.answered(cast("Bus", AwayBus()), "chatcmpl-1", STREAMED)
    assert "answered: (not to be had: the broker is away)" in caplog.text


async def test_without_content_nothing_is_read_back(caplog: pytest.LogCaptureFixture) -> None:
    """Unasked, an answer is neither logged nor fetched."""
    caplog.set_level(logging.DEBUG, "agentstream.worker.run_log")
    async with asyncio.timeout(5):
        await RunLog().answered(cast("Bus", AwayBus()), "chatcmpl-1", STREAMED)
    assert caplog.text == ""
