"""The caller of a run: what agents may read about the client that sent the request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


class Headers(Mapping[str, str]):
    """The headers of a request. Names are found in any case and listed in lower case."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        """Copy the values."""
        self._values = {name.lower(): value for name, value in (values or {}).items()}

    def __getitem__(self, name: str) -> str:
        """Return the value of a header. Raises KeyError if the request had no such header."""
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in lower case."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of headers."""
        return len(self._values)

    def __repr__(self) -> str:
        """Return the names only: the values may be private, and a log line may show this text."""
        return f"Headers({', '.join(self._values)})"


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of the request that created a run.

    ``key_hash`` is the SHA-256 of its API key, as 64 hex digits. It is empty if the front end has no keys. All runs of
    one key have the same hash, so it can be the key of a user's data. The API key itself is never known to an agent.

    ``request_id`` is the id of the request, which is also in the log lines and in the header ``X-Request-Id`` of the
    answer.

    ``headers`` are the request's headers that ``AGENTSTREAM_CALLER_HEADERS`` names. A name is found in any case.
    """

    key_hash: str = ""
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=Headers)
