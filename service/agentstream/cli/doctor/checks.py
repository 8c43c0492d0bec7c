"""What ``agentstream doctor`` makes of the facts: what is wrong, why it matters, and the exact change."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from agentstream.store.admin.server_state import ClockOffset, QueueSummary

Level = Literal["ok", "warning", "fault", "unknown"]

MIN_VERSION: Final = (6, 2)  # XAUTOCLAIM
PREFERRED_VERSION: Final = (7, 0)  # XINFO STREAM tells how many jobs were removed, which is what Retry-After is made of
MEMORY_FAULT_RATIO: Final = 0.8  # of maxmemory: a burst of runs is a few per cent
MAXMEMORY_RATIO: Final = 0.7  # left to Redis; copy-on-write while it rewrites its file takes the rest
# Redis' own defaults (1.3 s at 100,000 tokens/s); below them front ends are cut by ordinary bursts.
MIN_BUFFER_BYTES: Final = 32 << 20
MIN_SOFT_BUFFER_BYTES: Final = 8 << 20
SLOW_PING_S: Final = 0.005  # a run waits for about six of them before its first event
STALL_S: Final = 1.0  # workers take a broker that was silent for so long for one that was away (store.queue.STALL_S)
SKEW_WARNING_S: Final = 1.0
SKEW_FAULT_S: Final = 5.0  # "within a few seconds": PROTOCOL.md, 4.5
QUEUE_WARNING_RATIO: Final = 0.8


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's outcome. ``fix`` holds lines to be typed or followed."""

    name: str
    level: Level
    what: str
    why: str = ""
    fix: Sequence[str] = ()


def version(info: dict[str, Any]) -> CheckResult:
    """Judge what server this is."""
    name, text = "version", str(info.get("redis_version", "0"))
    numbers = tuple(map(int, re.findall(r"\d+", text)[:2]))
    what = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {text}"
    fix = ("install Redis 7 or newer, or Valkey; replicate to it, then fail over (REPLICAOF, FAILOVER)",)
    if numbers < MIN_VERSION:
        return CheckResult(
            name, "fault", what, "jobs of lost workers cannot be taken over: XAUTOCLAIM came with 6.2", fix
        )
    if numbers < PREFERRED_VERSION:
        why = "a full queue cannot tell callers when to try again: Retry-After is a guess"
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", what)


def role(info: dict[str, Any]) -> CheckResult:
    """Judge whether this server takes writes for all keys."""
    name = "role"
    if info.get("cluster_enabled"):
        why = "names of one script may lie on several nodes; Redis Cluster is not supported"
        return CheckResult(name, "fault", "this is a node of a cluster", why, ("set REDIS_URL to a server of its own",))
    if info.get("role") != "master":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        fix = (f"set REDIS_URL to its primary, {primary}",)
        return CheckResult(name, "fault", "this is a replica", "it refuses writes, so no run can be queued", fix)
    return CheckResult(name, "ok", "a primary")


def persistence(info: dict[str, Any]) -> CheckResult:
    """Judge what a restart of the server would leave."""
    name = "append-only file"
    if not info.get("aof_enabled"):
        return CheckResult(
            name,
            "fault",
            "there is none",
            "a restart of Redis loses what it holds: queued jobs, ended runs, idempotency keys, limits",
            ("CONFIG SET appendonly yes", "in redis.conf: appendonly yes, appendfsync everysec"),
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        why = "Redis refuses every write until it can write to its disk again"
        return CheckResult(name, "fault", "it cannot be written", why, ("free space on the disk of Redis' `dir`",))
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        why = "with stop-writes-on-bgsave-error Redis refuses every write"
        fix = ("free space on the disk of Redis' `dir`, then BGSAVE", 'or, as the file is enough: CONFIG SET save ""')
        return CheckResult(name, "fault", "written, but the last snapshot failed", why, fix)
    return CheckResult(name, "ok", "written")


def eviction(info: dict[str, Any]) -> CheckResult:
    """Judge what the server does when its memory is full."""
    name, policy = "eviction", str(info.get("maxmemory_policy"))
    if policy == "noeviction":
        return CheckResult(name, "ok", "noeviction")
    return CheckResult(
        name,
        "fault",
        f"maxmemory-policy is {policy}",
        "when memory is full, Redis throws away logs of open runs (their streams end as stream_lost), and with "
        "allkeys-* whole queues; without eviction new runs are refused instead, and nothing is lost",
        ("CONFIG SET maxmemory-policy noeviction", "in redis.conf: maxmemory-policy noeviction"),
    )


def memory(info: dict[str, Any]) -> CheckResult:
    """Judge how much room is left."""
    name = "memory"
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        machine = int(info.get("total_system_memory", 0))
        size = f"{int(machine * MAXMEMORY_RATIO) >> 20}mb" if machine else "<as much as it may have>"
        return CheckResult(
            name,
            "warning",
            f"{_mebibytes(used)} used, without a limit",
            "when the machine's memory is full, the kernel kills Redis instead of Redis refusing new runs",
            (f"CONFIG SET maxmemory {size}", f"in redis.conf: maxmemory {size}"),
        )
    what = f"{_mebibytes(used)} of {_mebibytes(limit)} used ({used / limit:.0%})"
    if used > MEMORY_FAULT_RATIO * limit:
        size = f"{max(1, 2 * limit >> 20)}mb"
        return CheckResult(
            name,
            "fault",
            what,
            "when it is full, events cannot be stored: open streams stall, new runs are refused",
            (
                f"CONFIG SET maxmemory {size} (and in redis.conf), if the machine has it",
                "or keep less: lower AGENTSTREAM_RUN_TTL_S or AGENTSTREAM_LOG_MAX_BYTES on the workers",
            ),
        )
    return CheckResult(name, "ok", what)


def output_buffer(limits: str) -> CheckResult:
    """Judge the value of client-output-buffer-limit: how far a front end may fall behind before it is cut."""
    name = "output buffer"
    found = re.search(r"pubsub (\d+) (\d+) (\d+)", limits)
    if found is None:
        return CheckResult(name, "unknown", f"client-output-buffer-limit reads {limits!r}")
    hard, soft, seconds = map(int, found.groups())
    what = f"pubsub {_mebibytes(hard)}, {_mebibytes(soft)} for {seconds} s"
    if not hard:
        why = "the events for a front end that hangs fill Redis' memory without bound"
        level: Level = "warning"
    elif hard < MIN_BUFFER_BYTES or 0 < soft < MIN_SOFT_BUFFER_BYTES:
        why = "a burst of events cuts a front end's connection, and all its streams must read on from their logs"
        level = "fault"
    else:
        return CheckResult(name, "ok", what)
    fix = (
        'CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60"',
        "in redis.conf: client-output-buffer-limit pubsub 32mb 8mb 60",
    )
    return CheckResult(name, level, what, why, fix)


def latency(times_s: Sequence[float]) -> CheckResult:
    """Judge sorted round-trip times."""
    name, median_s, longest_s = "latency", times_s[len(times_s) // 2], times_s[-1]
    what = f"a PING takes {median_s * 1000:.1f} ms, at most {longest_s * 1000:.1f} ms, from here"
    if longest_s > STALL_S:
        why = "workers take a silence of 1 s for a broker that is away, and take nothing over meanwhile"
        fix = ("see SLOWLOG GET and LATENCY DOCTOR; a slow command, swapping or a slow disk holds Redis up",)
        return CheckResult(name, "fault", what, why, fix)
    if median_s > SLOW_PING_S:
        why = "a run waits for about six round trips before its first event"
        fix = ("run front ends and workers in the same network zone as Redis (and doctor there, to measure theirs)",)
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", what)


def clock(difference: ClockOffset) -> CheckResult:
    """Judge how far the broker's clock and ours are apart."""
    name, offset_s = "clock", difference.offset_s
    apart_s = max(0.0, abs(offset_s) - difference.uncertainty_s)
    what = f"Redis is {abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} this machine"
    if apart_s < SKEW_WARNING_S:
        return CheckResult(name, "ok", f"within {SKEW_WARNING_S:g} s of Redis")
    why = "front ends say by their clock until when a job must have started, workers judge by theirs"
    fix = ("let the time be set from the network, here and there: timedatectl set-ntp true",)
    return CheckResult(name, "fault" if apart_s > SKEW_FAULT_S else "warning", what, why, fix)


def workers(queue: str, summary: QueueSummary) -> CheckResult:
    """Judge who would do a queue's work."""
    name = f"workers of {queue}"
    if summary.workers:
        return CheckResult(name, "ok", f"{summary.workers} alive")
    why = "its requests wait, and fail after AGENTSTREAM_QUEUE_TIMEOUT_S (60 s)"
    fix = (f"REDIS_URL=… agentstream worker --queues {queue}, with the agents' settings",)
    return CheckResult(name, "fault", "none is alive", why, fix)


def depth(queue: str, summary: QueueSummary, max_queued: int) -> CheckResult:
    """Judge how full a queue is."""
    name, outstanding = f"jobs of {queue}", summary.outstanding
    what = f"{outstanding} of {max_queued} outstanding"
    if outstanding < QUEUE_WARNING_RATIO * max_queued:
        return CheckResult(name, "ok", what)
    full = outstanding >= max_queued
    why = "new requests are refused with 429" if full else "when it is full, new requests are refused with 429"
    fix = ("start more workers; or raise AGENTSTREAM_MAX_QUEUED on the front ends, if callers may wait longer",)
    return CheckResult(name, "fault" if full else "warning", what, why, fix)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size else "no limit"
