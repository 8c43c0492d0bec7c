"""The machine a benchmark runs on: processes of its own on a core of their own, and what they cost. Linux only.

A child is told what to do by JSON lines on its standard input and answers by JSON lines on its standard output.
"""

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
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
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 -- no threads
        )
        self._output = b""
        self._command = command

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def until(self, pattern: str) -> re.Match[str]:
        """Return the first line of the output that matches, and forget what stood before it."""
        return self._lines_until(lambda line: re.search(pattern, line))

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
            rest, _ = self._process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            rest, _ = self._process.communicate()
        said, self._output = self._output + (rest or b""), b""
        return said.decode(errors="replace")

    def _lines_until(self, found: Callable[[str], re.Match[str] | None]) -> re.Match[str]:
        assert self._process.stdout is not None
        descriptor, give_up_at_s = self._process.stdout.fileno(), time.monotonic() + ANSWER_TIMEOUT_S
        seen: list[str] = []
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            while b"\n" in self._output:
                line, self._output = self._output.split(b"\n", 1)
                seen.append(line.decode(errors="replace"))
                if match := found(seen[-1]):
                    return match
            left_s = give_up_at_s - time.monotonic()
            ready = left_s > 0 and poll.poll(left_s * 1000)
            if not ready or not (more := os.read(descriptor, 1 << 16)):
                said = "\n".join(seen[-20:])
                message = f"{' '.join(self._command)} {'ended' if ready else 'says nothing'}; it said:\n{said}"
                raise RuntimeError(message)
            self._output += more


def commands() -> Iterable[dict[str, Any]]:
    """Yield the commands a child is sent, until its input ends."""
    for line in sys.stdin:
        yield json.loads(line)


def reply(**values: Any) -> None:
    """Answer a command."""
    print(json.dumps(values), flush=True)
