"""A trace as an indented tree."""

from collections.abc import Iterator, Sequence

from tests.telemetry.collector import ReceivedSpan

SHOWN = {
    "http.response.status_code": "HTTP {}",
    "agentstream.run.attempt": "attempt {}",
    "agentstream.run.status": "{}",
    "agentstream.cancelled": "cancelled",
    "error.type": "error {}",
    "gen_ai.usage.output_tokens": "{} tokens",
}


def format_trace(spans: Sequence[ReceivedSpan], *, shorten: bool = False) -> list[str]:
    """Return the lines of a trace: for each span its start and duration in ms, its process and some attributes."""
    ordered = sorted(spans, key=lambda span: span.begin_s)
    known = {span.id for span in ordered}
    begin_s = ordered[0].begin_s
    rows = [row for root in ordered if root.parent not in known for row in _rows(root, ordered, 0)]
    width = max(len("  " * depth + span.name) for depth, span in rows)
    processes = {span.process for span in ordered}
    took_s = max(span.end_s for span in ordered) - begin_s
    trace = f"{ordered[0].trace[:8]}…" if shorten else ordered[0].trace
    lines = [f"trace {trace}: {len(ordered)} spans of {len(processes)} processes, {took_s * 1000:.0f} ms"]
    for depth, span in rows:
        name, pid = span.process
        facts = ", ".join(form.format(span.attributes[key]) for key, form in SHOWN.items() if key in span.attributes)
        at, took = f"+{(span.begin_s - begin_s) * 1000:.1f}", f"{(span.end_s - span.begin_s) * 1000:.1f} ms"
        line = f"{'  ' * depth + span.name:<{width}}  {at:>8}  {took:>10}  {name} {pid}"
        lines.append(f"{line}  {facts}".rstrip())
    return lines


def _rows(span: ReceivedSpan, spans: Sequence[ReceivedSpan], depth: int) -> Iterator[tuple[int, ReceivedSpan]]:
    yield depth, span
    for child in spans:
        if child.parent == span.id:
            yield from _rows(child, spans, depth + 1)
