"""Loopback addresses for servers, and cuts of the network between them."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable

MOST_SERVERS = 40  # addresses of one set of servers


def addresses() -> list[str]:
    """Return loopback addresses that no other set of servers uses. All are 127.0.0.1 where a system has only that."""
    network = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}"
    found = [f"{network}.{number + 1}" for number in range(MOST_SERVERS)]
    try:
        socket.create_server((found[0], 0)).close()
    except OSError:
        return ["127.0.0.1"] * MOST_SERVERS
    return found


class Cuts:
    """Cuts between loopback addresses: the kernel drops each packet from one to the other, without a reset.

    Connections stay open and silent, as with a broken switch. Only Linux with nftables, as root: see ``can_cut``.
    """

    def __init__(self) -> None:
        self._table = f"agentstream_test_{os.getpid()}_{secrets.token_hex(4)}"
        self._pairs: set[tuple[str, str]] = set()

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Cut these pairs of addresses too, in both directions."""
        self._pairs |= {pair for one, other in pairs for pair in ((one, other), (other, one))}
        rules = "\n".join(f"ip saddr {source} ip daddr {target} drop" for source, target in sorted(self._pairs))
        chain = f"chain cuts {{ type filter hook input priority filter; policy accept;\n{rules}\n}}"
        _nft(f"table ip {self._table}\ndelete table ip {self._table}\ntable ip {self._table} {{\n{chain}\n}}\n")

    def heal(self) -> None:
        """End all cuts."""
        if self._pairs:
            self._pairs.clear()
            _nft(f"delete table ip {self._table}\n")


def can_cut() -> bool:
    """Return whether this process may cut the network between two addresses."""
    if sys.platform != "linux" or shutil.which("nft") is None or len(set(addresses())) == 1:
        return False
    cuts = Cuts()
    try:
        cuts.cut([("127.255.255.253", "127.255.255.254")])
        cuts.heal()
    except subprocess.CalledProcessError:
        return False
    return True


def _nft(rules: str) -> None:
    nft = shutil.which("nft") or "nft"
    subprocess.run([nft, "-f", "-"], input=rules, check=True, capture_output=True, text=True, timeout=10)
