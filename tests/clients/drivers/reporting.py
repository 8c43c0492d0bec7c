"""What the Python drivers share: a driver runs its modes and prints, as JSON lines, what its user would see.

``driver.py BASE_URL [FEATURE ...]``. The features name what the service can do beyond plain chat; a mode that needs
one that is absent is reported as absent. Runs in the environment of its client: the standard library only.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BASE_URL = sys.argv[1]
FEATURES = sys.argv[2:]
CANCEL_AFTER_PIECES = 3  # pieces of a long answer, after which a user presses stop


class Observation:
    """What a user of a client sees of one answer."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told: dict[str, Any] = {"text": "", "pieces": 0, "raised": None}

    @property
    def pieces(self) -> int:
        return int(self._told["pieces"])

    def add(self, text: str | None) -> None:
        """Take one more piece of text."""
        if text:
            self._told["text"] += text
            self._told["pieces"] += 1
            self._told.setdefault("first_s", round(time.monotonic() - self._began, 3))

    def record(self, **facts: Any) -> None:
        """Take what else the client told: usage, finish, call. None takes nothing back; the untold is left out."""
        for name, value in facts.items():
            if value is not None:
                self._told[name] = value
            else:
                self._told.setdefault(name, None)
        if facts.get("usage") is not None:
            self._told["usages"] = self._told.get("usages", 0) + 1

    def as_json(self, mode: str) -> str:
        return json.dumps({"mode": mode, **self._told})


def counts(usage: Any, *names: str) -> list[Any] | None:
    """Return prompt, completion and total tokens, under the client's names for them."""
    names = names or ("prompt_tokens", "completion_tokens", "total_tokens")
    if usage is None:
        return None
    return [usage.get(name) if isinstance(usage, dict) else getattr(usage, name) for name in names]


Mode = Callable[[Observation], None]
_modes: dict[str, tuple[Mode, str | None]] = {}


def mode(name: str, *, needs: str | None = None) -> Callable[[Mode], Mode]:
    """Register a mode; one that is called silent runs beside the others."""

    def register(function: Mode) -> Mode:
        _modes[name] = (function, needs)
        return function

    return register


def drive(version: str) -> None:
    """Run every mode, and print a line for each."""
    print(json.dumps({"version": version}), flush=True)
    beside = [threading.Thread(target=_attempt, args=[name]) for name in _modes if name == "silent"]
    for thread in beside:
        thread.start()
    for name in _modes:
        if name != "silent":
            _attempt(name)
    for thread in beside:
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
        except Exception as exc:  # noqa: BLE001 -- that nothing is raised is what is tested
            seen.record(raised=f"{type(exc).__name__}: {exc}")
    print(seen.as_json(name), flush=True)
