"""The addresses and credentials of the broker: one URL, parsed once, for the links and for redis-py."""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import AbstractBackoff, ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError, MasterDownError, ReadOnlyError, ResponseError, TimeoutError  # noqa: A004

from agentstream.errors import StartupError, explain_file_error
from agentstream.protocol.broker_url import Address, BrokerUrl, BrokerUrlError, Kind, parse, show_address
from agentstream.store.connection.refusals import is_not_primary, words_of

_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")

COMMAND_TIMEOUT_S = 5.0  # a healthy broker answers within milliseconds, and its own pauses are shorter than 1 s
SENTINEL_TIMEOUT_S = 1.0  # there are other sentinels to ask


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
    """A parsed REDIS_URL: one server, a server that sentinels watch, or a cluster; and how to connect to each server.

    ``connect`` and ``redis`` are for one server. For sentinels or a cluster, ``at`` returns the endpoint of one server.
    """

    def __init__(self, url: str | BrokerUrl) -> None:
        """Parse the URL; raises StartupError if it or one of its options is wrong. No error contains the password."""
        try:
            self._url = parse(url) if isinstance(url, str) else url
        except BrokerUrlError as exc:
            message = f"REDIS_URL: {exc}"
            raise StartupError(message) from None
        self.kind: Kind = self._url.kind
        self.addresses = self._url.addresses
        self.master = self._url.master
        self.database = self._url.database
        self.protocol = self._url.protocol
        if isinstance(url, str) and (fault := self._fault_of_files()):
            message = f"REDIS_URL: {fault}"
            raise StartupError(message)

    def at(self, host: str, port: int) -> "Endpoint":
        """Return the endpoint of one server, with the credentials, TLS options and database of this one."""
        one = replace(self._url, kind="standalone", addresses=((host, port),), path="", master="")
        return Endpoint(replace(one, protocol=self.protocol))

    def __str__(self) -> str:
        """Return the address or addresses, without credentials."""
        if self._url.path:
            return f"unix://{self._url.path}"
        shown = ",".join(show_address(*address) for address in self.addresses)
        if self.kind == "sentinel":
            return f"{self.master} of the sentinels {shown}"
        return f"the cluster {shown}" if self.kind == "cluster" else shown

    @property
    def pushes_inline(self) -> bool:
        """Whether one connection carries both commands and pushes (RESP3)."""
        return self.protocol >= 3  # noqa: PLR2004

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password of the servers; None if the URL has no password."""
        return (self._url.username or "default", self._url.password) if self._url.password else None

    def use_resp2(self) -> None:
        """Use RESP2 for all later connections: this server has no RESP3."""
        self.protocol = 2

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> None:
        """Open a connection for the protocol that ``protocol_factory`` returns; raises OSError."""
        loop = asyncio.get_running_loop()
        if self._url.path:
            try:
                await loop.create_unix_connection(protocol_factory, self._url.path)
            except OSError as exc:
                exc.filename = self._url.path  # the event loop does not name it
                raise
            return
        host, port = self._one_server()
        await loop.create_connection(protocol_factory, host, port, ssl=self._tls() if self._url.tls else None)

    def redis(self, *, read_timeout_s: float = COMMAND_TIMEOUT_S) -> redis_asyncio.Redis:
        """Return a redis-py client of one server. ``read_timeout_s`` must exceed its longest blocking read.

        The client sends a command again after a lost reply, or on a new connection if the server is not the primary,
        at most twice. So a command must be harmless if the server runs it more than once. The client speaks RESP2,
        which every server has: it uses nothing of RESP3.
        """
        login: dict[str, Any] = {"db": self.database}
        if credentials := self.credentials:
            login["username"], login["password"] = credentials
        if self._url.path:
            where = {"connection_class": UnixDomainSocketConnection, "path": self._url.path}
        else:
            where = self._where(*self._one_server())
        retry = _Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2)
        return _client(where | login, retry, COMMAND_TIMEOUT_S, read_timeout_s)

    def sentinels(self) -> list[redis_asyncio.Redis]:
        """Return a redis-py client for each sentinel, which asks once. The caller closes them.

        Sentinels have their own credentials: the URL's user and password are those of the servers.
        """
        login: dict[str, Any] = {}
        if self._url.sentinel_password:
            login = {"username": self._url.sentinel_username or None, "password": self._url.sentinel_password}
        once, addresses = Retry(NoBackoff(), 0), self.addresses if self.kind == "sentinel" else ()
        return [_client(self._where(*address) | login, once, SENTINEL_TIMEOUT_S) for address in addresses]

    def _one_server(self) -> Address:
        if self.kind != "standalone":
            message = f"{self} is not one server: use at()"
            raise RuntimeError(message)
        return self.addresses[0]

    def _where(self, host: str, port: int) -> dict[str, Any]:
        """Return redis-py's options for the address of a server or sentinel."""
        where: dict[str, Any] = {"host": host, "port": port}
        if self._url.tls:
            where |= {"connection_class": SSLConnection, **self._url.tls_options}
        return where

    def _fault_of_files(self) -> str | None:
        """Return which file of certificates cannot be used; None if all can."""
        for name in _FILES:
            path = self._url.tls_options.get(name)
            if path and (fault := _fault_of_file(str(path))):
                return f"{name}: {fault}"
        try:
            if self._url.tls:
                self._tls()
        except OSError as exc:  # also ssl.SSLError
            return f"a file of the options ssl_... cannot be used: {exc}"
        return None

    def _tls(self) -> ssl.SSLContext:
        options: dict[str, Any] = dict(self._url.tls_options)
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password"))
        verify = options.get("ssl_cert_reqs", "required")
        if verify == "none" or not options.get("ssl_check_hostname", True):
            context.check_hostname = False
        if verify == "none":
            context.verify_mode = ssl.CERT_NONE
        return context


def _client(
    options: dict[str, Any], retry: Retry, timeout_s: float, read_timeout_s: float | None = None
) -> redis_asyncio.Redis:
    limits = {"socket_connect_timeout": timeout_s, "socket_timeout": read_timeout_s or timeout_s}
    return redis_asyncio.Redis.from_pool(
        redis_asyncio.ConnectionPool(**options | limits | {"protocol": 2, "retry": retry})
    )


async def close_client(client: redis_asyncio.Redis) -> None:
    """Close a client, also if this task is cancelled meanwhile: redis-py may then leave its connection open."""
    closing = asyncio.create_task(client.aclose(), name="close a client")
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait({closing})
        raise


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
