"""The settings of the front end's address. Commands on the same machine need no others."""

from ipaddress import ip_address
from typing import Any, Final

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentstream.config import values
from agentstream.config.values import Host, Port

ENV_PREFIX = "AGENTSTREAM_"

# A program that listens on every address is reached on the loopback address.
_LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


class ListenAddress(BaseSettings):
    """The address of the front end. Commands on the same machine need no other settings."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    # Addresses and queues
    host: Host = Field("127.0.0.1")
    """Address that the front end listens on. The default is loopback: only this machine can reach it."""

    port: Port = Field(8000, ge=0, le=65535)
    """Port that the front end listens on. 0 picks a free port."""

    @property
    def url(self) -> str:
        """The URL of the front end for programs on this machine."""
        host = _LOOPBACK_OF.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="before")
    @classmethod
    def _cleaned(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Remove whitespace and quotes around every value. A variable with nothing else is not set."""
        cleaned = {name: values.clean(value) for name, value in given.items()}
        return {name: value for name, value in cleaned.items() if value != "" or given[name] == ""}


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is an address that only this machine can reach."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return values.is_local_name(host)
