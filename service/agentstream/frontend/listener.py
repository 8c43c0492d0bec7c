"""Accepts the connections of a front end. It stops without losing one, and never uses up the file descriptors.

The event loop's own server does neither. When it closes, the kernel resets the connections in its accept queue. When no
file descriptor is free, it closes new connections without a word, and it accepts all waiting connections before any
of them is answered.
"""

import asyncio
import logging
import os
import socket
from typing import Final, Self

from agentstream.config import Settings, env_name
from agentstream.errors import StartupError
from agentstream.frontend.connection import ConnectionFactory
from agentstream.frontend.connection_limit import ConnectionLimit
from agentstream.frontend.syn_filter import ignore_new_connections
from agentstream.processes.shared_port import explain_listen_error

log = logging.getLogger(__name__)

# Connections that may wait in the kernel's accept queue. If it is full, TCP makes further clients retry.
BACKLOG: Final = 128
# Connections that are accepted in one turn of the event loop. Then other connections get their turn.
BATCH: Final = 32
# Pause after an accept that failed, mostly because a resource is used up.
PAUSE_S: Final = 0.1
# Time for a handshake that has begun. It takes one round trip; proxies are on the same network.
HANDSHAKE_S: Final = 0.1


class Listener:
    """The listening sockets of a front end."""

    def __init__(self, listeners: list[socket.socket], connect: ConnectionFactory, limit: ConnectionLimit) -> None:
        """Take sockets that listen. Each accepted connection gets a protocol from ``connect``."""
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._connect = connect
        self._limit = limit
        self._connecting: set[asyncio.Task[None]] = set()
        self._resume()

    @classmethod
    async def open(
        cls, connect: ConnectionFactory, settings: Settings, limit: ConnectionLimit, *, shared: bool
    ) -> Self:
        """Listen on the address of the settings; raises StartupError if it cannot be used."""
        loop, host, port = asyncio.get_running_loop(), settings.host, settings.port
        try:
            # The event loop's server resolves the name and sets the options. It never accepts a connection.
            server = await loop.create_server(
                asyncio.Protocol, host, port, reuse_port=shared or None, start_serving=False
            )
            try:
                listeners = [socket.socket(fileno=os.dup(bound.fileno())) for bound in server.sockets]
            finally:
                server.close()
            for listener in listeners:
                listener.settimeout(0)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
                listener.listen(BACKLOG)
        except OSError as exc:
            raise StartupError(explain_listen_error(exc, host, port, env_name("port"))) from exc
        return cls(listeners, connect, limit)

    @property
    def address(self) -> tuple[str, int]:
        """The first address, with its real port if the port setting is 0."""
        host, port, *_ = self._listeners[0].getsockname()
        return host, port

    async def stop(self) -> None:
        """Refuse new connections, and serve every connection that has begun already.

        Their clients may have sent a request, so a proxy must not send it again. First the kernel drops the packets
        that begin a connection. Clients send them again after a second; then they are refused. Meanwhile the handshakes
        that had begun are completed and accepted. A connection that cannot be served is logged and dropped.
        """
        begins_nothing = [ignore_new_connections(listener) for listener in self._listeners]
        if any(begins_nothing):
            await asyncio.sleep(HANDSHAKE_S)
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            while self._accept(listener):
                pass
            listener.close()
        self._listeners.clear()
        if self._connecting:
            await asyncio.wait(self._connecting)

    def close(self) -> None:
        """Refuse new connections at once."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _resume(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept_some, listener)

    def _pause(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._loop.call_later(PAUSE_S, self._resume)

    def _accept_some(self, listener: socket.socket) -> None:
        for _ in range(BATCH):
            if self._limit.reached:
                self._pause()
                return
            if not self._accept(listener):
                return

    def _accept(self, listener: socket.socket) -> bool:
        """Accept a connection. Return whether another one may wait."""
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True  # this client has left; other clients may follow in the queue
        except OSError as exc:
            self._limit.accept_failed(exc)
            self._pause()
            return False
        over_limit = self._limit.opened()
        task = self._loop.create_task(self._serve(accepted, over_limit=over_limit), name="new connection")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _serve(self, accepted: socket.socket, *, over_limit: bool) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._connect(over_limit), accepted)
        except OSError as exc:
            self._limit.closed()
            log.warning("dropped a connection that was just accepted: %s", exc)
            accepted.close()
