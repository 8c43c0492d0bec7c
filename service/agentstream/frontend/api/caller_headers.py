"""Picks the request headers that agents may see (``run.caller.headers``)."""

from collections.abc import Sequence

from aiohttp import web


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
