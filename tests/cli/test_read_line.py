"""A line that a person types, and a ctrl-C that comes just before the read begins."""

import asyncio
import os
import sys

import pytest

from tests.cli.conftest import command_environment
from tests.helpers import TIMEOUT_S

# The signal reaches another thread, so it does not wake the read: like a signal that came before the read.
_INTERRUPT = """
import signal, threading, time
def interrupt():
    while signal.getitimer(signal.ITIMER_REAL) == (0, 0):  # until read_line is about to read
        time.sleep(0.01)
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""

_READ = """
import signal, sys
from agentstream.cli.terminal.interrupts import read_line
try:
    line = read_line("> ")
except KeyboardInterrupt:
    line = "interrupted"
left = signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)
print("got", line, "and left no timer" if left == (0, signal.SIG_DFL) else left, file=sys.stderr)
"""


@pytest.mark.parametrize("before", ["", "import readline\n"])
@pytest.mark.parametrize(
    ("program", "typed", "line"), [(_INTERRUPT + _READ, "", "interrupted"), (_READ, "a line\n", "a line")]
)
async def test_a_line_is_read_and_no_ctrl_c_is_lost(before: str, program: str, typed: str, line: str) -> None:
    """A signal that does not wake the read ends it without another key; a typed line is returned."""
    master, slave = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", before + program),
        env=command_environment(TERM="xterm"),
        stdin=slave,
        stdout=slave,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(slave)
    try:
        os.write(master, typed.encode())
        async with asyncio.timeout(TIMEOUT_S):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
    assert f"got {line} and left no timer" in err.decode()
