"""Shows the stream of a run: the answer on standard output, the agent's events on standard error."""

import json
import sys
import time
from functools import partial
from typing import Any, Final

import click

from agentstream.cli.exits import Cancelled, Failed
from agentstream.cli.terminal.word_wrap import WordWrap, terminal_columns
from agentstream.errors import CANCELLED, CANCELLED_MESSAGE
from agentstream.protocol.events import AGENT_PATH, AGENT_REASONING, AGENT_TEXT, INPUT_APPLIED, INTERRUPT, TOOL_RESULTS
from agentstream.protocol.interrupts import Interrupt
from agentstream.stream import sse

MAX_ACTIVITY_CHARACTERS: Final = 200
NOTED_PAUSE_S: Final = 0.5  # a shorter pause before another worker continues is not worth a number
DONE: Final = "[DONE]"
_PIECES: Final = frozenset({AGENT_TEXT, AGENT_REASONING})  # events that hold a piece of a sub-agent's text
_CHUNK_FIELDS: Final = frozenset({"id", "object", "created", "model", "choices", AGENT_PATH})

_NOTE: Final = "  · "

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
        """Start with an empty display. Its times count from now."""
        self._began_s = time.monotonic()
        self._first_text_s: float | None = None
        self._wrap = WordWrap(partial(terminal_columns, sys.stdout))
        self._note_wrap = WordWrap(partial(terminal_columns, sys.stderr), indent=len(_NOTE))
        self._received_s: float | None = None  # the time of the last frame
        self._attempt = 0  # the latest one that has shown something
        self.run_id = ""
        self.last_event_id = ""
        self._answer: list[str] = []
        self.parked: list[Interrupt] = []  # what the run waits for, if its stream has ended for that reason
        self._asked = False  # the agent has asked people since its attempt began
        self._hint_due = False  # nobody has said yet how to answer a question of a run that is not parked
        self._finished = False
        self._error: Failed | None = None
        self._open_line = False  # True while the terminal's cursor is not at the start of a line
        self._in_reasoning = False
        self._speaker = ""  # of the open line of reasoning: the path of a sub-agent; empty for the agent itself
        self._to_terminal = sys.stdout.isatty()

    @property
    def answer(self) -> str:
        """The text of the answer so far."""
        return "".join(self._answer)

    def receive(self, frame: sse.ReceivedFrame) -> bool:
        """Show a frame of the stream. Returns True for the last frame."""
        # Text without a position is not part of the answer: it says in words what the run waits for.
        has_position = frame.last_event_id not in {"", self.last_event_id}
        self.last_event_id = frame.last_event_id or self.last_event_id
        if frame.data == DONE:
            return True
        data: dict[str, Any] = json.loads(frame.data)
        if "error" in data and "choices" not in data:
            if data["error"].get("code") == CANCELLED:
                self._error = Cancelled(CANCELLED_MESSAGE)
            else:
                self._error = Failed(sanitize(str(data["error"].get("message"))))
            return False
        self.run_id = data.get("id") or self.run_id
        self.parked = []
        self._note_takeover(frame, data)
        if frame.event != "message":
            self._activity(frame.event, data)
            return False
        if data.get("status") == "requires_action":
            self._hint_due = False
            self.parked = [Interrupt.from_json(asked) for asked in data["interrupts"]]
        else:
            self._chunk(data, has_position=has_position)
        return False

    def _chunk(self, data: dict[str, Any], *, has_position: bool) -> None:
        for choice in data["choices"]:
            delta = choice["delta"]
            if reasoning := delta.get("reasoning_content"):
                self._reasoning(reasoning)
            if (content := delta.get("content")) and has_position:
                self._content(content)
            for call in delta.get("tool_calls") or ():
                if name := call["function"].get("name"):
                    self.note(f"calls your tool {name}")
            self._finished = self._finished or choice["finish_reason"] is not None
        if unread := data.get("unapplied_inputs"):
            self.note(f"the agent has not read {', '.join(map(str, unread))}")

    def idle(self) -> None:
        """Note how a question can be answered, if the agent waits in its worker. Call this for each keepalive."""
        if self._hint_due:
            self._hint_due = False
            self.note(f"to answer it: agentstream answer {self.run_id}")

    def close(self) -> None:
        """End the line of the answer; if the run waits for people, only the line on the terminal.

        Raises Failed if the run failed or its final chunk is missing, and Cancelled if the run was cancelled.
        """
        if self.parked:
            self.end_line()
            return
        self._end_reasoning()
        if self._answer or self._finished:
            click.echo()
        self._wrap.restart()
        self._open_line = False
        if self._error is not None:
            raise self._error
        if not self._finished:
            message = "the stream ended without its final chunk: the answer is incomplete"
            raise Failed(message)

    def end_line(self) -> None:
        """End the current line, so that other output starts on a new line."""
        self._end_reasoning()
        self._wrap.restart()
        if self._open_line:
            click.echo(err=True)
            self._open_line = False

    def note(self, text: str) -> None:
        """Print one dimmed line to standard error, beside the answer."""
        self.end_line()
        one_line = " ".join(sanitize(text).split("\n"))
        self._note_wrap.restart()
        click.secho(f"{_NOTE}{self._note_wrap.feed(one_line[:MAX_ACTIVITY_CHARACTERS])}", dim=True, err=True)

    def note_times(self) -> None:
        """Print how long the answer took."""
        now_s = time.monotonic()
        first = "" if self._first_text_s is None else f", first text after {self._first_text_s - self._began_s:.1f} s"
        self.note(f"{now_s - self._began_s:.1f} s{first}")

    def _note_takeover(self, frame: sse.ReceivedFrame, data: dict[str, Any]) -> None:
        """Note that another worker continues the run, if the frame is the first of an agent in a new attempt.

        The attempt is the first number of the frame's id, for example of ``2-17``. It is 0 before the first attempt.
        """
        received_s, self._received_s = self._received_s, time.monotonic()
        first, _, _ = frame.last_event_id.partition("-")
        attempt = int(first) if first.isdecimal() else 0
        if attempt <= self._attempt or not _comes_from_agent(frame.event, data):
            return
        if self._asked:  # people have answered, or the time for it is over
            self._asked = False
        elif self._attempt:
            pause_s = 0.0 if received_s is None else self._received_s - received_s
            after = f" after {pause_s:.1f} s" if pause_s >= NOTED_PAUSE_S else ""
            self.note(f"another worker continues the run{after}")
        self._attempt = attempt

    def _content(self, text: str) -> None:
        self._end_reasoning()
        if self._first_text_s is None:
            self._first_text_s = time.monotonic()
        self._answer.append(text)
        click.echo(self._wrap.feed(sanitize(text)) if self._to_terminal else text, nl=False)
        sys.stdout.flush()
        self._open_line = self._to_terminal and not text.endswith("\n")

    def _reasoning(self, text: str, speaker: str = "") -> None:
        """Show a piece of the model's reasoning, or of the text of a sub-agent, the ``speaker``."""
        if speaker != self._speaker:
            self._end_reasoning()
            self._speaker = speaker
        if not self._in_reasoning:
            self.end_line()
            self._in_reasoning = True
            self._note_wrap.restart()
            click.secho(f"{_NOTE}{self._note_wrap.feed(speaker)}", dim=True, nl=False, err=True)
        click.secho(self._note_wrap.feed(sanitize(text)), dim=True, nl=False, err=True)

    def _end_reasoning(self) -> None:
        if self._in_reasoning:
            self._in_reasoning = False
            click.echo(err=True)

    def _activity(self, event: str, data: dict[str, Any]) -> None:
        path = _path_of(data)
        if event == INTERRUPT:
            self._asked = self._hint_due = True
            self.note(path + Interrupt.from_json({**data, "id": data.get("event_id", "")}).sentence)
            return
        if event == INPUT_APPLIED:
            for item in data["inputs"]:
                self.note(f"a message to the agent: {_text_of(item['message'])}")
            return
        if event in _PIECES:
            self._reasoning(str(data.get("text", "")), path)
            return
        line = {
            "agent_turn_start": path,
            "inference_start": f"thinking with {data.get('engine', data.get('model'))}",
            "inference_end": "",
            "tool_call_start": f"{data.get('tool')} {data.get('arguments')}",
            "tool_call_end": f"{data.get('tool')} -> {'' if data.get('success') else 'failed: '}{data.get('result')}",
            TOOL_RESULTS: "",
        }.get(event)
        if line is None:
            line = f"{event} {_own_fields(data)}".rstrip()
        if line:
            self.note(line if line == path else path + line)


def _path_of(data: dict[str, Any]) -> str:
    """Return the path of the sub-agent that emitted an event, to begin a line; empty for the agent itself."""
    path = data.get(AGENT_PATH)
    return f"{sanitize(' > '.join(map(str, path)))}: " if isinstance(path, list) and path else ""


def _text_of(message: dict[str, Any]) -> str:
    """Return the text of a chat message, for a note."""
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _own_fields(data: dict[str, Any]) -> str:
    """Return the fields of an agent's own event as JSON, without those of the chunk."""
    own = {name: value for name, value in data.items() if name not in _CHUNK_FIELDS}
    return json.dumps(own, ensure_ascii=False) if own else ""


def _comes_from_agent(event: str, data: dict[str, Any]) -> bool:
    """Return whether a frame shows that an agent runs. The front end itself sends line breaks and the end of a run."""
    if event != "message":
        return event != TOOL_RESULTS
    choice = next(iter(data["choices"]), None)
    if choice is None or "agent_error" in data:
        return False
    delta = choice["delta"]
    shown = delta.get("reasoning_content") or delta.get("tool_calls") or (delta.get("content") or "").strip()
    return bool(shown or choice["finish_reason"])
