"""The proxies of the environment, which the HTTP clients of model servers and MCP servers use.

The clients read the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY themselves, in upper and lower case.
"""

import importlib.util
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from agentstream.telemetry.masking import mask_error

_SCHEMES: Final = ("http", "https", "socks5", "socks5h")
_KINDS: Final = ("http", "https", "all")


def proxy_of(url: str) -> str:
    """Return the proxy for requests to a URL, with its variable but without its password; "" if there is none."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    proxies = getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)
    return f"{mask_error(_with_scheme(proxies[kind]))} ({kind.upper()}_PROXY)" if kind else ""


def unusable_proxy() -> str | None:
    """Return which variable names a proxy that the clients cannot use, and how to mend it; None if all are usable.

    A client refuses such a variable when it is created, also if no request would go through the proxy.
    """
    proxies = getproxies()
    for kind in _KINDS:
        url = proxies.get(kind)
        reason = _fault(_with_scheme(url)) if url else None
        if url and reason:
            return f"{kind.upper()}_PROXY={mask_error(url)!r} names a proxy that cannot be used: {reason}"
    return None


def _fault(url: str) -> str | None:
    scheme = url.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        right = f"socks5://{url.partition('://')[2]}" if scheme.startswith("socks") else "a URL with http://"
        return f"{scheme}:// is not supported; write {mask_error(right)}, or unset the variable"
    try:
        host = urlsplit(url).hostname if urlsplit(url).port != 0 else None
    except ValueError:
        host = None
    if not host:
        return "write scheme://host:port, such as http://proxy.example:3128, or unset the variable"
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "a SOCKS proxy needs a package that is not installed: pip install socksio"
    return None


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"http://{url}"
