"""Runs a process under cProfile: ``python -m tests.bench.profiled frontend``. At its end it prints the hot path."""

import cProfile
import pstats
import time
from typing import Any, Final

from agentstream.__main__ import main

TOP: Final = 10


def print_top(profile: cProfile.Profile) -> None:
    """Print the functions with the most own CPU time. Time in uvloop and in the kernel counts as time of the caller."""
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # has no stub
    own = sorted(((row[2], row[1], place) for place, row in stats.items()), reverse=True)
    total_s = sum(own_s for own_s, _, _ in own)
    print("profile:")
    for own_s, calls, (file, line, name) in own[:TOP]:
        module = file.rpartition("site-packages/")[2].rpartition("agentstream/")[2]
        print(f"  {own_s / total_s:5.1%}  {calls:>7} calls  {name}{'' if file == '~' else f' ({module}:{line})'}")
    print("end of profile", flush=True)


if __name__ == "__main__":
    profile = cProfile.Profile(time.process_time)  # CPU time only, no waiting
    profile.enable()
    try:
        main(prog_name="agentstream")
    finally:
        profile.disable()
        print_top(profile)
