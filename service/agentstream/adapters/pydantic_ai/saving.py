"""The checkpoints of a run of a pydantic-ai agent."""

from typing import Any, Final

import orjson
from pydantic_ai import ModelMessage, ModelMessagesTypeAdapter

from agentstream.adapters.resuming import keep
from agentstream.adapters.run_reporter import RunReporter
from agentstream.agents import Run

ADAPTER: Final = "pydantic_ai"


class Saving:
    """Stores the messages with which another attempt continues, and the state of the reporter and of the questions."""

    def __init__(self, run: Run, reporter: RunReporter, question_ids: list[str]) -> None:
        """Note what is a part of every checkpoint. ``question_ids`` may grow."""
        self._run = run
        self._reporter = reporter
        self._question_ids = question_ids

    async def save(self, messages: list[ModelMessage], asking: dict[str, Any] | None = None) -> None:
        """Make a checkpoint. ``asking`` describes the calls that people are asked about."""
        state = {
            "messages": ModelMessagesTypeAdapter.dump_python(messages, mode="json"),
            "reporter": self._reporter.saved(),
            "question_ids": self._question_ids,
            "asking": asking,
        }
        await keep(self._run, ADAPTER, state)


def loaded(dumped: list[Any]) -> list[ModelMessage]:
    """Return the messages of a checkpoint."""
    return ModelMessagesTypeAdapter.validate_json(orjson.dumps(dumped))  # bytes are base64 only in JSON
