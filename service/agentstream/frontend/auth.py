"""API keys."""

import hashlib
import hmac
from collections.abc import Sequence

from aiohttp import web

from agentstream.errors import Unauthenticated


class Authenticator:
    """Checks Bearer keys. Without any configured key everyone may call."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        """Keep only the keys' hashes."""
        self._hashes = [_hash(key) for key in api_keys]

    def authenticate(self, request: web.Request) -> str:
        """Return the hash of the caller's key, to which its runs belong ("" without keys).

        Raises Unauthenticated. Every key is compared, in constant time.
        """
        if not self._hashes:
            return ""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "no API key: send it as 'Authorization: Bearer <key>'"
            raise Unauthenticated(message)
        given = _hash(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if not any(matches):
            message = "the API key is not valid here"
            raise Unauthenticated(message)
        return given


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
