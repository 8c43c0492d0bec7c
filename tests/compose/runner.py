"""Runs the checks in the order in which they were written, and prints one line for each."""

import subprocess
import time
import traceback
from collections.abc import Callable, Sequence

from tests.compose.deployment import Deployment

Check = Callable[[Deployment], str | None]  # may return a detail for its line

SHOWN_LINES = 12


def sentence(check: Check) -> str:
    """Return the docstring of a check in one line, without its full stop."""
    return " ".join((check.__doc__ or check.__name__).split()).rstrip(".")


def attempt(check: Check, deployment: Deployment) -> tuple[str, str]:
    """Run a check, and return its detail and its problem. Each of them may be empty."""
    try:
        return check(deployment) or "", ""
    except (AssertionError, subprocess.SubprocessError, OSError, ValueError, LookupError) as exc:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        return "", f"{where.name}, line {where.lineno}: {where.line}\n{exc}"


def run_all(checks: Sequence[Check], deployment: Deployment) -> int:
    """Run the checks, print "N passed, N failed" at the end, and return the number of those that failed."""
    failed = 0
    began = time.monotonic()
    for check in checks:
        detail, problem = attempt(check, deployment)
        failed += bool(problem)
        line = f"{sentence(check)}: {detail}" if detail else sentence(check)
        print(f"{time.monotonic() - began:5.0f} s  {'FAIL' if problem else 'ok  '}  {line}", flush=True)
        first, *rest = problem.splitlines() or [""]
        for text in [first, *rest[-SHOWN_LINES:]] if problem else ():
            print(f"               {text[:240]}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed", flush=True)
    return failed
