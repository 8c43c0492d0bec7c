"""Shows the stream of a run: the answer on standard output, the agent's events on standard error."""

import json
import sys
from typing import Any, Final

import click

from agentstream.cli.exits import Failed
from agentstream.stream import sse

MAX_ACTIVITY_CHARACTERS: Final = 200
DONE: Final = "[DONE]"

# Text of a model may contain escape sequences, which would control the terminal. Line feeds and tabs are harmless.
_CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}") | {
    ord("\t"): "\t",
    ord("\n"): "\n",
    ord("\r"): "",
}


def sanitize(text: str) -> str:
    """Return ``text`` with control characters replaced; carriage returns are removed."""
    return text.translate(_CONTROLS)


class Display:
    """Shows one stream and keeps its state, also over several connections."""

    def __init__(self) -> None:
        """Start with an empty display."""
        self.run_id = ""
        self.last_event_id = ""
        self._answer: list[str] = []
        self._finished = False
        self._error: str | None = None
        self._open_line = False  # True while the terminal's cursor is not at the start of a line
        self._in_reasoning = False
        self._to_terminal = sys.stdout.isatty()

    @property
    def answer(self) -> str:
        """The text of the answer so far."""
        return "".join(self._answer)

    def receive(self, message: sse.Message) -> bool:
        """Show a message of the stream. Returns True for the last message."""
        self.last_event_id = message.last_event_id or self.last_event_id
        if message.data == DONE:
            return True
        data: dict[str, Any] = json.loads(message.data)
        if "error" in data and "choices" not in data:
            self._error = str(data["error"].get("message"))
            return False
        self.run_id = data.get("id") or self.run_id
        if message.event != "message":
            self._activity(message.event, data)
            return False
        for choice in data["choices"]:
            delta = choice["delta"]
            if reasoning := delta.get("reasoning_content"):
                self._reasoning(reasoning)
            if content := delta.get("content"):
                self._content(content)
            for call in delta.get("tool_calls") or ():
                if name := call["function"].get("name"):
                    self.note(f"calls your tool {name}")
            self._finished = self._finished or choice["finish_reason"] is not None
        return False

    def close(self) -> None:
        """End the line of the answer. Raises Failed if the run failed or its final chunk is missing."""
        self._end_reasoning()
        if self._answer or self._finished:
            click.echo()
        self._open_line = False
        if self._error is not None:
            raise Failed(sanitize(self._error))
        if not self._finished:
            message = "the stream ended without its final chunk: the answer is incomplete"
            raise Failed(message)

    def end_line(self) -> None:
        """End the current line, so that other output starts on a new line."""
        self._end_reasoning()
        if self._open_line:
            click.echo(err=True)
            self._open_line = False

    def note(self, text: str) -> None:
        """Print one dimmed line to standard error, beside the answer."""
        self.end_line()
        one_line = " ".join(sanitize(text).split("\n"))
        click.secho(f"  · {one_line[:MAX_ACTIVITY_CHARACTERS]}", dim=True, err=True)

    def _content(self, text: str) -> None:
        self._end_reasoning()
        self._answer.append(text)
        click.echo(sanitize(text) if self._to_terminal else text, nl=False)
        sys.stdout.flush()
        self._open_line = self._to_terminal and not text.endswith("\n")

    def _reasoning(self, text: str) -> None:
        if not self._in_reasoning:
            self.end_line()
            self._in_reasoning = True
            click.secho("  · ", dim=True, nl=False, err=True)
        click.secho(sanitize(text), dim=True, nl=False, err=True)

    def _end_reasoning(self) -> None:
        if self._in_reasoning:
            self._in_reasoning = False
            click.echo(err=True)

    def _activity(self, event: str, data: dict[str, Any]) -> None:
        line = {
            "inference_start": f"thinking with {data.get('engine', data.get('model'))}",
            "tool_call_start": f"{data.get('tool')} {data.get('arguments')}",
            "tool_call_end": f"{data.get('tool')} -> {'' if data.get('success') else 'failed: '}{data.get('result')}",
        }.get(event)
        if line:
            self.note(line)
