"""The address and credentials of the broker: one URL, parsed once, for the link and for redis-py."""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import AbstractBackoff, ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError, MasterDownError, ReadOnlyError, ResponseError, TimeoutError  # noqa: A004

from agentstream.errors import StartupError, explain_file_error
from agentstream.store.connection.refusals import is_not_primary, words_of

# The options that a URL may have. Other options of redis-py would fail at the first connection, or change what the
# service relies on, such as timeouts.
_OPTIONS: Final = (
    *("db", "protocol", "username", "password", "ssl_cert_reqs", "ssl_check_hostname"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"),
)
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_PROTOCOLS: Final = (2, 3)
_CERT_REQS: Final = ("none", "optional", "required")
_FORM: Final = "redis://[[user]:password@]host[:port][/database]"

COMMAND_TIMEOUT_S = 5.0  # a healthy broker answers within milliseconds, and its own pauses are shorter than 1 s


class _Retry(Retry):
    """Also retries commands that a server refuses because it is not the primary. redis-py reconnects for a retry."""

    def __init__(self, backoff: AbstractBackoff, retries: int) -> None:
        super().__init__(backoff, retries, (ConnectionError, TimeoutError, ResponseError))

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 -- redis-py's signature
    ) -> Any:  # noqa: ANN401 -- the result of ``do``
        return await super().call_with_retry(do, fail, is_retryable or _is_retryable, with_failure_count)


def _is_retryable(error: Exception) -> bool:
    """Return whether a new connection may help. The error of a script has the words, its class does not show them."""
    if not isinstance(error, ResponseError):
        return True
    return isinstance(error, ReadOnlyError | MasterDownError) or is_not_primary(words_of(error))


class Endpoint:
    """A parsed REDIS_URL: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with credentials and database."""

    def __init__(self, url: str) -> None:
        """Parse the URL; raises StartupError if it or one of its options is wrong. No error contains the password."""
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
            names = [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
        except ValueError:  # its text may quote a part of the password
            message = (
                "REDIS_URL is not a Redis URL: its scheme, its port or the value of an option is wrong, or its "
                f"password is not percent-encoded; expected {_FORM}"
            )
            raise StartupError(message) from None
        self.protocol = int(self._options.get("protocol", 3))
        if fault := self._fault_of_names(names) or self._fault_of_values():
            message = f"REDIS_URL: {fault}"
            raise StartupError(message)

    def __str__(self) -> str:
        """Return the address, without credentials."""
        if path := self._options.get("path"):
            return f"unix://{path}"
        return f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"

    @property
    def pushes_inline(self) -> bool:
        """Whether one connection carries both commands and pushes (RESP3)."""
        return self.protocol >= 3  # noqa: PLR2004

    @property
    def _uses_tls(self) -> bool:
        return self._options.get("connection_class") is SSLConnection

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> None:
        """Open a connection for the protocol that ``protocol_factory`` returns; raises OSError."""
        loop = asyncio.get_running_loop()
        connection_class = self._options.get("connection_class")
        if connection_class is UnixDomainSocketConnection:
            await loop.create_unix_connection(protocol_factory, self._options["path"])
            return
        host = self._options.get("host", "localhost")
        tls = self._tls() if self._uses_tls else None
        await loop.create_connection(protocol_factory, host, self._options.get("port", 6379), ssl=tls)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password; None if the URL has no password."""
        password = self._options.get("password")
        return (self._options.get("username") or "default", password) if password else None

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self._options.get("db", 0))

    def use_resp2(self) -> None:
        """Use RESP2 for all later connections: this server has no RESP3."""
        self.protocol = 2

    def redis(self, *, read_timeout_s: float = COMMAND_TIMEOUT_S) -> redis_asyncio.Redis:
        """Return a redis-py client. ``read_timeout_s`` must exceed its longest blocking read.

        The client sends a command again after a lost reply, or on a new connection if the server is not the primary,
        at most twice. So a command must be harmless if the server runs it more than once. The client speaks RESP2,
        which every server has: it uses nothing of RESP3.
        """
        options: dict[str, Any] = self._options | {
            "protocol": 2,
            "socket_timeout": read_timeout_s,
            "socket_connect_timeout": COMMAND_TIMEOUT_S,
            "retry": _Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
        }
        return redis_asyncio.Redis.from_pool(redis_asyncio.ConnectionPool(**options))

    def _fault_of_names(self, names: list[str]) -> str | None:
        """Return which option the URL cannot have, and what to write instead; None if it can have all of them."""
        for name in names:
            if name in {"ssl", "tls"}:
                return f"the option {name!r} does not exist; for TLS begin the URL with rediss:// instead of redis://"
            if name not in _OPTIONS:
                return f"the option {name!r} does not exist; remove it. The options are {', '.join(_OPTIONS)}"
            if name.startswith("ssl_") and not self._uses_tls:
                return f"the option {name!r} is for TLS; begin the URL with rediss:// instead of redis://"
        return None

    def _fault_of_values(self) -> str | None:
        """Return which option has a wrong value; None if all are right. Changes values to their usual spelling."""
        if self.protocol not in _PROTOCOLS:
            return f"protocol={self.protocol} does not exist; write protocol=2 or protocol=3"
        if verify := self._options.get("ssl_cert_reqs"):
            self._options["ssl_cert_reqs"] = verify = verify.lower().removeprefix("cert_")
            if verify not in _CERT_REQS:
                return f"ssl_cert_reqs={verify!r} does not exist; write {', '.join(_CERT_REQS)}"
        for name in _FILES:
            if (path := self._options.get(name)) and (fault := _fault_of_file(path)):
                return f"{name}: {fault}"
        try:
            if self._uses_tls:
                self._tls()
        except OSError as exc:  # also ssl.SSLError
            return f"a file of the options ssl_... cannot be used: {exc}"
        return None

    def _tls(self) -> ssl.SSLContext:
        options = self._options
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password"))
        verify = str(options.get("ssl_cert_reqs", "required"))
        checked = str(options.get("ssl_check_hostname", "true")).lower() not in {"false", "0", "no"}
        if verify == "none" or not checked:
            context.check_hostname = False
        if verify == "none":
            context.verify_mode = ssl.CERT_NONE
        return context


def _fault_of_file(path: str) -> str:
    """Return why a file or a folder of certificates cannot be read, or ""; the errors of OpenSSL do not name it."""
    try:
        if Path(path).is_dir():
            os.listdir(path)  # noqa: PTH208 -- raises now; iterdir does so later
        else:
            Path(path).read_bytes()
    except OSError as exc:
        return explain_file_error(path, exc)
    return ""
