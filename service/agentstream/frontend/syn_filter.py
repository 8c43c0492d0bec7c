"""Lets the kernel drop the packets that begin a connection to a listening socket.

When a listening socket is closed, the kernel resets the connections whose handshake is not complete. Their clients may
have sent a request already, because for them the connection exists. So the socket must be closed when no handshake is
going on. Linux can drop the first packet of each handshake with a socket filter. Other systems cannot; there the gap of
one round trip stays.
"""

import ctypes
import socket
import struct
import sys
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
# A classic BPF program (linux/filter.h) for a TCP segment: code, jump if true, jump if false, operand.
_PROGRAM: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte with the TCP flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone begins a connection:
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # accept everything else
    )
)


def ignore_new_connections(listener: socket.socket) -> bool:
    """Drop packets that begin a connection from now on. Return whether the system can do that."""
    if not sys.platform.startswith("linux"):
        return False
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    length = len(_PROGRAM) // struct.calcsize("HBBI")
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(program)))
    except OSError:
        return False  # a sandbox forbids it
    return True
