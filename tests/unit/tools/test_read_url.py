"""Reading web pages: refused addresses, limits, and the text of a page."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from agentstream.tools import read_url
from agentstream.tools.base import ToolError
from agentstream.tools.read_url import IpAddress, ReadUrl, is_public, readable_text

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[TestServer]]


def allow_all(_: IpAddress) -> bool:
    return True


@pytest.fixture
def serve(aiohttp_server: Callable[..., Awaitable[TestServer]]) -> Serve:
    async def start(**handlers: Handler) -> TestServer:
        app = web.Application()
        for name, handler in handlers.items():
            app.router.add_get(f"/{name}", handler)
        return await aiohttp_server(app)

    return start


def answers(body: str | bytes, content_type: str = "text/plain", **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, headers={"Content-Type": content_type, **headers})

    return handler


def redirects_to(location: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    return handler


async def read(url: object, **options: Any) -> str:
    return await ReadUrl(**{"allowed": allow_all, **options}).run({"url": str(url)})


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",  # noqa: S104 -- an address that must be refused
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "100::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_addresses_off_the_public_internet_are_not_public(address: str) -> None:
    """Loopback, private, link-local, reserved and multicast addresses are not public, also inside an IPv6 address."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_public_internet_are_public(address: str) -> None:
    """Ordinary addresses are public, also a public IPv4 address inside an IPv6 address."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]"])
async def test_this_machine_is_refused_by_default(serve: Serve, host: str) -> None:
    """By default no form of the machine's own address is read, and its server gets no request."""
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(text="secret")

    server = await serve(page=handler)
    with pytest.raises(ToolError, match="not on the public internet"):
        await ReadUrl().run({"url": f"http://{host}:{server.port}/page"})
    assert not seen


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001"])
async def test_unusual_forms_of_an_address_are_refused(serve: Serve, host: str) -> None:
    """Numeric forms of 127.0.0.1 that only a resolver understands are not read."""
    server = await serve(page=answers("secret"))
    with pytest.raises(ToolError, match=r"not read|could not be read"):
        await ReadUrl().run({"url": f"http://{host}:{server.port}/page"})


async def test_a_redirect_to_a_refused_address_is_not_followed(serve: Serve) -> None:
    """The address of each redirect is checked, so that an allowed page cannot lead to a refused address."""
    secret = await serve(page=answers("secret"))
    opened: list[str] = []

    def allow_first(address: IpAddress) -> bool:
        opened.append(str(address))
        return len(opened) == 1

    entry = await serve(page=redirects_to(str(secret.make_url("/page"))))
    with pytest.raises(ToolError, match="not on the public internet"):
        await read(entry.make_url("/page"), allowed=allow_first)
    assert opened == ["127.0.0.1", "127.0.0.1"]


async def test_a_name_that_resolves_elsewhere_at_connect_time_is_refused(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address of the connection is checked, so that a changed answer of the resolver cannot avoid the check."""
    server = await serve(page=answers("secret"))

    class Rebinding(AbstractResolver):
        async def resolve(
            self,
            host: str,
            port: int = 0,
            family: socket.AddressFamily = socket.AF_INET,
        ) -> list[ResolveResult]:
            del family
            return [
                ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0),
            ]

        async def close(self) -> None:
            pass

    monkeypatch.setattr(aiohttp.connector, "DefaultResolver", lambda **_: Rebinding())
    url = f"http://public.example:{server.port}/page"
    assert await read(url) == "secret"  # the name really leads to the server
    with pytest.raises(ToolError, match="not on the public internet"):
        await ReadUrl().run({"url": url})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/", "only http"),
        ("file:///etc/passwd", "only http"),
        ("example.org", "only http"),
        ("http://", "has no host name"),
        ("http://user:pass@example.org/", "user name or password"),
        ("http://[", "could not be read"),
        ("http://a..b/", "could not be read"),
        ("http://" + "a" * 3000, "at most 2048"),
    ],
)
async def test_other_addresses_are_refused_before_anything_is_sent(url: str, reason: str) -> None:
    """Only http and https addresses without credentials are read, and the error has the reason."""
    with pytest.raises(ToolError, match=reason):
        await read(url)


async def test_a_redirect_to_another_scheme_is_refused(serve: Serve) -> None:
    """A redirect to a scheme other than http and https is refused."""
    server = await serve(page=redirects_to("file:///etc/passwd"))
    with pytest.raises(ToolError, match="only http"):
        await read(server.make_url("/page"))


# Limits


async def test_three_redirects_are_followed_and_a_fourth_is_not(serve: Serve) -> None:
    """Redirects, also relative ones, are followed up to three times."""
    server = await serve(
        a=redirects_to("/b"),
        b=redirects_to("c"),
        c=redirects_to("/d"),
        d=answers("arrived"),
        too_far=redirects_to("/a"),
    )
    assert await read(server.make_url("/a")) == "arrived"
    with pytest.raises(ToolError, match="more than 3 redirects"):
        await read(server.make_url("/too_far"))


async def test_a_body_over_the_limit_is_cut_with_a_note(serve: Serve) -> None:
    """Reading stops at the limit, and the text has a note that it was cut."""
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 1000)
        finally:
            gone.set()

    server = await serve(page=endless)
    assert await read(server.make_url("/page"), max_body_bytes=2500) == "x" * 2500 + "\n[cut after 2500 bytes]"
    await asyncio.wait_for(gone.wait(), 5)


async def test_a_page_without_answer_times_out(serve: Serve) -> None:
    """If a page does not answer within the time limit, ToolError names the limit."""

    async def silent(_: web.Request) -> web.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    server = await serve(page=silent)
    with pytest.raises(ToolError, match=r"did not answer within 0\.05 s"):
        await read(server.make_url("/page"), timeout_s=0.05)


async def test_a_refused_connection_is_explained(unused_tcp_port: int) -> None:
    """If the connection is refused, ToolError suggests what to do."""
    with pytest.raises(ToolError, match=r"could not be read.*another page"):
        await read(f"http://127.0.0.1:{unused_tcp_port}/")


async def test_an_error_status_is_reported(serve: Serve) -> None:
    """If a page answers with an error status, ToolError names the status."""
    server = await serve()
    with pytest.raises(ToolError, match="HTTP status 404"):
        await read(server.make_url("/nothing"))


@pytest.mark.parametrize("content_type", ["image/png", "application/pdf", "application/octet-stream"])
async def test_only_text_is_read(serve: Serve, content_type: str) -> None:
    """If the content type is not text, ToolError names it."""
    server = await serve(page=answers("x", content_type))
    with pytest.raises(ToolError, match=f"is {content_type}, not text"):
        await read(server.make_url("/page"))


async def test_a_compressed_body_is_refused(serve: Serve) -> None:
    """A compressed body is refused, because it could grow to thousands of times its size."""
    server = await serve(page=answers(b"\x1f\x8b", **{"Content-Encoding": "gzip"}))
    with pytest.raises(ToolError, match="compressed"):
        await read(server.make_url("/page"))


# Text


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        ('{"a": 1}', "application/json", '{"a": 1}'),
        ("  as it is\n", "text/plain", "  as it is\n"),
        ("caf\xe9".encode("latin-1"), "text/plain; charset=latin-1", "café"),
        ("café".encode(), "text/plain; charset=no-such-charset", "café"),
        (b"bad \xff byte", "text/plain", "bad \ufffd byte"),
        ("<title>T</title><p>a</p>", "text/html", "T\na"),
    ],
)
async def test_text_is_decoded(serve: Serve, body: str | bytes, content_type: str, expected: str) -> None:
    """Text is decoded with its charset, HTML is reduced to its visible text, and other text is unchanged."""
    server = await serve(page=answers(body, content_type))
    assert await read(server.make_url("/page")) == expected


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<h1>A</h1><p>b <b>c</b>d<br>e</p>", "A\nb cd\ne"),
        ("a<script>if (1 < 2) x()</script><style>p{}</style>b", "ab"),
        ("<svg><text>no</text></svg>yes", "yes"),
        ("<noscript><p>no</noscript>yes", "yes"),
        ("1 &lt; 2 &amp; 3&nbsp;4", "1 < 2 & 3 4"),
        ("a\n   b\t c", "a b c"),
        ("<ul><li>x<li>y</ul>", "x\ny"),
        ("before<![odd[after", "before"),
        ("ends &amp", "ends &"),
    ],
)
def test_html_becomes_readable_text(html: str, expected: str) -> None:
    """Markup, scripts and styles are removed, and each block is one line."""
    assert readable_text(html) == expected


@pytest.mark.parametrize("piece", ["<!--", "<a ", "<a x='", "</", "<![", "<svg>", "<", "<!"])
def test_broken_markup_is_read_in_bounded_time(piece: str) -> None:
    """A page of unfinished markup takes about a second, although html.parser would need minutes to close it."""
    html = piece * (read_url.MAX_BODY_BYTES // len(piece))
    started = time.perf_counter()
    readable_text(html)
    assert time.perf_counter() - started < 10
