"""The secrets in settings, in URLs and in the environment: to mask them, and to show URLs without them."""

import os
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, unquote

from agentstream.errors import MASK

# Names of query parameters and of environment variables that hold secrets.
_SECRET_NAME: Final = re.compile(
    r"(?i)(?:key|token|secret|password|passwd|passphrase|pass|auth|sig|signature)(?:_?\d+)?$"
)
_URL_NAME: Final = re.compile(r"(?i)(?:url|uri|dsn|proxy)(?:_?\d+)?$")
_MIN_CHARS: Final = 8  # a shorter value of a variable that is no setting may be a common word
_QUERY_SECRET: Final = re.compile(r"([?&;][^=&#;]*(?i:key|token|secret|pass\w*|auth|sig|signature)=)[^&]*")
# A list of hosts may have a password before each host.
_LOGIN: Final = re.compile(r"(?:^|[,;])(?:[\w+-]+://)?[^:@,;/]*:([^@]+)@")


def url_secrets(url: str) -> Iterator[str]:
    """Yield the passwords and keys in a URL, also in one with a password that is not percent-encoded."""
    login, at, rest = _after_scheme(url).rpartition("@")
    if at:
        password = login.partition(":")[2] or login  # some servers take a token as the user name
        yield from (password, unquote(password), *re.split(r"[#/?@]", password), *_LOGIN.findall(f"{login}@"))
    for part in (rest, url):  # the last "@" may belong to a password in the query
        for name, value in parse_qsl(part.partition("?")[2]):
            if _SECRET_NAME.search(name):
                yield value


def environment_secrets() -> Iterator[str]:
    """Yield the values of variables with names like MY_API_KEY, and the passwords in variables like DATABASE_URL.

    The code of an agent may use them, and its errors may quote them.
    """
    for name, value in os.environ.items():
        if _URL_NAME.search(name):
            yield from (secret for secret in url_secrets(value) if len(secret) >= _MIN_CHARS)
        elif _SECRET_NAME.search(name) and len(value) >= _MIN_CHARS and not value.startswith("/"):  # no path of a file
            yield value


def without_secrets(url: str) -> str:
    """Return a URL with stars in the place of its password and of keys in its query, whatever its form."""
    scheme, separator, _ = url.partition("://")
    login, at, rest = _after_scheme(url).rpartition("@")
    if _QUERY_SECRET.search(login):  # the last "@" may belong to a password in the query
        return f"{scheme}{separator}{MASK}" if separator else MASK
    rest = _QUERY_SECRET.sub(rf"\1{MASK}", rest)
    if not at:
        return f"{scheme}{separator}{rest}" if separator else rest
    user, colon, _ = login.partition(":")
    shown = f"{user}:{MASK}" if colon and re.fullmatch(r"[\w.%+-]*", user) else MASK
    return f"{scheme}{separator}{shown}@{rest}" if separator else f"{shown}@{rest}"


def _after_scheme(url: str) -> str:
    return url.partition("://")[2] if "://" in url else url
