"""The forms of REDIS_URL: one server, a server that sentinels watch, or a cluster. Pure text: it opens no file."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn
from urllib.parse import parse_qsl, unquote

Kind = Literal["standalone", "sentinel", "cluster"]
Address = tuple[str, int]

SERVER_FORM: Final = "redis://[[user]:password@]host[:port][/database]"
SENTINEL_FORM: Final = "redis+sentinel://[[user]:password@]host[:26379],host[:26379]/master[/database]"
CLUSTER_FORM: Final = "redis+cluster://[[user]:password@]host[:6379],host[:6379]"

_KINDS: Final[dict[str, tuple[Kind, bool]]] = {  # with whether the connections use TLS
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("standalone", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_ALIASES: Final = {"valkey": "redis", "valkeys": "rediss"}
_FORM_OF: Final[dict[Kind, str]] = {"standalone": SERVER_FORM, "sentinel": SENTINEL_FORM, "cluster": CLUSTER_FORM}
_PORT_OF: Final[dict[Kind, int]] = {"standalone": 6379, "sentinel": 26379, "cluster": 6379}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_TLS_WORDS: Final = {"rediss", "valkeys", "tls", "ssl"}

# The options that a URL may have. Other options of redis-py would fail at the first connection, or change what the
# service relies on, such as timeouts.
_TLS_OPTIONS: Final = (
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path"),
    *("ssl_certfile", "ssl_keyfile", "ssl_password"),
)
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_OPTIONS: Final = ("db", "protocol", "username", "password", *_TLS_OPTIONS)
# Other programs have the name of the master in an option.
_MASTER_OPTIONS: Final = {"master", "master_name", "mastername", "service_name", "sentinelmasterid", "master_set"}
_CERT_REQS: Final = ("none", "optional", "required")
_FLAGS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_MASTER: Final = re.compile(r"[A-Za-z0-9._-]+")  # the characters that sentinels accept
_HOST: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>\d{0,5}))?", re.ASCII)
_MAX_PORT: Final = 65535
_MAX_SOCKET_PATH: Final = 107  # bytes; unix(7). On macOS it is 103
_NO_PORT: Final = (
    "the part between the host and the path is not a port, or '[' has no ']': write host:port, with a number from 1 to "
    "65535; percent-encode '#', '/', '?', '@' and ':' in a password"
)
_NO_IPV6: Final = f"{_NO_PORT}; write an IPv6 address in brackets, such as [::1]:6379"
_ENCODE: Final = (
    "If such a character belongs to the password, percent-encode it: %23 for #, %2F for /, %3F for ?, %40 for @, "
    "%5B for [, %5D for ], %25 for %"
)


class BrokerUrlError(ValueError):
    """A wrong REDIS_URL. The text says what is wrong and what to write instead, and contains no part of a password."""


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed REDIS_URL."""

    text: str = field(repr=False)  # the URL with the usual spelling of its scheme
    kind: Kind
    tls: bool
    addresses: tuple[Address, ...]  # the one server, the sentinels or some nodes of the cluster; none for a socket
    path: str = ""  # of a socket
    master: str = ""  # the name that the sentinels know
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    protocol: int = 3
    tls_options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)  # named as for redis-py


def parse(url: str) -> BrokerUrl:
    """Parse a URL; raises BrokerUrlError if its form or one of its options is wrong."""
    scheme, rest = _scheme_of(url.strip())
    kind, tls = _KINDS[scheme]
    before, _, query = rest.partition("?")
    _check_characters(rest, kind)
    login, _, place = before.rpartition("@")
    user, _, password = login.partition(":")
    options = _options(query, scheme)
    hosts, slash, path = place.partition("/")
    path = slash + path
    master = ""
    socket = ""
    if scheme == "unix":
        socket = _socket(hosts, unquote(path))
        addresses: tuple[Address, ...] = ()
        database = _database("", options.get("db", ""))
    else:
        addresses = tuple(dict.fromkeys(_addresses(hosts, scheme)))
        if kind == "sentinel":
            master, path = _master(path)
        if kind == "cluster" and (path.strip("/") or "db" in options):
            _fail(
                "a cluster has no numbered databases: remove the database number from the URL. "
                "AGENTSTREAM_KEY_PREFIX separates deployments that share a cluster"
            )
        database = _database(path, options.get("db", ""))
    return BrokerUrl(
        text=f"{scheme}://{rest}",
        kind=kind,
        tls=tls,
        addresses=addresses,
        path=socket,
        master=master,
        database=database,
        username=unquote(user) or options.get("username", ""),
        password=unquote(password) or options.get("password", ""),
        sentinel_username=options.get("sentinel_username", ""),
        sentinel_password=options.get("sentinel_password", ""),
        protocol=_protocol(options.get("protocol", "3"), kind),
        tls_options=_tls_options(options),
    )


def show_address(host: str, port: int) -> str:
    """Return host and port as in a URL, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fail(fault: str) -> NoReturn:
    raise BrokerUrlError(fault)


def _scheme_of(url: str) -> tuple[str, str]:
    """Return the scheme in its usual spelling, and the URL after it."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme):
        _fail(f"the scheme is missing: expected {SERVER_FORM}, or rediss:// for TLS")
    scheme = _ALIASES.get(scheme, scheme)
    if scheme in _KINDS:
        return scheme, rest
    kind: Kind = "sentinel" if "sentinel" in scheme else "cluster" if "cluster" in scheme else "standalone"
    if kind == "standalone":
        _fail(
            f"{scheme}:// is not supported; expected redis://, rediss:// (with TLS), unix://, redis+sentinel:// or "
            "redis+cluster://"
        )
    form = _FORM_OF[kind]
    if _TLS_WORDS.intersection(re.split(r"[+.-]", scheme)):
        form = form.replace("redis+", "rediss+", 1)
    _fail(f"{scheme}:// is not supported; write {form}")


def _check_characters(rest: str, kind: Kind) -> None:
    """Refuse characters that would make a part of the password look like another part of the URL."""
    if any(char.isspace() or not char.isprintable() for char in rest):
        _fail("it contains a space or a control character: remove it, or percent-encode it (%20 for a space)")
    login, at, _ = rest.rpartition("@")
    if "#" in rest or (at and re.search(r"[/?\[\]@]", login)):
        once = "" if kind == "standalone" else ". Write user and password once, before the first host"
        _fail(f"it contains '#', or '/', '?', '@', '[' or ']' before the last '@'. {_ENCODE}{once}")


def _socket(host: str, path: str) -> str:
    if host or not path:
        _fail("the path of the socket is missing: write unix:///path/to/redis.sock, with three slashes")
    if len(path.encode()) > _MAX_SOCKET_PATH:
        _fail(
            f"the path of the socket is longer than {_MAX_SOCKET_PATH} bytes, which no system allows: use a shorter one"
        )
    return path


def _addresses(hosts: str, scheme: str) -> Iterator[Address]:
    """Yield the addresses of a list. No error quotes one: a part of a password may be in the place of the port."""
    kind, _ = _KINDS[scheme]
    if ";" in hosts:
        _fail(f"write commas between the hosts, not semicolons: {_FORM_OF[kind]}")
    if kind == "standalone" and "," in hosts:
        _fail(
            f"{scheme}:// names one server. For several write {scheme}+sentinel://host,host/master or "
            f"{scheme}+cluster://host,host"
        )
    if kind != "standalone" and not hosts:
        _fail(f"the hosts are missing: write {_FORM_OF[kind]}")
    for number, entry in enumerate(hosts.split(","), 1):
        which = "" if kind == "standalone" else f"host {number} of the list: "
        try:
            host, port = _address(entry, _PORT_OF[kind])
        except BrokerUrlError as exc:
            raise BrokerUrlError(f"{which}{exc}") from None  # noqa: EM102
        if not host and kind != "standalone":
            _fail(f"{which}it is empty: write {_FORM_OF[kind]}")
        yield host or "localhost", port


def _address(entry: str, usual_port: int) -> Address:
    match = _HOST.fullmatch(entry)
    if match is None:
        _fail(_NO_IPV6 if entry.count(":") > 1 and "[" not in entry else _NO_PORT)
    port = int(match["port"] or usual_port)
    if not 1 <= port <= _MAX_PORT:
        _fail(_NO_PORT)
    if match["v6"] is None:
        return unquote(match["name"]).lower(), port
    host = unquote(match["v6"])
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        host = ""
    return host or _fail("the text between '[' and ']' is not an IPv6 address"), port


def _master(path: str) -> tuple[str, str]:
    """Return the name of the master, and the rest of the path, which names the database."""
    name, slash, rest = path.removeprefix("/").partition("/")
    name = unquote(name)
    if not name or (name.isdigit() and not rest):
        _fail(f"the name of the master is missing: write {SENTINEL_FORM}, with the name that the sentinels know")
    if not _MASTER.fullmatch(name):
        _fail(
            f"the name of the master has a character that sentinels do not accept: write letters, digits, '.', '-' and "
            f"'_', as in {SENTINEL_FORM}"
        )
    return name, slash + rest


def _database(path: str, option: str) -> int:
    """Return the number of the database in the path, or in the option ``db``."""
    number = unquote(path).strip("/")
    if not re.fullmatch(r"[0-9]{0,9}", number):
        _fail(f"the part after the host or the master is the number of a database, not {number!r:.40}")
    if not re.fullmatch(r"[0-9]{0,9}", option):
        _fail("db is the number of a database, such as db=0")
    if number and option and int(number) != int(option):
        _fail(f"it names two databases, {int(number)} in the path and db={int(option)}: remove one of them")
    return int(option or number or 0)


def _options(query: str, scheme: str) -> dict[str, str]:
    """Return the options of the query. Says what to write instead of an option that the URL cannot have."""
    kind, tls = _KINDS[scheme]
    known = _OPTIONS + (_SENTINEL_OPTIONS if kind == "sentinel" else ())
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in {"ssl", "tls"}:
            _fail(f"the option {name!r} does not exist; for TLS begin the URL with {_with_tls(scheme)}")
        if name in _SENTINEL_OPTIONS and kind != "sentinel":
            _fail(f"the option {name!r} is for sentinels; remove it, or write {SENTINEL_FORM}")
        if kind == "sentinel" and name.lower() in _MASTER_OPTIONS:
            _fail(f"the option {name!r} does not exist; write the name of the master after the hosts: {SENTINEL_FORM}")
        if name not in known:
            _fail(f"the option {name!r} does not exist; remove it. The options are {', '.join(known)}")
        if name in _TLS_OPTIONS and not tls:
            _fail(f"the option {name!r} is for TLS; begin the URL with {_with_tls(scheme)}")
        if value:
            options.setdefault(name, value)
    if "sentinel_username" in options and "sentinel_password" not in options:
        _fail("sentinel_username needs sentinel_password, too")
    return options


def _with_tls(scheme: str) -> str:
    if scheme == "unix":
        return "rediss:// and the host instead of unix://: a socket has no TLS"
    return f"{scheme.replace('redis', 'rediss', 1)}:// instead of {scheme}://"


def _protocol(value: str, kind: Kind) -> int:
    if value not in {"2", "3"}:
        _fail("this protocol does not exist; write protocol=2 or protocol=3")
    if value == "2" and kind == "cluster":
        _fail(
            "protocol=2 does not work with a cluster, whose sharded pub/sub needs Redis 7 or later, which has "
            "RESP3: remove protocol=2"
        )
    return int(value)


def _tls_options(options: Mapping[str, str]) -> dict[str, str | bool]:
    """Return the TLS options, with values in their usual spelling."""
    found: dict[str, str | bool] = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    if verify := options.get("ssl_cert_reqs"):
        found["ssl_cert_reqs"] = verify = verify.lower().removeprefix("cert_")
        if verify not in _CERT_REQS:
            _fail(f"this value of ssl_cert_reqs does not exist; write {', '.join(_CERT_REQS)}")
    if flag := options.get("ssl_check_hostname"):
        if flag.lower() not in _FLAGS:
            _fail("ssl_check_hostname is a switch; write true or false")
        found["ssl_check_hostname"] = _FLAGS[flag.lower()]
    return found
