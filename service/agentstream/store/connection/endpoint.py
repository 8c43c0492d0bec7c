"""The address and credentials of the broker: one URL, parsed once, for the link and for redis-py."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from agentstream.errors import StartupError

COMMAND_TIMEOUT_S = 5.0  # a healthy broker answers within milliseconds, and its own pauses are shorter than 1 s


class Endpoint:
    """A parsed REDIS_URL: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with credentials and database."""

    def __init__(self, url: str) -> None:
        """Parse the URL; raises StartupError if it is not a Redis URL. The error does not contain the password."""
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
        except ValueError as exc:
            message = f"REDIS_URL is not a Redis URL ({exc}); expected redis://[[user]:password@]host[:port][/database]"
            raise StartupError(message) from exc
        self._url = url
        self.protocol = int(self._options.get("protocol", 3))

    def __str__(self) -> str:
        """Return the address, without credentials."""
        if path := self._options.get("path"):
            return f"unix://{path}"
        return f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"

    @property
    def pushes_inline(self) -> bool:
        """Whether one connection carries both commands and pushes (RESP3)."""
        return self.protocol >= 3  # noqa: PLR2004

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> None:
        """Open a connection for the protocol that ``protocol_factory`` returns; raises OSError."""
        loop = asyncio.get_running_loop()
        connection_class = self._options.get("connection_class")
        if connection_class is UnixDomainSocketConnection:
            await loop.create_unix_connection(protocol_factory, self._options["path"])
            return
        host = self._options.get("host", "localhost")
        tls = self._tls() if connection_class is SSLConnection else None
        await loop.create_connection(protocol_factory, host, self._options.get("port", 6379), ssl=tls)

    def handshake(self, name: str) -> list[tuple[bytes | str | int, ...]]:
        """Return the first commands of a new connection: protocol version, credentials, client name, database."""
        user, password = self._options.get("username", "default"), self._options.get("password")
        commands: list[tuple[bytes | str | int, ...]] = []
        if self.pushes_inline:
            credentials = ("AUTH", user, password) if password else ()
            commands.append(("HELLO", 3, *credentials, "SETNAME", name))
        else:
            if password:
                commands.append(("AUTH", user, password))
            commands.append(("CLIENT", "SETNAME", name))
        if database := int(self._options.get("db", 0)):
            commands.append(("SELECT", database))
        return commands

    def redis(self, *, read_timeout_s: float = COMMAND_TIMEOUT_S) -> redis_asyncio.Redis:
        """Return a redis-py client. ``read_timeout_s`` must exceed its longest blocking read.

        The client sends a command again after a lost reply, at most twice. So a command must be harmless if the
        server runs it more than once.
        """
        client: redis_asyncio.Redis = redis_asyncio.Redis.from_url(
            self._url,
            socket_timeout=read_timeout_s,
            socket_connect_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
            protocol=self.protocol,
        )
        return client

    def _tls(self) -> ssl.SSLContext:
        options = self._options
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
        verify = str(options.get("ssl_cert_reqs", "required"))
        checked = str(options.get("ssl_check_hostname", "true")).lower() not in {"false", "0", "no"}
        if verify == "none" or not checked:
            context.check_hostname = False
        if verify == "none":
            context.verify_mode = ssl.CERT_NONE
        return context
