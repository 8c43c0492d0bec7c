"""The interface that a link to one primary of a cluster reports to."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from agentstream.store.connection.command import Command

AnyLink_contra = TypeVar("AnyLink_contra", contravariant=True)


class Router(Protocol[AnyLink_contra]):
    """Owns the links to the primaries of a cluster."""

    def on_error(self, link: AnyLink_contra, command: Command, text: str) -> bool:
        """Handle an error reply; return False if it is the reply for the caller of the command."""
        ...

    def on_lost(self, link: AnyLink_contra) -> None:
        """Handle that a connection is lost, or cannot be made."""

    def on_dropped(self, link: AnyLink_contra, channels: Sequence[bytes]) -> None:
        """Handle that the server no longer serves these channels."""

    def on_connected(self, link: AnyLink_contra) -> None:
        """Handle that the link is connected."""
