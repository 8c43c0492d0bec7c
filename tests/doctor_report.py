"""The report of ``agentstream doctor --json``. Uses only the standard library."""

import json
from collections.abc import Mapping
from typing import Any


def complaints(report: str) -> dict[str, str]:
    """Return the findings of the checks in a report that are not ok; see ``findings``."""
    return findings({check["name"]: check for check in json.loads(report)["checks"]})


def findings(checks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the findings of the checks that are not ok.

    A PING that takes long is none of them, because a busy machine delays it.
    """
    assert checks["latency"]["level"] in {"ok", "warning"}, checks["latency"]
    return {name: check["what"] for name, check in checks.items() if check["level"] != "ok" and name != "latency"}
