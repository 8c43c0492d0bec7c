"""The Lua scripts by name. Each file holds one script; its first line states the purpose."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """The source of a script, and the SHA-1 that EVALSHA needs."""

    source: bytes
    sha: bytes


def _read(name: str) -> Script:
    source = files("agentstream.store").joinpath("lua", f"{name}.lua").read_bytes()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


SCRIPTS: Final[Mapping[str, Script]] = {
    name: _read(name)
    for name in (
        "admit",
        "count_workers",
        "append",
        "answer",
        "backlog",
        "heartbeat",
        "input",
        "begin",
        "cancel",
        "create_run",
        "finish",
        "forget",
        "last_entry",
        "check_limits",
        "open_runs",
        "probe",
        "progress",
        "prune_consumers",
        "publish",
        "reclaim",
        "hand_back",
        "register_idempotency_key",
        "renew",
    )
}
