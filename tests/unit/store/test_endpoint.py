"""Connecting to the broker: the forms of REDIS_URL, and the errors when no connection can be made."""

import asyncio
import shutil
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection

from agentstream.errors import BrokerUnavailable, StartupError
from agentstream.processes.broker import find_server
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from tests.fake_broker import connected_link, connecting_link, failed, fake_broker, in_time, reconnected
from tests.ports import free_port


def with_login(url: str, login: str, database: int = 0) -> str:
    """Return the URL of the same server with another login and database."""
    return f"redis://{login}@{url.rpartition('@')[2].partition('/')[0]}/{database}"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_wrong_password_is_reported_without_the_password(
    broker_url: str, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With a wrong password wait_ready raises the address and the server's refusal, and no log shows the password."""
    url = with_login(broker_url, ":not-the-password")
    async with connecting_link(f"{url}?protocol={protocol}") as link:
        await failed(link)
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:\d+ cannot be reached.*WRONGPASS") as refusal:
            await link.wait_ready(0)
    assert "not-the-password" not in str(refusal.value) + caplog.text


async def test_a_missing_password_is_reported(broker_url: str) -> None:
    """If the URL lacks the password that the server requires, wait_ready raises the server's refusal."""
    async with connecting_link(with_login(broker_url, "")) as link:
        await failed(link)
        with pytest.raises(BrokerUnavailable, match="NOAUTH"):
            await link.wait_ready(0)


async def test_a_closed_port_is_reported() -> None:
    """If nothing listens at the address, wait_ready raises the address, the time that it waited, and the cause."""
    port = free_port()
    async with connecting_link(f"redis://127.0.0.1:{port}") as link:
        await failed(link)
        with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{port} .* within 0 s: .*(?:refused|failed)"):
            await link.wait_ready(0)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_user_password_and_database_are_those_of_the_url(broker_url: str, keys: Keys, protocol: int) -> None:
    """The connection has the user, percent-decoded password and database of the URL, and the name of the link."""
    user = keys.prefix
    async with Redis.from_url(broker_url) as admin, in_time():
        await admin.acl_setuser(user, enabled=True, passwords=["+p@ss:/word"], categories=["+@all"], keys=["*"])
        url = with_login(broker_url, f"{user}:p%40ss%3A%2Fword", database=3)
        async with connected_link(f"{url}?protocol={protocol}") as link:
            assert await link.call("ACL", "WHOAMI") == user.encode()
            info = (await link.call("CLIENT", "INFO")).split()
            assert {b"db=3", b"name=test-link", b"resp=%d" % protocol} <= set(info)
        await admin.acl_deluser(user)


async def test_a_reconnect_selects_the_database_again(broker_url: str, keys: Keys) -> None:
    """After a reconnect the link uses the same database as before."""
    name = keys.jobs("n")
    async with (
        connected_link(f"{broker_url.rpartition('/')[0]}/4") as link,
        connected_link(broker_url) as admin,
        in_time(),
    ):
        await link.call("INCR", name)
        reconnect = reconnected(link)
        await admin.call("CLIENT", "KILL", "ID", await link.call("CLIENT", "ID"))
        await reconnect.wait()
        assert await link.call("INCR", name) == 2
        assert await admin.call("EXISTS", name) == 0


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    """A unix:// URL connects to a real server through its socket, with password and database."""
    path = tmp_path / "broker.sock"
    settings = ["--port", "0", "--unixsocket", str(path), "--requirepass", "secret", "--save", ""]
    server = await asyncio.create_subprocess_exec(
        str(find_server().executable), *settings, cwd=tmp_path, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with connected_link(f"unix://:secret@{path}?db=2") as link, in_time():
            info = await link.call("CLIENT", "INFO")
            assert str(path).encode() in info
            assert b" db=2 " in info
    finally:
        server.terminate()
        await server.wait()


async def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    """The error of a socket that does not exist names its path."""
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{tmp_path}/broker.sock'"):
        await Endpoint(f"unix://{tmp_path}/broker.sock").connect(asyncio.Protocol)


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", "redis://127.0.0.1:port", ""])
def test_another_kind_of_url_is_refused(url: str) -> None:
    """A value that is not a Redis URL raises a StartupError with the setting's name and the expected form."""
    with pytest.raises(StartupError, match=r"^REDIS_URL: .*(?:expected|write) (?:redis://|host:port)"):
        Endpoint(url)


# Sentinels and clusters

CLUSTER = "cluster://u:p%40@c1:7001,[::1]:7002"
SENTINEL = "sentinel://u:p%40@s1,[::1]:7002/main/3?sentinel_username=su&sentinel_password=sp"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:p@[::1]", "[::1]:6379"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        (f"redis+{SENTINEL}", "main of the sentinels s1:26379,[::1]:7002"),
        (f"redis+{CLUSTER}", "the cluster c1:7001,[::1]:7002"),
    ],
)
def test_an_endpoint_is_shown_by_its_addresses(url: str, shown: str) -> None:
    """The text of an endpoint has its addresses, and the name of the master, without credentials."""
    assert str(Endpoint(url)) == shown


async def test_a_server_of_sentinels_has_the_credentials_and_the_database_of_the_url() -> None:
    """The link and redis-py's client of a server that sentinels name use the credentials and database of the URL."""
    server = Endpoint(f"redis+{SENTINEL}").at("h", 7)
    assert (server.kind, server.addresses, server.master) == ("standalone", (("h", 7),), "")
    assert (server.credentials, server.database) == (("u", "p@"), 3)
    async with server.redis() as client:
        options = client.connection_pool.connection_kwargs
        assert [options[name] for name in ("host", "port", "username", "password", "db")] == ["h", 7, "u", "p@", 3]


async def test_sentinels_have_their_own_credentials() -> None:
    """A client of a sentinel has the credentials of the options only, and never those of the servers."""
    for query, credentials in {SENTINEL: ("su", "sp"), SENTINEL.partition("?")[0]: (None, None)}.items():
        clients = Endpoint(f"redis+{query}").sentinels()
        found = [client.connection_pool.connection_kwargs for client in clients]
        for client in clients:
            await client.aclose()
        assert [(options["host"], options["port"]) for options in found] == [("s1", 26379), ("::1", 7002)]
        assert {(options.get("username"), options.get("password")) for options in found} == {credentials}
    assert Endpoint("redis://h").sentinels() == []


def test_a_server_without_resp3_changes_no_other_server() -> None:
    """After one server of an endpoint refuses RESP3, the others still get it; a URL can ask all for RESP2."""
    endpoint = Endpoint(f"redis+{CLUSTER}")
    old = endpoint.at("old", 1)
    old.use_resp2()
    assert [old.protocol, endpoint.protocol, endpoint.at("new", 1).protocol] == [2, 3, 3]
    assert not Endpoint(f"redis+{SENTINEL}&protocol=2").at("h", 1).pushes_inline


@pytest.mark.parametrize("url", [f"redis+{SENTINEL}", f"redis+{CLUSTER}"])
async def test_several_servers_are_no_address_to_connect_to(url: str) -> None:
    """An endpoint of sentinels or of a cluster does not connect as if its first address were the server."""
    endpoint = Endpoint(url)
    with pytest.raises(RuntimeError, match="is not one server"):
        await endpoint.connect(asyncio.Protocol)
    with pytest.raises(RuntimeError, match="is not one server"):
        endpoint.redis()


# TLS


@pytest.mark.parametrize("url", ["rediss://h?", f"rediss+{SENTINEL}&", f"rediss+{CLUSTER}?"])
async def test_every_server_of_a_tls_url_gets_its_tls_options(certificate: tuple[Path, Path], url: str) -> None:
    """The link and redis-py's clients, also those of sentinels, use TLS with the certificates of the URL."""
    names = {"ssl_ca_certs": certificate[0], "ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    endpoint = Endpoint(url + "&".join(f"{name}={path}" for name, path in names.items()) + "&ssl_check_hostname=false")
    server = endpoint.at("h", 7)
    assert (server._tls().verify_mode, server._tls().check_hostname) == (ssl.CERT_REQUIRED, False)
    assert [entry["subject"] for entry in server._tls().get_ca_certs()] == [((("commonName", "localhost"),),)]
    for client in (server.redis(), *endpoint.sentinels()):
        pool = client.connection_pool
        assert issubclass(pool.connection_class, SSLConnection)
        assert {name: pool.connection_kwargs[name] for name in names} == {name: str(names[name]) for name in names}
        assert pool.connection_kwargs["ssl_check_hostname"] is False
        await client.aclose()


async def test_a_server_that_sentinels_name_is_connected_with_tls(certificate: tuple[Path, Path]) -> None:
    """The connection to a server of a rediss+sentinel:// or rediss+cluster:// URL uses TLS and checks its name."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with fake_broker(context) as peer, in_time():
        for url in (f"rediss+{SENTINEL}&ssl_ca_certs=", f"rediss+{CLUSTER}?ssl_ca_certs="):
            endpoint = Endpoint(f"{url}{certificate[0]}")
            await endpoint.at("localhost", peer.port).connect(asyncio.Protocol)
            with pytest.raises(ssl.SSLCertVerificationError):
                await endpoint.at("127.0.0.1", peer.port).connect(asyncio.Protocol)


def test_tls_checks_certificate_and_host_name_by_default() -> None:
    """A rediss:// URL checks the certificate and the host name, and a separate option switches off each check."""
    checks = {}
    for query in ("", "?ssl_check_hostname=false", "?ssl_cert_reqs=none"):
        context = Endpoint(f"rediss://broker.example{query}")._tls()
        checks[query] = (context.verify_mode, context.check_hostname)
    assert checks == {
        "": (ssl.CERT_REQUIRED, True),
        "?ssl_check_hostname=false": (ssl.CERT_REQUIRED, False),
        "?ssl_cert_reqs=none": (ssl.CERT_NONE, False),
    }


async def test_tls_never_falls_back_to_plain_text() -> None:
    """With a rediss:// URL the link sends nothing to a server without TLS, and reports a TLS error."""
    async with fake_broker() as peer, connecting_link(f"rediss://:secret@127.0.0.1:{peer.port}") as link:
        await failed(link)
        with pytest.raises(BrokerUnavailable, match=r"(?i)ssl"):
            await link.wait_ready(0)
        assert peer.received == []


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("a certificate is made with openssl, which is not on PATH")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "certificate.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(made)]
    subprocess.run([openssl, "req", "-x509", *curve, *name, *files], check=True, capture_output=True)
    return made, key


@pytest.fixture
async def tls_port(certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """The port of a fake broker that accepts only TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with fake_broker(context) as peer:
        yield peer.port


async def test_tls_to_a_known_server(tls_port: int, certificate: tuple[Path, Path]) -> None:
    """The link connects to a server whose certificate is in the URL's file of trusted certificates."""
    async with connected_link(f"rediss://localhost:{tls_port}?ssl_ca_certs={certificate[0]}") as link, in_time():
        assert await link.call("SET", "key", "value") == b"OK"


async def test_tls_to_an_untrusted_server_is_refused(tls_port: int) -> None:
    """The link does not connect to a server with an untrusted certificate, and reports the certificate as the cause."""
    async with connecting_link(f"rediss://localhost:{tls_port}") as link:
        await failed(link)
        with pytest.raises(BrokerUnavailable, match=r"(?i)certificate"):
            await link.wait_ready(0)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("redis://h/0?family=0", "the option 'family' does not exist; remove it. The options are db, protocol, "),
        ("redis://h?foo=bar", "the option 'foo' does not exist"),
        ("redis://h?foo=", "the option 'foo' does not exist"),
        ("redis://h?socket_timeout=1", "the option 'socket_timeout' does not exist"),
        ("redis://h?decode_responses=true", "the option 'decode_responses' does not exist"),
        ("unix:///run/redis.sock?foo=1", "the option 'foo' does not exist"),
        ("redis://h?ssl=true", "begin the URL with rediss://"),
        ("redis://h?ssl_cert_reqs=none", "the option 'ssl_cert_reqs' is for TLS; begin the URL with rediss://"),
        ("rediss://h?ssl_cert_reqs=never", "write none, optional, required"),
        ("rediss://h?ssl_ca_certs=/no/such/file", "No such file"),
        ("redis://h?protocol=4", "write protocol=2 or protocol=3"),
    ],
)
def test_a_wrong_option_is_refused(url: str, hint: str) -> None:
    """An option that the URL cannot have raises a StartupError with its name and what to write instead."""
    with pytest.raises(StartupError, match=r"^REDIS_URL: ") as refusal:
        Endpoint(url)
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["redis://:S3cret#rest@h:6379", "redis://h:S3cret", "redis://[S3cret", "redis://h?db=S3cret"]
)
def test_an_error_about_a_url_quotes_nothing_of_it(url: str) -> None:
    """A malformed URL may have a part of the password anywhere, so neither the error nor its traceback quotes it."""
    with pytest.raises(StartupError) as refusal:
        Endpoint(url)
    assert "S3cret" not in "".join(traceback.format_exception(refusal.value))


async def test_spellings_of_tls_options_are_those_of_both_clients() -> None:
    """The link and redis-py's client get the same TLS options, also from the spelling that other libraries use."""
    endpoint = Endpoint("rediss://h?ssl_cert_reqs=CERT_NONE")
    assert endpoint._tls().verify_mode == ssl.CERT_NONE
    async with endpoint.redis() as client:
        assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"
