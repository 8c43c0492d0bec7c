"""The events that a run has published so far. They decide whether it may be retried, and they give its usage."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from agentstream.protocol.events import (
    TEXT,
    TOOL_CALL_DELTA,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TOOL_CALL_WAITING,
    WRITTEN_EVENTS,
    written_characters,
)
from agentstream.protocol.openai import ChatMessage, Usage, estimate_usage


class Tally:
    """Counts the events of one attempt. ``record`` may be called from any thread. Counts are exact after the run."""

    def __init__(self) -> None:
        """Start without events."""
        self._streamed: Callable[[], int] = lambda: 0
        self._text_characters = 0  # recorded here
        self._other_characters = 0  # of reasoning and calls of the client's tools
        self.client_calls = 0  # calls of the client's tools
        self.tool_calls = 0  # calls of the agent's own tools
        self.interrupts = 0  # calls of ``run.interrupt``, answered or not
        self.running_tools = 0  # those of them that have not ended
        self._reported_usage = Usage()
        self._reported_characters = 0  # written before the last inference ended

    def count_streamed(self, characters: Callable[[], int]) -> None:
        """Count streamed text, too. ``characters`` returns its length. ``record`` never gets it."""
        self._streamed = characters

    @property
    def text_characters(self) -> int:
        """The number of characters of the answer's text."""
        return self._text_characters + self._streamed()

    @property
    def written_characters(self) -> int:
        """The number of characters of text, reasoning and calls of the client's tools."""
        return self.text_characters + self._other_characters

    @property
    def _unreported_characters(self) -> int:
        return self.written_characters - self._reported_characters

    @property
    def retryable(self) -> bool:
        """Whether a new attempt would repeat nothing: nothing was written and no tool ran."""
        return not (self.written_characters or self.tool_calls)

    def record(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Count a published event."""
        if event_type in WRITTEN_EVENTS:
            characters = written_characters(event_type, data)
            if event_type == TEXT:
                self._text_characters += characters
                return
            self._other_characters += characters
            if event_type == TOOL_CALL_DELTA:
                self.client_calls += "name" in data
        elif event_type == TOOL_CALL_START:
            self.tool_calls += 1
            self.running_tools += 1
        elif event_type in {TOOL_CALL_END, TOOL_CALL_WAITING}:
            self.running_tools = max(0, self.running_tools - 1)  # a tool that runs again has no second start
        elif event_type == "inference_end" and "usage" in data:
            try:
                usage = Usage.model_validate(data["usage"])
            except ValidationError:
                return  # not OpenAI's form: the usage is estimated instead
            self._reported_usage = Usage(
                prompt_tokens=self._reported_usage.prompt_tokens + usage.prompt_tokens,
                completion_tokens=self._reported_usage.completion_tokens + usage.completion_tokens,
                total_tokens=self._reported_usage.total_tokens + usage.total_tokens,
            )
            self._reported_characters = self.written_characters

    def counts(self) -> dict[str, Any]:
        """Return all counts as JSON, for a checkpoint."""
        return {
            "text": self.text_characters,
            "written": self.written_characters,
            "client_calls": self.client_calls,
            "tool_calls": self.tool_calls,
            "interrupts": self.interrupts,
            "usage": self._reported_usage.model_dump(),
            "unreported": self._unreported_characters,
        }

    def restore(self, counts: dict[str, Any]) -> None:
        """Continue with the counts of a checkpoint."""
        self._text_characters = counts["text"]
        self._other_characters = counts["written"] - counts["text"]
        self.client_calls = counts["client_calls"]
        self.tool_calls = counts["tool_calls"]
        self.interrupts = counts.get("interrupts", 0)
        self._reported_usage = Usage.model_validate(counts["usage"])
        self._reported_characters = counts["written"] - counts["unreported"]

    def estimate(self, messages: list[ChatMessage], content_characters: int = 0) -> Usage:
        """Return the original bridge's estimate for everything written plus ``content_characters`` more."""
        return estimate_usage(messages, self.written_characters + content_characters)

    def usage(self, messages: list[ChatMessage]) -> Usage:
        """Return the usage so far: the sum that the inferences reported, plus an estimate for text written since."""
        if not self._reported_usage.total_tokens:
            return self.estimate(messages) if self.written_characters else Usage()
        unreported = self._unreported_characters // 4
        return Usage(
            prompt_tokens=self._reported_usage.prompt_tokens,
            completion_tokens=self._reported_usage.completion_tokens + unreported,
            total_tokens=self._reported_usage.total_tokens + unreported,
        )
