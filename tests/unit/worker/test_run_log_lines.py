"""The log lines of a worker about its runs."""

import asyncio
import logging
from typing import cast

import pytest

from agentstream.protocol.events import RUN_COMPLETED
from agentstream.store.bus.bus import Bus
from agentstream.worker import run_log_lines
from agentstream.worker.run_log_lines import RunLogLines

STREAMED = (RUN_COMPLETED, {"content": None, "usage": {"prompt_tokens": 1, "completion_tokens": 2}})


class UnavailableBus:
    """A bus whose Redis does not answer."""

    async def history(self, _run_id: str) -> None:
        await asyncio.Event().wait()


async def test_reading_an_answer_for_the_log_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If Redis does not answer, reading the answer for the log ends after a bounded time, and the line says so."""
    caplog.set_level(logging.DEBUG, "agentstream.worker.run_log_lines")
    monkeypatch.setattr(run_log_lines, "HISTORY_TIMEOUT_S", 0.01)
    lines = RunLogLines(content=True)
    async with asyncio.timeout(5):
        await lines.answered(cast("Bus", UnavailableBus()), "chatcmpl-1", STREAMED)
    assert "answer: (cannot be read: Redis does not answer)" in caplog.text


async def test_without_content_no_answer_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """Without permission to log content, an answer is neither read nor logged."""
    caplog.set_level(logging.DEBUG, "agentstream.worker.run_log_lines")
    async with asyncio.timeout(5):
        await RunLogLines().answered(cast("Bus", UnavailableBus()), "chatcmpl-1", STREAMED)
    assert caplog.text == ""
