"""The number of files and sockets that a process may open (RLIMIT_NOFILE)."""

import contextlib
import logging
import sys
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

# Shells and supervisors start programs with a soft limit of 1,024, because older programs use select(), which can watch
# no more. This service does not. The hard limit may be a billion, and some programs that an agent starts close each
# possible descriptor, so there is a bound. One process cannot serve so many streams.
MAX_RAISED: Final = 65_536

if sys.platform != "win32":
    import resource


def raise_file_limit() -> None:
    """Raise the soft limit of this process to its hard limit, at most to MAX_RAISED. Never lower it."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_RAISED if hard == resource.RLIM_INFINITY else min(hard, MAX_RAISED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:  # the kernel of macOS may allow less than the hard limit says
        log.warning("cannot raise the limit of open files from %d to %d: %s", soft, wanted, exc)


def file_limit() -> int | None:
    """Return how many files and sockets this process may open, or None if there is no limit."""
    if sys.platform == "win32":
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def open_files() -> int:
    """Return how many files and sockets this process has open; 0 if the system does not say."""
    with contextlib.suppress(OSError):
        return len(list(Path("/dev/fd").iterdir()))
    return 0
