"""Agents whose characters are cut in two. Worker processes import this module by its name."""

import sys

from agentstream.adapters.command import CommandAgent

PROGRAM = """
import sys, time
lines = sys.argv[1].encode("latin-1").decode("unicode_escape").encode("latin-1")
for at in range(0, len(lines), 7):  # cuts characters between two writes to the pipe
    sys.stdout.buffer.write(lines[at:at + 7])
    sys.stdout.buffer.flush()
    time.sleep(0.005)
"""
TEXTS = [
    b'{"type": "text", "text": "pipe \xf0\x9f\x98\x80 "}',  # cut by the pipe only
    b'{"type": "text", "text": "pair \\ud83d"}',  # as JSON.stringify writes half of a pair
    b'{"type": "text", "text": "\\ude00 low \\ud83d"}',
    b'{"type": "text", "text": "\\udca9 "}',
    b'{"type": "text", "text": "bytes \xf0\x9f"}',  # the bytes of one character in two lines
    b'{"type": "text", "text": "\x98\x80 end \xf0\x9f"}',
    b'{"type": "result"}',
]
_lines = b"\n".join([*TEXTS, b""])
cut_program = CommandAgent(sys.executable, "-c", PROGRAM, "".join(f"\\x{byte:02x}" for byte in _lines))
