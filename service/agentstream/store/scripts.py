"""The Lua scripts by name. Each file holds one script; its first line states the purpose.

A script publishes to the channel of a run, or to a control channel, whose name it makes from an argument. In a cluster
the channels of runs are sharded channels, so there SPUBLISH takes the place of PUBLISH. Control channels stay ordinary
ones: they are rare, and a cluster passes their messages to all servers.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """The source of a script, and the SHA-1 that EVALSHA needs."""

    source: bytes
    sha: bytes


def _script(source: bytes) -> Script:
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def _read(name: str) -> Script:
    return _script(files("agentstream.store").joinpath("lua", f"{name}.lua").read_bytes())


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
        "give",
        "last_entry",
        "check_limits",
        "open_runs",
        "probe",
        "progress",
        "prune_consumers",
        "publish",
        "readmit",
        "reclaim",
        "hand_back",
        "register_idempotency_key",
        "renew",
        "verify",
    )
}
CLUSTER_SCRIPTS: Final[Mapping[str, Script]] = {
    name: _script(re.sub(rb"'PUBLISH', (?!ARGV)", b"'SPUBLISH', ", script.source)) for name, script in SCRIPTS.items()
}
