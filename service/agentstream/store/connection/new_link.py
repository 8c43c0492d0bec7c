"""Returns the link for the kind of broker that REDIS_URL names."""

from agentstream.protocol.keys import Keys
from agentstream.store.connection.cluster_link import ClusterLink
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.server_link import ServerLink


def new_link(endpoint: Endpoint, keys: Keys | None = None, *, name: str) -> Link:
    """Return a link that is not open yet. CLIENT LIST shows ``name``. ``keys`` are the names that the service uses."""
    names = keys or Keys()
    if endpoint.kind == "cluster":
        return ClusterLink(endpoint, names, name=name)
    return ServerLink(endpoint, name=name, probe_key=names.probe())
