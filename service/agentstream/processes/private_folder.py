"""The temporary folder of a private broker: only this user can enter it, so only this user can reach its socket.

A killed process cannot remove its folder. So each folder has a lock, which the kernel releases when the last process
that holds it has ended, for any reason. The next folder that is created removes those whose lock is free.
"""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final, Self

from agentstream.errors import StartupError

if sys.platform != "win32":  # `doctor` also runs on Windows, which has no private broker
    import fcntl

PREFIX: Final = "agentstream-broker-"  # of its name; `doctor` recognises a private broker by it
SHORT_PLACE: Final = "/tmp"  # noqa: S108 -- the path of a socket has at most 107 bytes, on macOS 103

_SOCKET: Final = "redis.sock"
_LOCK: Final = "lock"


class PrivateFolder:
    """A new folder with mode 700, with the place of a socket.

    ``fault`` says why no server can listen on ``socket``; it is empty if one can. ``lock`` is the descriptor of the
    lock: a child that inherits it keeps the folder.
    """

    def __init__(self, parent: str) -> None:
        """Create the folder in ``parent``; raises OSError."""
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self.socket = self.path / _SOCKET
        new = self.path / f"{_LOCK}.new"  # it gets its name when it is locked, so others never see it free
        self.lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take this one either
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        new.rename(self.path / _LOCK)
        self.fault = _fault_of(self.socket)

    @classmethod
    def create(cls) -> Self:
        """Return a folder in the usual place, or in /tmp if a socket is possible only there.

        Raises StartupError if there is no place for temporary files.
        """
        try:
            usual = tempfile.gettempdir()
            for parent in dict.fromkeys((usual, SHORT_PLACE)):
                _remove_stale(Path(parent))
                with contextlib.suppress(OSError):
                    folder = cls(parent)
                    if not folder.fault:
                        return folder
                    folder.remove()
            return cls(usual)
        except OSError as exc:
            message = (
                "the embedded broker needs a temporary folder, and none can be made: "
                f"{exc.strerror or exc}; set TMPDIR to a folder that you can write"
            )
            raise StartupError(message) from exc

    def remove(self) -> None:
        """Remove the folder with all its files."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _fault_of(path: Path) -> str:
    """Return why no server can listen at this path, or ""."""
    try:
        str(path).encode()  # raises if the path is no UTF-8; then no URL can contain it
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        path.unlink()
    except (OSError, UnicodeEncodeError) as exc:
        return f"{str(path)!r}: {getattr(exc, 'strerror', None) or exc}"
    return ""


def _remove_stale(parent: Path) -> None:
    """Remove the folders of this user that no process holds any more."""
    for lock in parent.glob(f"{PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # another process holds it, or has just removed it
            if lock.parent.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
