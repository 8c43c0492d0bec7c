"""The machine a benchmark runs on: processes of its own on a core of their own, and what they cost. Linux only.

A child is told what to do by JSON lines on its standard input and answers by JSON lines on its standard output.
"""

import collections
import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[2]
ANSWER_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 5.0
# What is measured has a core for itself; its broker, its worker and its client share the other.
MEASURED_CORE, OTHER_CORE = (sorted(os.sched_getaffinity(0)) * 2)[:2]


def cpu_s(pid: int) -> float:
    """Return the CPU time a process has used, user and system, all its threads, in seconds.

    By its CPU clock, whose id the kernel derives from the pid (clock_getcpuclockid(3)): to the nanosecond, where
    /proc/PID/stat counts in 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def kernel_s(pid: int) -> float:
    """Return how much of a process's CPU time the kernel has used, in seconds; it is counted in 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[12]) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the memory a process holds."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) << 10


class Child:
    """A process of the benchmark's."""

    def __init__(self, *command: str, core: int | None, **environment: str) -> None:
        """Start ``python -m <command>`` on ``core``, or on all cores."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})  # before it has a second thread
        self._command = command
        # Read all the time: a process that cannot write its log stands still. A benchmark's are some thousand lines.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\n"))
        self._lines.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """Return the first line of the output that matches, and forget what stood before it."""
        give_up_at_s, seen = time.monotonic() + ANSWER_TIMEOUT_S, collections.deque[str](maxlen=20)
        while True:
            try:
                line = self._lines.get(timeout=max(0, give_up_at_s - time.monotonic()))
                why = "ended"
            except queue.Empty:
                line, why = None, "says nothing"
            if line is None:
                said = "\n".join(seen)
                message = f"{' '.join(self._command)} {why}; it said:\n{said}"
                raise RuntimeError(message)
            if match := re.search(pattern, line):
                return match
            seen.append(line)

    def tell(self, what: str, **values: Any) -> None:
        """Send a command; its answer is fetched by ``answer``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **values}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to the oldest command not yet answered."""
        return json.loads(self.until(r"^\{.*\}$")[0])

    def ask(self, what: str, **values: Any) -> Any:
        """Send a command and return its answer."""
        self.tell(what, **values)
        return self.answer()

    def stop(self) -> str:
        """End it, by SIGTERM, then SIGKILL; return what it said since it was last listened to."""
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        rest = []
        with contextlib.suppress(queue.Empty):
            while (line := self._lines.get(timeout=STOP_TIMEOUT_S)) is not None:
                rest.append(line)
        return "\n".join(rest)


def commands() -> Iterable[dict[str, Any]]:
    """Yield the commands a child is sent, until its input ends."""
    for line in sys.stdin:
        yield json.loads(line)


def reply(**values: Any) -> None:
    """Answer a command."""
    print(json.dumps(values), flush=True)
