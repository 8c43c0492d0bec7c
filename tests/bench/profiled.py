"""A process of ours under cProfile: ``python -m tests.bench.profiled frontend``. It ends by printing the hot path."""

import cProfile
import pstats
import sys
from typing import Final

from service.__main__ import main

TOP: Final = 10


def print_top(profile: cProfile.Profile) -> None:
    """Print the functions with the most time of their own, as a share of all."""
    stats = pstats.Stats(profile).get_stats_profile()
    own = sorted(stats.func_profiles.items(), key=lambda item: -item[1].tottime)
    idle = {"<method 'run_until_complete' of 'uvloop.loop.Loop' objects>", "run"}  # the loop, its waiting included
    total_s = sum(function.tottime for name, function in own if name not in idle)
    print("profile:")
    for name, function in [item for item in own if item[0] not in idle][:TOP]:
        where = f"{function.file_name.rpartition('site-packages/')[2].rpartition('service/')[2]}:{function.line_number}"
        place = "" if where.startswith("~") else f" ({where})"
        print(f"  {function.tottime / total_s:5.1%}  {int(function.ncalls.split('/')[0]):>8} calls  {name}{place}")
    print("end of profile", flush=True)


if __name__ == "__main__":
    profile = cProfile.Profile()
    profile.enable()
    try:
        main(prog_name="agentstream")
    finally:
        profile.disable()
        print_top(profile)
        sys.stdout.flush()
