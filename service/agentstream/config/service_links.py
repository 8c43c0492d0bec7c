"""Service links: variables that Kubernetes writes into every pod, several for each Service of the namespace.

For a Service called ``agentstream`` they are AGENTSTREAM_SERVICE_HOST, AGENTSTREAM_SERVICE_PORT_HTTP, AGENTSTREAM_PORT,
AGENTSTREAM_PORT_80_TCP and so on. Old Docker links have the same form.
https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
"""

import re
from collections.abc import Collection
from typing import Final

_NAME: Final = re.compile(
    r"(?P<service>[A-Z0-9_]+?)_"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://[^/]*")
REMEDY: Final = "set enableServiceLinks: false in the pod's spec"


def is_address(value: str) -> bool:
    """Return whether a value is the address of a Service as Kubernetes writes it, such as tcp://10.96.14.7:80."""
    return _ADDRESS.fullmatch(value) is not None


def service_of(variable: str) -> str | None:
    """Return the name of the Service that such a variable describes, or None if the name has another form."""
    found = _NAME.fullmatch(variable)
    return found["service"].lower().replace("_", "-") if found else None


def describe(variables: Collection[str]) -> str:
    """Return one line about variables of service links."""
    services = ", ".join(sorted({service_of(name) or "" for name in variables}))
    first, *others = sorted(variables)
    more = f" and {len(others)} more variables" if others else ""
    return f"{first}{more}: no settings, but set by Kubernetes for the Services {services}; to avoid this, {REMEDY}"
