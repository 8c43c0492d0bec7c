"""The client suite's table in deploy/guides/clients.md. The same pins and behaviour give the same table."""

import re
from collections.abc import Iterable
from typing import Any, Final

from tests.clients.suite import MODES, Report

USAGE_OF: Final = {"loop": "usage, streamed", "safe": "usage, asked for", "whole": "usage, not streamed"}

TABLE: Final = re.compile(r"(<!-- clients -->\n).*?(<!-- end of clients -->)", re.DOTALL)


def with_table(document: str, reports: Iterable[Report]) -> str:
    """Return the guide with this table between its markers."""
    written = table(reports)
    return TABLE.sub(lambda match: match[1] + written + match[2], document)


def table(reports: Iterable[Report]) -> str:
    """Return a row for each client."""
    head = ["client", "version", *MODES, *USAGE_OF.values()]
    rows = [head, ["---"] * len(head)]
    for report in reports:
        modes = [_verdict(report, mode) for mode in MODES]
        usages = [_usage(report.seen.get(mode, {})) for mode in USAGE_OF]
        rows.append([report.client.name, report.version, *modes, *usages])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _verdict(report: Report, mode: str) -> str:
    if mode in report.complaints:
        return "**FAILS**"
    if mode not in report.seen:
        return "-"
    return "not served" if "absent" in report.seen[mode] else "OK"


def _usage(seen: dict[str, Any]) -> str:
    if not seen.get("usage"):
        return "-"
    prompt, completion, total = seen["usage"]
    return f"{prompt} + {completion} = {total}"
