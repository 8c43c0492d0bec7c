"""The tool that reads public web pages. It prevents server-side request forgery.

The address is checked where the socket is created, so the check always sees the address of the connection. It covers
literal addresses, a host name that resolves to another address later (DNS rebinding), and every redirect.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, ClassVar
from urllib.parse import urljoin, urlsplit

import aiohttp

from agentstream.tools.base import ToolError

MAX_REDIRECTS = 3
MAX_URL_CHARS = 2048  # all common browsers and proxies accept this length
# A long article has 100 KB of HTML. The toolbox would cut a longer text anyway.
MAX_BODY_BYTES = 512 << 10
TIMEOUT_S = 15.0  # for name resolution, redirects and body together; a person waits for the answer

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/xhtml+xml", "application/ld+json"})
_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})


def is_public(address: IpAddress) -> bool:
    """Return whether the address is on the public internet. For IPv4 inside IPv6 the IPv4 address decides."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class ReadUrl:
    """The tool: ``{"url": "https://example.org"}`` returns the readable text of the page."""

    name = "read_url"
    read_only = True
    description = "Read a public web page (http or https) and return its text without markup."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"url": {"type": "string", "description": "the full address, with https://"}},
        "required": ["url"],
        "additionalProperties": False,
    }

    def __init__(
        self,
        *,
        allowed: Callable[[IpAddress], bool] = is_public,
        timeout_s: float = TIMEOUT_S,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """Set the limits of each call.

        ``allowed`` decides about each address before the connection; tests pass a function that allows loopback
        addresses. ``timeout_s`` is the time limit of the whole call with its redirects, in seconds.
        ``max_body_bytes`` is the size at which a page is cut.
        """
        self._allowed = allowed
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return the text of the page. Raises ToolError if the page is refused, unreachable, too slow or not text."""
        url = arguments["url"].strip()
        guard = _AddressGuard(self._allowed)
        # A new connector for each call, so that no existing connection, proxy or cookie is used.
        connector = aiohttp.TCPConnector(socket_factory=guard.open_socket, use_dns_cache=False, force_close=True)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                    timeout=aiohttp.ClientTimeout(total=None),  # asyncio.timeout above limits the whole call
                ) as session,
            ):
                return await self._read(session, url)
        except TimeoutError as exc:
            message = f"{url} did not answer within {self._timeout_s:g} s"
            raise ToolError(message) from exc
        except (aiohttp.ClientError, ValueError) as exc:  # ValueError: a host name or URL that cannot be encoded
            if guard.refused:
                message = f"{url} was not read: it leads to an address that is not on the public internet"
            else:
                message = f"{url} could not be read ({type(exc).__name__}); check the address or try another page"
            raise ToolError(message) from exc

    async def _read(self, session: aiohttp.ClientSession, url: str) -> str:
        for _ in range(MAX_REDIRECTS + 1):
            _check_url(url)
            async with session.get(
                url,
                allow_redirects=False,
                # identity: the body is not compressed, so the limit also applies to its size in memory.
                headers={"Accept": "text/*, application/json", "Accept-Encoding": "identity"},
            ) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await self._text(response, url)
            url = urljoin(url, location)
        message = f"more than {MAX_REDIRECTS} redirects; the last one led to {url}"
        raise ToolError(message)

    async def _text(self, response: aiohttp.ClientResponse, url: str) -> str:
        if not response.ok:
            message = f"{url} answered with HTTP status {response.status}"
            raise ToolError(message)
        content_type = response.content_type
        if not (content_type.startswith("text/") or content_type in _TEXT_TYPES):
            message = f"{url} is {content_type}, not text"
            raise ToolError(message)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            message = f"{url} was sent compressed, although the request asked for no compression"
            raise ToolError(message)
        body, cut = await self._body(response)
        text = _decoded(body, response.charset)
        if content_type in _HTML_TYPES:
            # In a thread, because html.parser may need a second for half a megabyte of broken markup.
            text = await asyncio.to_thread(readable_text, text)
        return f"{text}\n[cut after {self._max_body_bytes} bytes]" if cut else text

    async def _body(self, response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > self._max_body_bytes:
                return bytes(body[: self._max_body_bytes]), True
        return bytes(body), False


class _AddressGuard:
    """Creates sockets, but only for allowed addresses."""

    def __init__(self, allowed: Callable[[IpAddress], bool]) -> None:
        self._allowed = allowed
        self.refused = False

    def open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket for the address that aiohttp connects to. Raises PermissionError if it is not allowed."""
        family, kind, protocol, _, address = info
        host = str(address[0]).partition("%")[0]  # without the scope of an IPv6 address
        if not self._allowed(ipaddress.ip_address(host)):
            self.refused = True
            message = "not a public address"
            raise PermissionError(message)
        return socket.socket(family, kind, protocol)


def _check_url(url: str) -> None:
    if len(url) > MAX_URL_CHARS:
        message = f"the address has {len(url)} characters; at most {MAX_URL_CHARS} are allowed"
        raise ToolError(message)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        message = f"only http:// and https:// addresses can be read, not {url[:60]!r}"
        raise ToolError(message)
    if not parts.hostname:
        message = f"{url[:60]!r} has no host name"
        raise ToolError(message)
    if parts.username is not None or parts.password is not None:
        message = "an address with a user name or password is not allowed"
        raise ToolError(message)


def _decoded(body: bytes, charset: str | None) -> str:
    try:
        return body.decode(charset or "utf-8", "replace")
    except LookupError:  # Python does not know the charset
        return body.decode("utf-8", "replace")


def readable_text(html: str) -> str:
    """Return the visible text of a page: its title, then one line for each block."""
    parser = _TextOfPage()
    # The parser is not closed: for each unfinished piece of markup close() scans the rest again, which took minutes
    # for half a megabyte of "<!--". After the added line end, feed() also returns an entity at the end of the page.
    with contextlib.suppress(AssertionError):  # raised at an unknown <![section[; the text before it is kept
        parser.feed(html + "\n")
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in "".join(parser.pieces).split("\n"))
    return "\n".join(line for line in lines if line)


class _TextOfPage(HTMLParser):
    """Collects the text of a page, without elements that browsers do not show."""

    _HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe"})
    _INLINE = frozenset(
        [
            "a",
            "abbr",
            "b",
            "bdi",
            "bdo",
            "cite",
            "code",
            "data",
            "del",
            "dfn",
            "em",
            "font",
            "i",
            "ins",
            "kbd",
            "label",
            "mark",
            "q",
            "s",
            "samp",
            "small",
            "span",
            "strong",
            "sub",
            "sup",
            "time",
            "tt",
            "u",
            "var",
            "wbr",
        ],
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden_tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in self._HIDDEN:
            self._hidden_tags.append(tag)
        elif tag not in self._INLINE:
            self.pieces.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs  # for example <br/>; an empty <svg/> hides no text
        if tag not in self._INLINE:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden_tags:
            while self._hidden_tags.pop() != tag:  # drop the tags inside it that were never closed
                pass
        elif tag not in self._INLINE:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden_tags:
            self.pieces.append(re.sub(r"\s+", " ", data))
