"""What a child process runs before, or as, its work: it ends when its parent does.

    child.py exec PARENT_PID COMMAND...     become that command
    child.py fake PARENT_PID PORT           serve fakeredis on that loopback port

On Linux the kernel kills the process when the thread that started it ends, whatever the reason. Run by its path
and free of our own imports: it starts fast, and the same from any working directory.
"""

import ctypes
import os
import signal
import sys

LISTENING = "fakeredis is listening"  # printed once the port is its own

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(*command: str) -> list[str]:
    """Return the command that runs ``command`` as a child that ends with this process (on Linux)."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-P", __file__, "exec", str(os.getpid()), *command]


def fake_redis_command(port: int) -> list[str]:
    """Return the command of a child that serves fakeredis on a loopback port."""
    return [sys.executable, "-P", __file__, "fake", str(os.getpid()), str(port)]


def main(role: str, parent_pid: str, *command: str) -> None:
    """Be the child; returns only if a fakeredis server ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # outlasts exec
        if os.getppid() != int(parent_pid):  # the parent had ended before the call
            sys.exit(1)
    if role == "exec":
        os.execv(command[0], command)  # noqa: S606 -- the parent's own choice
    from fakeredis import TcpFakeServer  # noqa: PLC0415 -- an optional dependency, of this role only

    server = TcpFakeServer(("127.0.0.1", int(command[0])))
    print(LISTENING, flush=True)  # noqa: T201 -- read by the parent
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
