"""The report of ``agentstream doctor --json``. Uses only the standard library."""

import json


def complaints(report: str) -> dict[str, str]:
    """Return what the checks found that are not ok. The time of a PING does not count: a busy machine delays it."""
    checks = {check["name"]: check for check in json.loads(report)["checks"]}
    assert checks["latency"]["level"] in {"ok", "warning"}, checks["latency"]
    return {name: check["what"] for name, check in checks.items() if check["level"] != "ok" and name != "latency"}
