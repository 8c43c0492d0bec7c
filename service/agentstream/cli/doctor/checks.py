"""The rules of ``agentstream doctor``: each function judges one fact of the deployment."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentstream.cli.doctor.results import CheckResult, Level
from agentstream.protocol.broker_url import Kind
from agentstream.store.admin.queue_state import QueueSummary
from agentstream.store.admin.server_state import ClockOffset

MIN_VERSION: Final = (6, 2)  # the first with XAUTOCLAIM
PREFERRED_VERSION: Final = (7, 0)  # XINFO STREAM reports removed jobs, from which Retry-After is computed
MEMORY_FAULT_RATIO: Final = 0.8  # of maxmemory; a burst of runs needs a few per cent
MAXMEMORY_RATIO: Final = 0.7  # of the machine's memory; the rest is for copy-on-write during an AOF rewrite
# The defaults of Redis, enough for 1.3 s at 100,000 tokens/s. With less, Redis disconnects front ends in normal bursts.
MIN_BUFFER_BYTES: Final = 32 << 20
MIN_SOFT_BUFFER_BYTES: Final = 8 << 20
SLOW_PING_S: Final = 0.005  # a run waits for three to six round trips before its first event
STALL_S: Final = 1.0  # after so long without a reply, workers treat the broker as lost (store.queue.STALL_S)
SKEW_WARNING_S: Final = 1.0
SKEW_FAULT_S: Final = 5.0  # "within a few seconds": PROTOCOL.md, 4.5
QUEUE_WARNING_RATIO: Final = 0.8
MIN_OPEN_FILES: Final = 4096  # a front end needs one for each stream, and serves several thousand

_OTHER_LIMITS: Final = (
    "if Redis runs in a container with a memory limit, or shares the machine: less; compose.yaml sets REDIS_MAXMEMORY"
)


def version(info: dict[str, Any]) -> CheckResult:
    """Judge the version of the server."""
    name, text = "version", str(info.get("redis_version", "0"))
    numbers = tuple(map(int, re.findall(r"\d+", text)[:2]))
    what = version_of(info)
    fix = ("install Redis 7 or newer, or Valkey; replicate the data to it, then fail over (REPLICAOF, FAILOVER)",)
    if numbers < MIN_VERSION:
        return CheckResult(
            name, "fault", what, "jobs of lost workers cannot be reclaimed without XAUTOCLAIM (Redis 6.2)", fix
        )
    if numbers < PREFERRED_VERSION:
        why = "when a queue is full, Retry-After is only a guess"
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", what)


def role(info: dict[str, Any], *, kind: Kind = "standalone") -> CheckResult:
    """Judge whether this server is a primary, and of a ``kind`` of broker as REDIS_URL names it."""
    name = "role"
    if kind != "cluster" and info.get("cluster_enabled"):
        why = "a server of a cluster has only a part of the keys, and refuses commands for the others"
        fix = ("write redis+cluster:// instead of redis:// in REDIS_URL",)
        return CheckResult(name, "fault", "this is a part of a cluster", why, fix)
    if info.get("role") != "master":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        fix = (f"set REDIS_URL to the primary, {primary}",)
        return CheckResult(name, "fault", "this is a replica", "a replica refuses writes, so no run can be queued", fix)
    return CheckResult(name, "ok", "a primary")


def persistence(info: dict[str, Any], *, private: bool = False) -> CheckResult:
    """Judge whether the data survives a restart of the server. The ``private`` broker of `up` ends with it."""
    name = "append-only file"
    if private:
        return CheckResult(name, "ok", "none: the private broker of `agentstream up` keeps its data in memory")
    if not info.get("aof_enabled"):
        return CheckResult(
            name,
            "fault",
            "disabled",
            "a restart of Redis loses all data: queued jobs, ended runs, idempotency keys, limits",
            ("CONFIG SET appendonly yes", "in redis.conf: appendonly yes, appendfsync everysec"),
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        why = "Redis refuses every write until it can write to its disk again"
        return CheckResult(name, "fault", "the last write failed", why, ("free space on the disk of the Redis `dir`",))
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        why = "with stop-writes-on-bgsave-error Redis refuses every write"
        fix = (
            "free space on the disk of the Redis `dir`, then run BGSAVE",
            'or turn snapshots off, because the append-only file is enough: CONFIG SET save ""',
        )
        return CheckResult(name, "fault", "enabled, but the last snapshot failed", why, fix)
    return CheckResult(name, "ok", "enabled")


def eviction(info: dict[str, Any]) -> CheckResult:
    """Judge the behaviour of the server when its memory is full."""
    name, policy = "eviction", str(info.get("maxmemory_policy"))
    if policy == "noeviction":
        return CheckResult(name, "ok", "noeviction")
    return CheckResult(
        name,
        "fault",
        f"maxmemory-policy is {policy}",
        "when memory is full, Redis deletes replay logs of open runs (their streams end with stream_lost), and with "
        "allkeys-* whole queues; without eviction, Redis refuses new runs instead, and nothing is lost",
        ("CONFIG SET maxmemory-policy noeviction", "in redis.conf: maxmemory-policy noeviction"),
    )


def memory(info: dict[str, Any], *, private: bool = False) -> CheckResult:
    """Judge how much memory is free. The ``private`` broker of `up` needs no limit."""
    name = "memory"
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if private and not limit:
        return CheckResult(name, "ok", f"{mebibytes(used)} used")
    if not limit:
        machine = int(info.get("total_system_memory", 0))
        size = f"{int(machine * MAXMEMORY_RATIO) >> 20}mb" if machine else "<size>"
        return CheckResult(
            name,
            "warning",
            f"{mebibytes(used)} used, no limit is set",
            "when the machine runs out of memory, the kernel kills Redis; with a limit, Redis refuses new runs instead",
            (f"CONFIG SET maxmemory {size}", f"in redis.conf: maxmemory {size}", _OTHER_LIMITS),
        )
    what = f"{mebibytes(used)} of {mebibytes(limit)} used ({used / limit:.0%})"
    if used > MEMORY_FAULT_RATIO * limit:
        size = f"{max(1, 2 * limit >> 20)}mb"
        return CheckResult(
            name,
            "fault",
            what,
            "when memory is full, Redis cannot store events: open streams stall and new runs are refused",
            (
                f"CONFIG SET maxmemory {size}, if the machine has enough memory",
                f"and for the next start: maxmemory {size} in redis.conf, or REDIS_MAXMEMORY={size} for compose.yaml",
                "or store less: lower AGENTSTREAM_RUN_TTL_S or AGENTSTREAM_LOG_MAX_BYTES on the workers",
            ),
        )
    return CheckResult(name, "ok", what)


def output_buffer(limits: str) -> CheckResult:
    """Judge client-output-buffer-limit: how far a front end may fall behind before Redis disconnects it."""
    name = "output buffer"
    found = re.search(r"pubsub (\d+) (\d+) (\d+)", limits)
    if found is None:
        return CheckResult(name, "unknown", f"client-output-buffer-limit is {limits!r}: no pubsub limit in it")
    hard, soft, seconds = map(int, found.groups())
    what = f"pubsub {mebibytes(hard)}, {mebibytes(soft)} for {seconds} s"
    if not hard:
        why = "if a front end hangs, its unsent events fill the memory of Redis without limit"
        level: Level = "warning"
    elif hard < MIN_BUFFER_BYTES or 0 < soft < MIN_SOFT_BUFFER_BYTES:
        why = "in a burst of events Redis disconnects a front end, and all its streams must read their replay logs"
        level = "fault"
    else:
        return CheckResult(name, "ok", what)
    fix = (
        'CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60"',
        "in redis.conf: client-output-buffer-limit pubsub 32mb 8mb 60",
    )
    return CheckResult(name, level, what, why, fix)


def latency(times_s: Sequence[float]) -> CheckResult:
    """Judge the round-trip times, which are sorted."""
    name, median_s, longest_s = "latency", times_s[len(times_s) // 2], times_s[-1]
    what = f"a PING from this machine takes {median_s * 1000:.1f} ms (median), at most {longest_s * 1000:.1f} ms"
    if longest_s > STALL_S:
        why = "after 1 s without a reply, workers treat Redis as lost and reclaim no jobs"
        fix = ("run SLOWLOG GET and LATENCY DOCTOR; a slow command, swapping or a slow disk blocks Redis",)
        return CheckResult(name, "fault", what, why, fix)
    if median_s > SLOW_PING_S:
        why = "a run waits for three to six round trips before its first event"
        fix = ("run front ends, workers and doctor in the same network zone as Redis",)
        return CheckResult(name, "warning", what, why, fix)
    return CheckResult(name, "ok", what)


def clock(difference: ClockOffset) -> CheckResult:
    """Judge the difference between the clock of Redis and the clock of this machine."""
    name, offset_s = "clock", difference.offset_s
    apart_s = max(0.0, abs(offset_s) - difference.uncertainty_s)
    what = f"the clock of Redis is {abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} this machine"
    if apart_s < SKEW_WARNING_S:
        return CheckResult(name, "ok", f"within {SKEW_WARNING_S:g} s of the clock of Redis")
    why = "front ends set the latest start time of a job with their clock, and workers check it with their own clock"
    fix = ("enable network time on both machines: timedatectl set-ntp true",)
    return CheckResult(name, "fault" if apart_s > SKEW_FAULT_S else "warning", what, why, fix)


def workers(queue: str, summary: QueueSummary) -> CheckResult:
    """Judge whether a queue has live workers."""
    name = f"workers of {queue}"
    if summary.workers:
        return CheckResult(name, "ok", f"{summary.workers} alive")
    why = "requests for this queue wait, and fail after AGENTSTREAM_QUEUE_TIMEOUT_S (default 60 s)"
    fix = (f"start a worker with the settings of its agents: REDIS_URL=… agentstream worker --queues {queue}",)
    return CheckResult(name, "fault", "no worker is alive", why, fix)


def depth(queue: str, summary: QueueSummary, max_queued: int) -> CheckResult:
    """Judge how full a queue is."""
    name, outstanding = f"jobs of {queue}", summary.outstanding
    what = f"{outstanding} of {max_queued} outstanding"
    if outstanding < QUEUE_WARNING_RATIO * max_queued:
        return CheckResult(name, "ok", what)
    full = outstanding >= max_queued
    why = "new requests are refused with 429" if full else "when the queue is full, new requests are refused with 429"
    fix = ("start more workers, or raise AGENTSTREAM_MAX_QUEUED on the front ends if clients can wait longer",)
    return CheckResult(name, "fault" if full else "warning", what, why, fix)


def open_files(limit: int | None, user: str) -> CheckResult:
    """Judge how many files and sockets a process may open where doctor runs; None if there is no limit."""
    name, what = "open files", f"{user} may open {'any number' if limit is None else limit} in a process here"
    if limit is None or limit >= MIN_OPEN_FILES:
        return CheckResult(name, "ok", what)
    why = "a front end needs one for each stream; if front ends have the same limit, they refuse more streams with 503"
    fix = ("raise it: OPEN_FILES for compose.yaml, LimitNOFILE for systemd, --ulimit nofile=16384 for docker run",)
    return CheckResult(name, "warning", what, why, fix)


def temporary_folder(reason: str | None) -> CheckResult:
    """Judge whether processes may write to a temporary folder where doctor runs; ``reason`` says why not."""
    name = "temporary folder"
    if reason is None:
        return CheckResult(name, "ok", "writable")
    why = "with AGENTSTREAM_PROCESSES above 1, the processes of a container share their metrics in such a folder"
    return CheckResult(name, "warning", reason, why, ("mount a tmpfs: --tmpfs /tmp, or TMPDIR=… for another folder",))


def version_of(info: Mapping[str, Any]) -> str:
    """Return the product and the version of a server."""
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version', '0')}"


def mebibytes(size: int) -> str:
    """Return a size in MiB; 0 stands for no limit."""
    return f"{size / (1 << 20):.1f} MiB" if size else "no limit"
