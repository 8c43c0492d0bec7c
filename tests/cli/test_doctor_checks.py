"""The checks of ``agentstream doctor``, one fact at a time."""

import re
from typing import Any

import pytest

from agentstream.cli.commands.doctor import _print_results
from agentstream.cli.doctor import checks
from agentstream.cli.doctor.buffering import _NGINX, _OTHERS, PIECE_COUNT, _result_from_delays
from agentstream.cli.doctor.results import CheckResult, Level
from agentstream.store.admin.queue_state import QueueSummary
from agentstream.store.admin.server_state import ClockOffset
from tests.processes import ROOT

GOOD: dict[str, Any] = {
    "redis_version": "7.0.15",
    "role": "master",
    "cluster_enabled": 0,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "maxmemory_policy": "noeviction",
    "used_memory": 50 << 20,
    "maxmemory": 100 << 20,
    "total_system_memory": 1000 << 20,
}
FINE_QUEUE = QueueSummary(workers=1, outstanding=5)


def buffers(pubsub: str) -> str:
    """Return the value of client-output-buffer-limit in the format of CONFIG GET."""
    return f"normal 0 0 0 slave 268435456 67108864 60 pubsub {pubsub}"


CASES: dict[str, tuple[CheckResult, str]] = {
    "Redis 7": (checks.version(GOOD), "ok"),
    "Redis 10": (checks.version(GOOD | {"redis_version": "10.0.0"}), "ok"),
    "Redis 6.2": (checks.version(GOOD | {"redis_version": "6.2.14"}), "warning"),
    "Redis 6.0": (checks.version(GOOD | {"redis_version": "6.0.16"}), "fault"),
    "a primary": (checks.role(GOOD), "ok"),
    "a replica": (checks.role(GOOD | {"role": "slave", "master_host": "h", "master_port": 1}), "fault"),
    "a cluster": (checks.role(GOOD | {"cluster_enabled": 1}), "fault"),
    "a file": (checks.persistence(GOOD), "ok"),
    "the private broker": (checks.persistence(GOOD | {"aof_enabled": 0}, private=True), "ok"),
    "its memory": (checks.memory(GOOD | {"maxmemory": 0}, private=True), "ok"),
    "no file": (checks.persistence(GOOD | {"aof_enabled": 0}), "fault"),
    "a full disk": (checks.persistence(GOOD | {"aof_last_write_status": "err"}), "fault"),
    "a failed snapshot": (checks.persistence(GOOD | {"rdb_last_bgsave_status": "err"}), "fault"),
    "noeviction": (checks.eviction(GOOD), "ok"),
    "allkeys-lru": (checks.eviction(GOOD | {"maxmemory_policy": "allkeys-lru"}), "fault"),
    "volatile-ttl": (checks.eviction(GOOD | {"maxmemory_policy": "volatile-ttl"}), "fault"),
    "half full": (checks.memory(GOOD), "ok"),
    "81 % full": (checks.memory(GOOD | {"used_memory": 81 << 20}), "fault"),
    "no limit": (checks.memory(GOOD | {"maxmemory": 0}), "warning"),
    "Redis' buffers": (checks.output_buffer(buffers("33554432 8388608 60")), "ok"),
    "larger buffers": (checks.output_buffer(buffers("134217728 0 0")), "ok"),
    "a small hard limit": (checks.output_buffer(buffers("1048576 0 0")), "fault"),
    "a small soft limit": (checks.output_buffer(buffers("33554432 1048576 60")), "fault"),
    "no buffer limit": (checks.output_buffer(buffers("0 0 0")), "warning"),
    "foreign buffers": (checks.output_buffer(""), "unknown"),
    "near": (checks.latency([0.0001, 0.0002, 0.003]), "ok"),
    "far": (checks.latency([0.02, 0.02, 0.03]), "warning"),
    "stalling": (checks.latency([0.0001, 0.0002, 1.5]), "fault"),
    "one time": (checks.clock(ClockOffset(-0.5, 0)), "ok"),
    "a slow answer": (checks.clock(ClockOffset(3, 2.5)), "ok"),
    "some skew": (checks.clock(ClockOffset(-2, 0.001)), "warning"),
    "much skew": (checks.clock(ClockOffset(60, 0.001)), "fault"),
    "a worker": (checks.workers("q", FINE_QUEUE), "ok"),
    "no worker": (checks.workers("q", QueueSummary(0, 5)), "fault"),
    "some jobs": (checks.depth("q", FINE_QUEUE, 10), "ok"),
    "many jobs": (checks.depth("q", QueueSummary(1, 8), 10), "warning"),
    "many files": (checks.open_files(4096, "user 1"), "ok"),
    "files without a limit": (checks.open_files(None, "user 1"), "ok"),
    "few files": (checks.open_files(1024, "user 1"), "warning"),
    "a temporary folder": (checks.temporary_folder(None), "ok"),
    "no temporary folder": (checks.temporary_folder("no usable folder"), "warning"),
    "a full queue": (checks.depth("q", QueueSummary(1, 10), 10), "fault"),
}


@pytest.mark.parametrize(("result", "level"), CASES.values(), ids=CASES)
def test_a_fact_is_judged(result: CheckResult, level: str) -> None:
    """A good fact is ok without further text; a fault or warning has a reason and a fix."""
    assert result.level == level
    assert result.what
    assert bool(result.why) == bool(result.fix) == (level in {"fault", "warning"})


def test_a_fix_contains_the_needed_value() -> None:
    """A fix contains the exact value: twice the memory limit, or the primary of a replica."""
    nearly_full = checks.memory(GOOD | {"used_memory": 90 << 20})
    assert "CONFIG SET maxmemory 200mb" in nearly_full.fix[0]
    replica = checks.role(GOOD | {"role": "slave", "master_host": "h1", "master_port": 6380})
    assert "h1:6380" in replica.fix[0]


@pytest.mark.parametrize(
    ("delays_s", "level"),
    [
        ([0.001] * PIECE_COUNT, "ok"),
        ([5.0 + number / 100 for number in range(PIECE_COUNT)], "ok"),
        ([0.002] * (PIECE_COUNT - 5) + [0.9] * 5, "ok"),
        ([(PIECE_COUNT - number) / 10 for number in range(PIECE_COUNT)], "fault"),
        ([(10 - number % 10) / 10 for number in range(PIECE_COUNT)], "fault"),
    ],
    ids=["at once", "far but even", "a stall", "all at the end", "ten at a time"],
)
def test_buffered_pieces_are_a_fault(delays_s: list[float], level: str) -> None:
    """A stream is buffered if most pieces are much slower than the fastest; a single stall is no fault."""
    assert _result_from_delays(delays_s, "").level == level


@pytest.mark.parametrize(
    ("path", "directives", "removed"),
    [
        ("nginx.conf", ["proxy_buffering off;", "gzip off;", "proxy_http_version 1.1;"], ["proxy_ignore_headers"]),
        ("Caddyfile", [], ["encode", "response_buffers", "flush_interval"]),
        ("haproxy.cfg", [], ["compression"]),
    ],
)
def test_the_advice_agrees_with_the_shipped_configuration(path: str, directives: list[str], removed: list[str]) -> None:
    """The shipped file of each proxy has the directives that the doctor advises, and none that it tells to remove."""
    shipped = re.sub(r"(?m)\s*#.*$", "", (ROOT / "deploy" / path).read_text())
    advice = " ".join(line for line in (*_NGINX, *_OTHERS) if line.startswith("nginx") or path in line)
    assert [directive for directive in directives if directive not in advice or directive not in shipped] == []
    assert [name for name in removed if not re.search(rf"remove .*\b{name}\b", advice)] == []
    assert [name for name in removed if re.search(rf"(?m)^\s*{name}\b", shipped)] == []


def test_the_fix_matches_the_server_header() -> None:
    """If the Server header names nginx, the fix is only for nginx; otherwise it lists other proxies too."""
    delays_s = [(PIECE_COUNT - number) / 10 for number in range(PIECE_COUNT)]
    assert "proxy_buffering off;" in _result_from_delays(delays_s, "nginx/1.22.1").fix[0]
    assert not any("Caddy" in line for line in _result_from_delays(delays_s, "nginx/1.22.1").fix)
    assert any("Caddy" in line for line in _result_from_delays(delays_s, "cloud").fix)


@pytest.mark.parametrize(
    ("levels", "last"),
    [(["ok", "ok"], "no faults found"), (["ok", "warning", "fault", "fault"], "faults: 2, warnings: 1")],
)
def test_the_last_line_counts_the_findings(capsys: pytest.CaptureFixture[str], levels: list[Level], last: str) -> None:
    """The last line of the report says how many faults and warnings there are, or that there are none."""
    _print_results([CheckResult("name", level, "what") for level in levels])
    assert capsys.readouterr().out.splitlines()[-1] == last
