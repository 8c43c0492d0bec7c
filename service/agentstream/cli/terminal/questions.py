"""Asks the questions of an agent in the terminal."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from agentstream.cli.terminal.display import sanitize
from agentstream.cli.terminal.interrupts import read_line
from agentstream.cli.terminal.layout import format_time
from agentstream.cli.terminal.panel import is_terminal
from agentstream.protocol.interrupts import APPROVAL, APPROVAL_SCHEMA, Interrupt, reason_against_answer

T = TypeVar("T")

_YES: Final = frozenset({"y", "yes"})
_NO: Final = frozenset({"n", "no"})


def can_ask() -> bool:
    """Return whether a person can be asked here."""
    return sys.stdin.isatty() and is_terminal(sys.stdout) and is_terminal(sys.stderr)


def ask_people(asked: Sequence[Interrupt]) -> dict[str, Any]:
    """Ask every question and return the answers by the ids. Raises KeyboardInterrupt and EOFError."""
    return {each.id: _ask(each) for each in asked}


def how_to_answer(run_id: str, asked: Sequence[Interrupt]) -> str:
    """Return a text that says what a run waits for, and how to answer it later."""
    lines = [sanitize(each.sentence) for each in asked]
    if asked:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(each.expires_at for each in asked)))
        lines.append(f"the run waits until {until}; to answer: agentstream answer {run_id}")
    return "\n".join(lines)


def _ask(asked: Interrupt) -> Any:  # noqa: ANN401 -- JSON
    _show(asked)
    if asked.kind == APPROVAL and asked.schema == APPROVAL_SCHEMA:
        approve = _until_valid("Approve? [y/n] ", _yes_or_no)
        reason = read_line("Reason (optional): ").strip()
        return {"approve": approve} | ({"reason": reason} if reason else {})
    if asked.schema is None:
        return _until_valid("Your answer: ", _some_text)
    required = asked.schema.get("required", [])
    answer = {}
    for name, field in asked.schema["properties"].items():
        value = _ask_field(name, field, required=name in required)
        if value is not None:
            answer[name] = value
    return answer


def _show(asked: Interrupt) -> None:
    click.echo(sanitize(asked.sentence), err=True)
    if isinstance(asked.payload, dict) and asked.kind != APPROVAL:
        rest = {name: value for name, value in asked.payload.items() if name != "message"}
        if rest:
            click.echo(sanitize(json.dumps(rest, ensure_ascii=False, indent=2)), err=True)
    left_s = asked.expires_at - time.time()
    click.secho(f"  ctrl-C leaves the question open; {format_time(max(0, left_s))} are left", dim=True, err=True)


def _ask_field(name: str, field: dict[str, Any], *, required: bool) -> Any:  # noqa: ANN401 -- JSON
    """Ask for one field of a form; return None if the person leaves an optional field out."""
    title = sanitize(str(field.get("title", name)))
    kind = "y/n" if field["type"] == "boolean" else field["type"]
    choices = field.get("enum")
    if choices:
        names = field.get("enumNames", choices)
        for number, label in enumerate(names, 1):
            click.echo(f"  {number}  {sanitize(str(label))}", err=True)
        kind = f"1-{len(choices)}"
    if "description" in field:
        click.secho(f"  {sanitize(str(field['description']))}", dim=True, err=True)
    default = field.get("default")
    note = f", default {sanitize(json.dumps(default))}" if default is not None else "" if required else ", optional"

    def parse(text: str) -> Any:  # noqa: ANN401 -- JSON
        if not text and (default is not None or not required):
            return default
        value = _value_of(text, field)
        one = Interrupt("", "", None, {"type": "object", "properties": {name: field}}, 0)
        if reason := reason_against_answer(one, {name: value}):
            raise ValueError(reason)
        return value

    return _until_valid(f"{title} ({kind}{note}): ", parse)


def _value_of(text: str, field: dict[str, Any]) -> Any:  # noqa: ANN401 -- JSON
    if choices := field.get("enum"):
        if text.isdecimal() and 1 <= int(text) <= len(choices):
            return choices[int(text) - 1]
        return next((choice for choice in choices if str(choice) == text), text)
    parsers: dict[str, Callable[[str], Any]] = {"boolean": _yes_or_no, "integer": int, "number": float}
    return parsers.get(field["type"], str)(text)


def _until_valid(prompt: str, parse: Callable[[str], T]) -> T:
    while True:
        try:
            return parse(read_line(prompt).strip())
        except ValueError as exc:
            click.echo(f"  {sanitize(str(exc))}", err=True)


def _yes_or_no(text: str) -> bool:
    if text.lower() in _YES | _NO:
        return text.lower() in _YES
    message = "answer y or n"
    raise ValueError(message)


def _some_text(text: str) -> str:
    if text:
        return text
    message = "the answer is empty"
    raise ValueError(message)
