"""Shared code of the Python drivers. A driver runs its modes and prints the observations of a user as JSON lines.

Usage: ``driver.py BASE_URL [FEATURE ...]``. The features name the abilities of the service beyond plain chat. If a mode
needs a missing feature, it is reported as absent. This module runs in the environment of the client, so it uses only
the standard library.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BASE_URL = sys.argv[1]
FEATURES = sys.argv[2:]
CANCEL_AFTER_PIECES = 3  # the user stops a long answer after so many pieces


class Observation:
    """The observations of a user during one answer."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._fields: dict[str, Any] = {"text": "", "pieces": 0, "raised": None}

    @property
    def pieces(self) -> int:
        return int(self._fields["pieces"])

    def add(self, text: str | None) -> None:
        """Add a piece of text."""
        if text:
            self._fields["text"] += text
            self._fields["pieces"] += 1
            self._fields.setdefault("first_s", round(time.monotonic() - self._began, 3))

    def record(self, **facts: Any) -> None:
        """Record other facts from the client: usage, finish, call.

        None does not replace an earlier value. Omit a fact that the client does not report.
        """
        for name, value in facts.items():
            if value is not None:
                self._fields[name] = value
            else:
                self._fields.setdefault(name, None)
        if facts.get("usage") is not None:
            self._fields["usages"] = self._fields.get("usages", 0) + 1

    def as_json(self, mode: str) -> str:
        return json.dumps({"mode": mode, **self._fields})


def counts(usage: Any, *names: str) -> list[Any] | None:
    """Return prompt, completion and total tokens. ``names`` are the client's names for them."""
    names = names or ("prompt_tokens", "completion_tokens", "total_tokens")
    if usage is None:
        return None
    return [usage.get(name) if isinstance(usage, dict) else getattr(usage, name) for name in names]


Mode = Callable[[Observation], None]
_modes: dict[str, tuple[Mode, str | None]] = {}


def mode(name: str, *, needs: str | None = None) -> Callable[[Mode], Mode]:
    """Register a mode. The mode ``silent`` runs concurrently with the others."""

    def register(function: Mode) -> Mode:
        _modes[name] = (function, needs)
        return function

    return register


def drive(version: str) -> None:
    """Run every mode and print a line for each."""
    print(json.dumps({"version": version}), flush=True)
    concurrent = [threading.Thread(target=_attempt, args=[name]) for name in _modes if name == "silent"]
    for thread in concurrent:
        thread.start()
    for name in _modes:
        if name != "silent":
            _attempt(name)
    for thread in concurrent:
        thread.join()
    print(json.dumps({"done": len(_modes)}), flush=True)


def _attempt(name: str) -> None:
    function, needs = _modes[name]
    seen = Observation()
    if needs is not None and needs not in FEATURES:
        seen.record(absent=needs)
    else:
        try:
            function(seen)
        except Exception as exc:  # noqa: BLE001 -- the suite tests that nothing is raised
            seen.record(raised=f"{type(exc).__name__}: {exc}")
    print(seen.as_json(name), flush=True)
