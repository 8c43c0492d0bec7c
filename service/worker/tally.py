"""What a run has shown so far: decides if it may be tried again, and what its usage is."""

from typing import Any

from pydantic import ValidationError

from service.protocol.events import TEXT, TOOL_CALL_START
from service.protocol.openai import ChatMessage, Usage, estimate_usage


class Tally:
    """Counts one attempt's events. Noted from any thread; read when the run is over, or roughly before."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.text_characters = 0
        self.tool_calls = 0
        self._told = Usage()
        self._untold_characters = 0

    @property
    def retryable(self) -> bool:
        """Whether a new attempt would repeat nothing: no text was shown, no tool was run."""
        return not (self.text_characters or self.tool_calls)

    def note(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Take note of a published event."""
        if event_type == TEXT:
            self.text_characters += len(data)
            self._untold_characters += len(data)
        elif event_type == TOOL_CALL_START:
            self.tool_calls += 1
        elif event_type == "inference_end" and "usage" in data:
            try:
                usage = Usage.model_validate(data["usage"])
            except ValidationError:
                return  # an agent's own idea of usage: then it is estimated
            self._told = Usage(
                prompt_tokens=self._told.prompt_tokens + usage.prompt_tokens,
                completion_tokens=self._told.completion_tokens + usage.completion_tokens,
                total_tokens=self._told.total_tokens + usage.total_tokens,
            )
            self._untold_characters = 0

    def estimate(self, messages: list[ChatMessage], content_characters: int | None = None) -> Usage:
        """Return the seed's estimate for the text shown, or for ``content_characters``."""
        return estimate_usage(messages, self.text_characters if content_characters is None else content_characters)

    def usage(self, messages: list[ChatMessage]) -> Usage:
        """Return the usage so far: what the inferences told, plus an estimate of what none has told yet."""
        if not self._told.total_tokens:
            return self.estimate(messages) if self.text_characters else Usage()
        untold = self._untold_characters // 4
        return Usage(
            prompt_tokens=self._told.prompt_tokens,
            completion_tokens=self._told.completion_tokens + untold,
            total_tokens=self._told.total_tokens + untold,
        )
