"""The program that starts a child process and makes it end with its parent.

    launcher.py exec PARENT_PID COMMAND...     become this command
    launcher.py shield PARENT_PID COMMAND...   become this command, without SIGTERM, SIGINT and SIGHUP
    launcher.py fake PARENT_PID PORT           serve fakeredis on this loopback port, without these signals

On Linux the kernel kills the process when the thread that started it ends, for any reason. The parent runs this file by
its path. It imports nothing of this package, so it starts fast and from any working directory.
"""

import ctypes
import os
import signal
import sys

LISTENING = "fakeredis is listening"  # printed when the server listens

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(*command: str) -> list[str]:
    """Return a command that runs ``command`` as a child. On Linux the child ends when this process ends."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-P", __file__, "exec", str(os.getpid()), *command]


def shielded(*command: str) -> list[str]:
    """Return a command that runs ``command`` as a child that only its parent ends, by SIGKILL.

    A supervisor may send SIGTERM to all processes of a service. The broker must outlive the processes that need it.
    """
    return [sys.executable, "-P", __file__, "shield", str(os.getpid()), *command]


def fake_redis_command(port: int) -> list[str]:
    """Return the command of a child that serves fakeredis on a loopback port."""
    return [sys.executable, "-P", __file__, "fake", str(os.getpid()), str(port)]


def main(role: str, parent_pid: str, *command: str) -> None:
    """Become the child. Returns only when a fakeredis server ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # still in effect after exec
        if os.getppid() != int(parent_pid):  # the parent ended before this call
            sys.exit(1)
    if role != "exec":  # a blocked signal stays blocked after exec, also for a program that handles it
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    if role != "fake":
        os.execv(command[0], command)  # noqa: S606 -- the parent chose the command
    from fakeredis import TcpFakeServer  # noqa: PLC0415 -- optional, only for this role

    server = TcpFakeServer(("127.0.0.1", int(command[0])))
    print(LISTENING, flush=True)  # noqa: T201 -- read by the parent
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
