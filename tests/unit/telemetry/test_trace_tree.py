"""The printed form of a trace."""

from tests.telemetry.collector import ReceivedSpan
from tests.telemetry.trace_tree import format_trace


def span(
    name: str, begin_s: float, took_s: float, parent: str = "", pid: int = 1, **attributes: object
) -> ReceivedSpan:
    return ReceivedSpan(
        trace="t" * 32,
        id=name,
        parent=parent,
        name=name,
        kind="internal",
        begin_s=begin_s,
        end_s=begin_s + took_s,
        failed=False,
        message="",
        attributes={key.replace("__", "."): value for key, value in attributes.items()},
        links=[],
        resource={"service.name": "ours", "process.pid": pid},
    )


def test_a_trace_is_drawn_as_a_tree_by_time() -> None:
    """Children are below their parent in the order of their start, with offset, duration and process."""
    spans = [
        span("late", 1.2, 0.1, "root"),
        span("early", 1.1, 0.05, "root", pid=2, error__type="oops"),
        span("root", 1.0, 0.5, "a caller elsewhere"),
    ]
    assert format_trace(spans, shorten=True) == [
        "trace tttttttt…: 3 spans of 2 processes, 500 ms",
        "root         +0.0    500.0 ms  ours 1",
        "  early    +100.0     50.0 ms  ours 2  error oops",
        "  late     +200.0    100.0 ms  ours 1",
    ]
