"""Slots of a cluster: which names belong to which slot."""

import binascii
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

SLOTS: Final = 16384


def slot_of(name: str | bytes) -> int:
    """Return the slot of a key or channel: the CRC-16 of its hash tag, or of the whole name without a tag.

    Source: the Redis Cluster specification, "Key distribution model" and "Hash tags".
    """
    name = name.encode() if isinstance(name, str) else name
    start = name.find(b"{")
    if start >= 0:
        stop = name.find(b"}", start + 1)
        if stop > start + 1:
            name = name[start + 1 : stop]
    return _slot_of_tag(name)


@functools.lru_cache(maxsize=1024)  # the tags of all partitions, and more
def _slot_of_tag(tag: bytes) -> int:
    return binascii.crc_hqx(tag, 0) % SLOTS


def by_slot(names: Iterable[bytes]) -> list[list[bytes]]:
    """Return the names in groups of one slot each."""
    groups: defaultdict[int, list[bytes]] = defaultdict(list)
    for name in names:
        groups[slot_of(name)].append(name)
    return list(groups.values())


def first_key(args: Sequence[bytes | str | int]) -> str | bytes:
    """Return the first key of a command of this service."""
    place = {"EVALSHA": 3, "XREADGROUP": -2}.get(str(args[0]), 1)
    key = args[place]
    if isinstance(key, int):
        message = f"the command {args[0]!r} has no key"
        raise TypeError(message)
    return key
