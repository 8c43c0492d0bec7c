"""Child processes of the benchmark, each bound to a core, and their CPU time and memory. Linux only.

A child gets commands as JSON lines on its standard input and answers with JSON lines on its standard output.
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
# The measured process has its own core. Broker, worker and load generator share the other core.
MEASURED_CORE, OTHER_CORE = (sorted(os.sched_getaffinity(0)) * 2)[:2]


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process in seconds: user and system time of all its threads.

    It reads the CPU clock of the process, whose id follows from the pid (clock_getcpuclockid(3)). This clock counts
    nanoseconds; /proc/PID/stat counts in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def kernel_s(pid: int) -> float:
    """Return the system time of a process in seconds. It is counted in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[12]) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) << 10


class Child:
    """A child process of the benchmark."""

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
            os.sched_setaffinity(self._process.pid, {core})  # before it starts a second thread
        self._command = command
        # A thread reads all output, because a process blocks if its output is not read. It is a few thousand lines.
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
        """Return the match of the first matching line of output. Drop the lines before it."""
        give_up_at_s, seen = time.monotonic() + ANSWER_TIMEOUT_S, collections.deque[str](maxlen=20)
        while True:
            try:
                line = self._lines.get(timeout=max(0, give_up_at_s - time.monotonic()))
                why = "ended"
            except queue.Empty:
                line, why = None, "did not print a matching line in time"
            if line is None:
                output = "\n".join(seen)
                message = f"{' '.join(self._command)} {why}; its output:\n{output}"
                raise RuntimeError(message)
            if match := re.search(pattern, line):
                return match
            seen.append(line)

    def send(self, command: str, **values: Any) -> None:
        """Send a command. ``answer`` returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **values}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to the oldest open command."""
        return json.loads(self.until(r"^\{.*\}$")[0])

    def ask(self, command: str, **values: Any) -> Any:
        """Send a command and return its answer."""
        self.send(command, **values)
        return self.answer()

    def stop(self) -> str:
        """Stop the process with SIGTERM, then SIGKILL. Return the output that was not read yet."""
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
    """Yield the commands on standard input until it ends."""
    for line in sys.stdin:
        yield json.loads(line)


def reply(**values: Any) -> None:
    """Print the answer to a command."""
    print(json.dumps(values), flush=True)
