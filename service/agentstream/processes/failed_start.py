"""The wait of a process that cannot start with its settings, before it exits."""

import signal
import threading
from collections.abc import Callable


def wait_before_exit(delay_s: float, print_line: Callable[[str], None]) -> None:
    """Say that the process exits later, and wait. SIGTERM or SIGINT ends the wait at once.

    Call it in the main thread, without a running event loop. The signals have handlers, because the kernel does not
    deliver them to the first process of a container otherwise.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print_line(f"exits in {delay_s:g} s (AGENTSTREAM_FAILED_START_DELAY_S): another start needs other settings")
    stop.wait(delay_s)
