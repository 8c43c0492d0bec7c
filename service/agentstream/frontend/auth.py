"""Checks the API key of a request."""

import hashlib
import hmac
from collections.abc import Sequence

from aiohttp import web

from agentstream.errors import Unauthenticated


class Authenticator:
    """Checks Bearer API keys. If no key is configured, every request is accepted."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        """Store the SHA-256 hashes of the keys, not the keys."""
        self._hashes = [_hash(key) for key in api_keys]

    def authenticate(self, request: web.Request) -> str:
        """Return the SHA-256 hash of the request's key, which is the owner of its runs; "" if no keys are configured.

        Compares the key with every configured key, each in constant time. Raises Unauthenticated if the key is missing
        or unknown.
        """
        if not self._hashes:
            return ""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "the request has no API key: send the header 'Authorization: Bearer <key>'"
            raise Unauthenticated(message)
        given = _hash(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if not any(matches):
            message = "the API key is not valid; use a key that is configured on this server"
            raise Unauthenticated(message)
        return given


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
