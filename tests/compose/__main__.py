"""Runs compose.yaml on a real Docker engine, and checks it.

    python -m tests.compose                     make compose-test
    python -m tests.compose --folder /tmp/dk    keep what was downloaded and built there, for the next time

As root on Debian it installs and starts an engine of its own in a temporary folder, with images made from Debian
packages. Everything is ended and removed again. Elsewhere it uses the engine of the `docker` command.
"""

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.compose import base_images, brokers, env_settings, faults, image_checks, mistakes, starting, updates
from tests.compose.deployment import Deployment
from tests.compose.engine import own_engine, why_not_here
from tests.compose.machine import Machine
from tests.compose.runner import run_all

EXIT_INTERRUPTED = 130
GROUPS = {
    "start": starting,
    "updates": updates,
    "faults": faults,
    "brokers": brokers,
    "settings": env_settings,
    "image": image_checks,
    "mistakes": mistakes,
}


class NoEngine(Exception):
    """There is no Docker engine, and none can be started. The text says why."""


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """Yield the folder for the engine and the deployment, and remove it unless it is to be kept."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="compose-test-"))
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)  # much faster than rmtree


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Machine]:
    """Yield an engine of our own if this machine can run one, or else the one that is there."""
    reason = why_not_here()
    if not reason:
        began = time.monotonic()
        with own_engine(folder) as machine:
            base_images.make(machine, folder)
            version = machine.run("docker", "version", "--format", "{{.Server.Version}}").strip()
            print(
                f"an engine of our own, Docker {version}, was ready after {time.monotonic() - began:.0f} s", flush=True
            )
            yield machine
        return
    machine = Machine()
    if shutil.which("docker") is None or machine.try_run("docker", "version").returncode:
        message = f"no Docker engine answers, and none can be started here: {reason}"
        raise NoEngine(message)
    print(f"using the Docker engine that is here ({reason})", flush=True)
    yield machine


def main() -> int:
    """Run the checks and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="use and keep this folder")
    parser.add_argument("--only", choices=GROUPS, action="append", help="run this group of checks only")
    parser.add_argument("--if-possible", action="store_true", help="without an engine say so, and exit with 0")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is ended
    try:
        with work_folder(options.folder) as folder, engine(folder) as machine:
            return min(check(machine, folder / "project", options.only or GROUPS), 1)
    except NoEngine as exc:
        print(f"skipped: {exc}" if options.if_possible else f"failed: {exc}", flush=True)
        return 0 if options.if_possible else 1
    except KeyboardInterrupt:
        print("interrupted: everything was ended", flush=True)
        return EXIT_INTERRUPTED


def check(machine: Machine, project: Path, groups: Iterable[str]) -> int:
    """Run the checks of these groups on a new deployment, and return how many failed."""
    shutil.rmtree(project, ignore_errors=True)
    deployment = Deployment(machine, project)
    try:
        return run_all(
            [check for name, group in GROUPS.items() if name in groups for check in group.CHECKS], deployment
        )
    finally:
        deployment.down()


if __name__ == "__main__":
    sys.exit(main())
