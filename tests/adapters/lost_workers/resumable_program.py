"""A resumable program. A worker process imports this module by name."""

import sys

from agentstream.adapters.command import CommandAgent

# Counts with a checkpoint after every third number. The first attempt waits after 13 until it is killed.
COUNTING_PROGRAM = """
import json, sys, threading
job = json.loads(sys.stdin.readline())
def write(**line):
    print(json.dumps(line), flush=True)
restored = job["restored"] or {}
reached = (restored.get("state") or 0) + restored.get("text", "").count(" ")
for number in range(reached + 1, 41):
    write(type="text", text=f"{number} ")
    if number % 3 == 0:
        write(type="checkpoint", state=number)
    if number == 13 and not restored:
        threading.Event().wait()
write(type="result")
"""
program = CommandAgent(sys.executable, "-c", COUNTING_PROGRAM, resumable=True)
