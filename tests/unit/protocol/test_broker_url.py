"""The forms of REDIS_URL: each right form, and each wrong form with the right one in its error."""

from dataclasses import asdict

import pytest

from agentstream.protocol.broker_url import CLUSTER_FORM, SENTINEL_FORM, BrokerUrlError, parse, show_address

DEFAULTS = {
    "kind": "standalone",
    "tls": False,
    "path": "",
    "master": "",
    "database": 0,
    "username": "",
    "password": "",
    "sentinel_username": "",
    "sentinel_password": "",
    "protocol": 3,
    "tls_options": {},
}
# Each URL with what differs from the defaults.
RIGHT: dict[str, dict[str, object]] = {
    "redis://": {"addresses": (("localhost", 6379),)},
    "redis://H:7": {"addresses": (("h", 7),)},
    "redis://h:/": {"addresses": (("h", 6379),)},
    "valkeys://h/2": {"tls": True, "addresses": (("h", 6379),), "database": 2},
    "redis://u%40:p%2F,%2C+@[::1]:7/3?protocol=2": {
        "addresses": (("::1", 7),),
        "database": 3,
        "username": "u@",
        "password": "p/,,+",
        "protocol": 2,
    },
    "redis://[fe80::1%25eth0]?username=u&password=p%26&db=4": {
        "addresses": (("fe80::1%eth0", 6379),),
        "database": 4,
        "username": "u",
        "password": "p&",
    },
    "unix://:p@/run/a%20b.sock?db=1": {"addresses": (), "path": "/run/a b.sock", "database": 1, "password": "p"},
    "redis+sentinel://s1,s2:7,[::1],[::2]:8/main": {
        "kind": "sentinel",
        "addresses": (("s1", 26379), ("s2", 7), ("::1", 26379), ("::2", 8)),
        "master": "main",
    },
    "rediss+sentinel://u:p@s1:1,s1:1/my.main-1/2?sentinel_username=su&sentinel_password=sp%40&protocol=2": {
        "kind": "sentinel",
        "tls": True,
        "addresses": (("s1", 1),),
        "master": "my.main-1",
        "database": 2,
        "username": "u",
        "password": "p",
        "sentinel_username": "su",
        "sentinel_password": "sp@",
        "protocol": 2,
    },
    "redis+sentinel://s/0/0": {"kind": "sentinel", "addresses": (("s", 26379),), "master": "0"},
    "redis+sentinel://s/m?db=5": {"kind": "sentinel", "addresses": (("s", 26379),), "master": "m", "database": 5},
    "redis+cluster://u:p@c1:7001,c2,[::1]:7003/": {
        "kind": "cluster",
        "addresses": (("c1", 7001), ("c2", 6379), ("::1", 7003)),
        "username": "u",
        "password": "p",
    },
    "rediss+cluster://c?ssl_cert_reqs=CERT_OPTIONAL&ssl_check_hostname=No&ssl_ca_certs=/ca.pem&ssl_password=k": {
        "kind": "cluster",
        "tls": True,
        "addresses": (("c", 6379),),
        "tls_options": {
            "ssl_cert_reqs": "optional",
            "ssl_check_hostname": False,
            "ssl_ca_certs": "/ca.pem",
            "ssl_password": "k",
        },
    },
}


@pytest.mark.parametrize("url", RIGHT)
def test_a_right_form_is_parsed(url: str) -> None:
    """Each part of a URL has its place, its default and its percent-decoded value."""
    found = asdict(parse(url))
    del found["text"]
    assert found == DEFAULTS | RIGHT[url]


@pytest.mark.parametrize(
    ("url", "right"),
    [
        # the scheme
        ("", "the scheme is missing: expected redis://"),
        ("h:6379", "the scheme is missing"),
        (
            "http://h",
            "http:// is not supported; expected redis://, rediss:// (with TLS), unix://, redis+sentinel:// or ",
        ),
        ("redis-sentinel://h1,h2/m", f"redis-sentinel:// is not supported; write {SENTINEL_FORM}"),
        ("sentinel://:S3cret@h1:1;sentinel://h2:2", f"sentinel:// is not supported; write {SENTINEL_FORM}"),
        ("redis+sentinels://h/m", SENTINEL_FORM),
        ("rediss-sentinel://h/m", f"write {SENTINEL_FORM.replace('redis+', 'rediss+')}"),
        ("valkey+sentinel://h/m", f"write {SENTINEL_FORM}"),
        ("valkeys+sentinel://h/m", f"write {SENTINEL_FORM.replace('redis+', 'rediss+')}"),
        ("redis-cluster://h", f"redis-cluster:// is not supported; write {CLUSTER_FORM}"),
        ("cluster://h", f"write {CLUSTER_FORM}"),
        ("valkey+cluster://h", f"write {CLUSTER_FORM}"),
        ("rediss-cluster://h", f"write {CLUSTER_FORM.replace('redis+', 'rediss+')}"),
        ("redis+tls+cluster://h", f"write {CLUSTER_FORM.replace('redis+', 'rediss+')}"),
        # the hosts
        (
            "redis://:S3cret@h1:1,h2:2/0",
            "redis:// names one server. For several write redis+sentinel://host,host/master",
        ),
        ("rediss://h1,h2", "or rediss+cluster://host,host"),
        ("redis+sentinel://:S3cret@/m", f"the hosts are missing: write {SENTINEL_FORM}"),
        ("redis+cluster://", f"the hosts are missing: write {CLUSTER_FORM}"),
        ("redis+cluster://h1,,h2", "host 2 of the list: it is empty"),
        ("redis+cluster://h1,", "host 2 of the list: it is empty"),
        ("redis+sentinel://h1,:26379/m", "host 2 of the list: it is empty"),
        ("redis+sentinel://h1:1;h2:2/m", f"write commas between the hosts, not semicolons: {SENTINEL_FORM}"),
        ("redis+sentinel://h1, h2/m", "it contains a space"),
        ("redis+cluster://h1:0", "host 1 of the list: the part between the host and the path is not a port"),
        ("redis+cluster://h1,h2:65536", "host 2 of the list: the part between the host and the path is not a port"),
        ("redis+cluster://:S3cret", "is not a port"),
        ("redis+cluster://h1,u:S3cret", "host 2 of the list: the part between the host and the path is not a port"),
        ("redis://h:-1", "with a number from 1 to 65535"),
        ("redis+cluster://h1,::1", "host 2 of the list: "),
        ("redis://::1:6379", "write an IPv6 address in brackets, such as [::1]:6379"),
        ("redis://[localhost]", "the text between '[' and ']' is not an IPv6 address"),
        ("redis://[::1", "or '[' has no ']'"),
        ("redis+sentinel://u:S3cret@h1,u:S3cret@h2/m", "Write user and password once, before the first host"),
        ("redis+cluster://:S3cret#S3cret@h", "percent-encode it: %23 for #"),
        ("redis+sentinel://:S3cret/S3cret@h/m", "%2F for /"),
        ("unix://run/redis.sock", "unix:///path/to/redis.sock, with three slashes"),
        (f"unix:///{'x' * 107}", "the path of the socket is longer than 107 bytes"),
        # the master and the database
        ("redis+sentinel://h1,h2", f"the name of the master is missing: write {SENTINEL_FORM}"),
        ("redis+sentinel://h1,h2/", "the name of the master is missing"),
        ("redis+sentinel://h1,h2//0", "the name of the master is missing"),
        ("redis+sentinel://h1,h2/0", "the name of the master is missing"),
        ("redis+sentinel://h1,h2?master_name=m", f"write the name of the master after the hosts: {SENTINEL_FORM}"),
        ("redis+sentinel://h1?sentinelMasterId=m", "write the name of the master after the hosts"),
        ("redis+sentinel://h/m%20m", "has a character that sentinels do not accept"),
        ("redis+sentinel://h/m/one", "is the number of a database, not 'one'"),
        ("redis+sentinel://h/m/0/1", "is the number of a database"),
        ("redis://h/-1", "is the number of a database"),
        ("redis://h?db=S3cret", "db is the number of a database"),
        ("redis://h/1?db=2", "it names two databases, 1 in the path and db=2"),
        ("redis+cluster://h/0", "a cluster has no numbered databases: remove the database number"),
        ("redis+cluster://h/3", "AGENTSTREAM_KEY_PREFIX"),
        ("redis+cluster://h?db=0", "a cluster has no numbered databases"),
        ("redis+cluster://h/m", "a cluster has no numbered databases"),
        # the options
        ("redis+cluster://h?protocol=2", "which has RESP3: remove protocol=2"),
        ("redis+sentinel://h/m?protocol=4", "write protocol=2 or protocol=3"),
        (
            "redis://h?sentinel_password=S3cret",
            f"'sentinel_password' is for sentinels; remove it, or write {SENTINEL_FORM}",
        ),
        ("redis+cluster://h?sentinel_username=u", "'sentinel_username' is for sentinels"),
        ("redis+sentinel://h/m?sentinel_username=u", "sentinel_username needs sentinel_password"),
        ("redis+sentinel://h/m?sentinel_db=0", "The options are db, protocol, "),
        ("redis+sentinel://h/m?ssl_ca_certs=/ca", "begin the URL with rediss+sentinel:// instead of redis+sentinel://"),
        ("redis+cluster://h?ssl=true", "begin the URL with rediss+cluster:// instead of redis+cluster://"),
        ("unix:///r.sock?ssl_ca_certs=/ca", "a socket has no TLS"),
        ("rediss+cluster://h?ssl_check_hostname=S3cret", "write true or false"),
        ("rediss+cluster://h?ssl_cert_reqs=S3cret", "write none, optional, required"),
    ],
)
def test_a_wrong_form_is_refused_with_the_right_one(url: str, right: str) -> None:
    """A URL that cannot be used is refused with what to write instead, and with no part of a password."""
    with pytest.raises(BrokerUrlError) as refusal:
        parse(url)
    assert right in str(refusal.value)
    assert "S3cret" not in str(refusal.value)


def test_a_parsed_url_shows_no_password() -> None:
    """The representation of a parsed URL, as in a traceback, contains none of its passwords."""
    url = "rediss+sentinel://u:S3cret@h/m?sentinel_password=S3cret&ssl_password=S3cret"
    assert "S3cret" not in repr(parse(url))


def test_an_ipv6_address_is_shown_as_in_a_url() -> None:
    """A shown IPv6 address has brackets, so that it can be copied into a URL."""
    assert [show_address("::1", 7), show_address("h", 7)] == ["[::1]:7", "h:7"]
