"""Programs of a newer Debian release than this machine's, in a folder of their own: nothing is installed.

apt downloads each package with all that it needs, from the mirror of this machine, into the user's cache folder.
"""

import fcntl
import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

RELEASE = "forky"
_FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentstream-tests" / RELEASE
_TIMEOUT_S = 120


class Unavailable(Exception):
    """A package cannot be had: this is no Debian, or no mirror answers."""


@functools.cache
def newer_command(package: str, program: str) -> list[str]:
    """Return the command that runs a program of a package, which is downloaded once. Raises Unavailable."""
    root = _FOLDER / package
    if not (root / program).exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        with (_FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / program).exists():
                _unpack(package, root)
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/*-linux-gnu/**/*.so*")})
    loader = next(iter(sorted(root.glob("usr/lib*/**/ld-linux*.so.*"))), None)
    if loader is None:  # a static program
        return [str(root / program)]
    return [str(loader), "--library-path", ":".join(libraries), str(root / program)]


def version(command: list[str], flag: str) -> str:
    """Return the version that a program prints, such as 1.30.6."""
    done = subprocess.run([*command, flag], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    assert found, done
    return found[0]


def _unpack(package: str, root: Path) -> None:
    apt = _FOLDER / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    form = ("--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian")
    mirrors = _run("apt-get", "indextargets", *form).split()
    if not mirrors:
        message = "apt knows no Debian mirror on this machine"
        raise Unavailable(message)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keys}] {mirrors[0]} {RELEASE} main\n")
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",  # empty: everything that the package needs is downloaded
        "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "",
        "APT::Keep-Downloaded-Packages": "true",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    _run("apt-get", *flags, "--quiet", "update")
    _run("apt-get", *flags, "--quiet", "--yes", "--no-install-recommends", "--download-only", "install", package)
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for archive in sorted((apt / "archives").glob("*.deb")):
        _run("dpkg-deb", "--extract", str(archive), str(partial))
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)
    shutil.rmtree(apt)


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        message = f"this machine has no {command[0]}"
        raise Unavailable(message)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        message = f"{command[0]} did not end within {_TIMEOUT_S} s"
        raise Unavailable(message) from exc
    if done.returncode:
        message = f"{command[0]} failed: {done.stderr.strip()[-300:]}"
        raise Unavailable(message)
    return done.stdout
