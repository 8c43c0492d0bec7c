"""Reads the request headers that belong to the run: those that agents may see, and the keys that may answer."""

import re
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from agentstream.errors import InvalidRequest

ANSWER_KEYS_HEADER: Final = "X-Agent-Answer-Keys"
MAX_ANSWER_KEYS: Final = 20  # a question has few people who may answer it; all hashes are compared for each request
_KEY_HASH: Final = re.compile(r"[0-9a-f]{64}")


def answer_keys(request: web.Request) -> tuple[str, ...]:
    """Return the hashes of the other API keys that may answer the interrupts of a new run; raises InvalidRequest.

    A header, because it is not part of the conversation: it is the same for all APIs, the agent does not see it, and a
    proxy can set it.
    """
    lists = request.headers.getall(ANSWER_KEYS_HEADER, [])
    hashes = [part.strip().lower() for text in lists for part in text.split(",") if part.strip()]
    if wrong := [each for each in hashes if _KEY_HASH.fullmatch(each) is None]:
        message = (
            f"an entry with {len(wrong[0])} characters is not the SHA-256 of an API key: send 64 hex digits for each "
            "key, separated by commas; never send a key"
        )
        raise InvalidRequest(message, param=ANSWER_KEYS_HEADER)
    if len(hashes) > MAX_ANSWER_KEYS:
        message = f"{len(hashes)} keys may not answer one run; the limit is {MAX_ANSWER_KEYS}"
        raise InvalidRequest(message, param=ANSWER_KEYS_HEADER)
    return tuple(dict.fromkeys(hashes))


def caller_headers(request: web.Request, names: Sequence[str]) -> dict[str, str]:
    """Return the headers of a request that have these names, spelled like the names.

    The values of a repeated header are joined with commas (RFC 9110, 5.2). A header that contains the request's API key
    is left out: no agent sees a key.
    """
    if not names:
        return {}
    key = request.headers.get("Authorization", "").partition(" ")[2].strip()
    found = {name: _text(", ".join(request.headers.getall(name))) for name in names if name in request.headers}
    return {name: value for name, value in found.items() if not (key and key in value)}


def _text(value: str) -> str:
    """Return a value without lone surrogates. aiohttp keeps bytes that are not UTF-8 in them; JSON cannot hold them."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
