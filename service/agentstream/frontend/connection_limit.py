"""Limits the connections of a front end, so that it refuses requests before its file descriptors run out."""

import errno
import logging
import time
from typing import Final

from agentstream.processes.file_limit import file_limit, open_files

log = logging.getLogger(__name__)

# Connections beyond the limit that may be open at the same time. Each gets an answer, which is 503 to a new run.
REFUSALS: Final = 64
# Descriptors for Redis, DNS and files.
OTHER_FILES: Final = 64
LOG_INTERVAL_S: Final = 10.0

_ADVICE: Final = "raise it (ulimit -n, LimitNOFILE in systemd, ulimits in Compose), or add front ends"


class ConnectionLimit:
    """Counts the open connections of this process."""

    def __init__(self) -> None:
        """Start without connections and without a limit."""
        self.open = 0
        self.limit: int | None = None
        self._files: int | None = None
        self._refused = 0  # since the last log line
        self._next_log_s = 0.0

    def apply(self) -> None:
        """Set the limit, from the file limit of this process and the files that it has open now."""
        self._files = file_limit()
        if self._files is not None:
            self.limit = max(self._files - open_files() - REFUSALS - OTHER_FILES, 1)

    @property
    def reached(self) -> bool:
        """Whether no more connections may be accepted now, not even to refuse them."""
        return self.limit is not None and self.open >= self.limit + REFUSALS

    def opened(self) -> bool:
        """Count a new connection. Return whether it is one too many; a log line says so at times."""
        self.open += 1
        if self.limit is None or self.open <= self.limit:
            return False
        self._refused += 1
        self._log(
            f"refusing clients ({self._refused} since the last such line): {self.limit} connections are open, which "
            f"the limit of {self._files} open files allows; {_ADVICE}"
        )
        return True

    def closed(self) -> None:
        """Count the end of a connection."""
        self.open -= 1

    def accept_failed(self, error: OSError) -> None:
        """Log, at times, that a connection cannot be accepted. It waits until it can be."""
        if error.errno == errno.EMFILE:
            reason = f"the process has reached its limit of {self._files} open files; {_ADVICE}"
        elif error.errno == errno.ENFILE:
            reason = "the system has reached its limit of open files; raise it (sysctl fs.file-max)"
        else:
            reason = str(error)
        self._log(f"cannot accept connections, {self.open} are open: {reason}")

    def _log(self, message: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + LOG_INTERVAL_S
            self._refused = 0
            log.error("%s", message)
