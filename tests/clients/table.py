"""The client suite's table, as Markdown; the same for the same pins and behaviour."""

from collections.abc import Iterable
from typing import Any, Final

from tests.clients.suite import MODES, Report

USAGE_OF: Final = {"loop": "usage, streamed", "safe": "usage, asked for", "whole": "usage, not streamed"}

HEAD: Final = """\
# Stock clients

Written by the client suite (`make clients`, then `make test`), which runs every client below, as it is released and
with its default settings, against a real front end and worker. Do not edit it: a run that sees something else fails,
and writes it anew.

| column | what was run; the text, the finish reason and the usage have to be exact, and nothing may be raised |
|---|---|
| loop | the streaming loop of the client's README |
| safe | the loop for OpenAI's own servers, which asks for usage; an answer that is replayed |
| helper | the client's helper for streams |
| whole | not streamed |
| tools | an agent that uses tools of its own, with every event there is |
| error | an agent that fails halfway; the user is shown the sentence that says so |
| silent | a tool call of 40 s without a word |
| client tools | a tool of the client's own: called, its result sent, the answer |
| responses, completions | the same by the other routes, which some clients call by default |
| cancel | the client's own way to stop; the server has to have the run as cancelled |
| usage | prompt + completion = total tokens, as the client tells them |

`-`: the client has no such thing. `not served`: the service does not offer it yet.
openai-python before 1.98.0 and openai-node before 5.11.0 break on any `event:` line: they are recognised, and get the
format `chunk` (PROTOCOL.md, 3.3). All others get named events.

"""


def markdown(reports: Iterable[Report]) -> str:
    """Return the whole document."""
    return HEAD + table(reports)


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
