"""The flags that several commands share: one for each setting, and ``--url`` and ``--api-key``."""

from collections.abc import Callable
from typing import Any

import click

from agentstream.cli.exits import WrongSettings
from agentstream.config import Settings, env_name, front_end_url, load_client_settings, load_settings
from agentstream.errors import StartupError
from agentstream.telemetry.masking import register_secrets

Command = Callable[..., None]


def setting_flags(*fields: str) -> Callable[[Command], Command]:
    """Add flags for these settings to a command, or for all settings if ``fields`` is empty.

    The flags do not check their values: ``settings_from`` does.
    """

    def decorate(command: Command) -> Command:
        for field in reversed(fields or tuple(Settings.model_fields)):
            command = _setting_flag(field)(command)
        return command

    return decorate


def _setting_flag(field: str) -> Callable[[Command], Command]:
    info = Settings.model_fields[field]
    default = "" if info.default in (None, ()) else f" [default: {format_value(info.default)}]"
    flag = f"--{field.replace('_', '-')}"
    boolean = info.annotation is bool
    return click.option(
        f"{flag}/--no-{flag[2:]}" if boolean else flag,
        field,
        default=None,
        type=bool if boolean else str,
        metavar=None if boolean else "VALUE",
        help=f"{info.description}{default} [{env_name(field)}]",
    )


def format_value(value: object) -> str:
    """Return the value of a setting in the form of an environment variable."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def settings_from(flags: dict[str, Any], *, listens: bool = False) -> Settings:
    """Return the settings from the environment, overridden by these flags. Raises WrongSettings.

    With ``listens`` the settings must be those of a process that may listen on AGENTSTREAM_HOST.
    """
    try:
        settings = load_settings(**flags) if listens else load_client_settings(**flags)
    except StartupError as exc:
        raise WrongSettings(str(exc)) from exc
    register_secrets(settings.secrets())
    return settings


def redis_url_of(settings: Settings) -> str:
    """Return the URL of Redis. Raises WrongSettings if it is not set."""
    if settings.redis_url is None:
        message = "REDIS_URL is not set: set it to the Redis of your deployment (`agentstream up` prints the URL)"
        raise WrongSettings(message)
    return settings.redis_url


def check_redis_url(settings: Settings) -> None:
    """Raise WrongSettings if REDIS_URL is set and a process could not use it."""
    from agentstream.store.connection.endpoint import Endpoint  # noqa: PLC0415 -- slow to import

    try:
        if settings.redis_url:
            Endpoint(settings.redis_url)
    except StartupError as exc:
        raise WrongSettings(str(exc)) from exc


def _default_url() -> str:
    try:
        return front_end_url()
    except StartupError as exc:
        raise WrongSettings(str(exc)) from exc


def front_end_flags(command: Command) -> Command:
    """Add the flags ``--url`` and ``--api-key`` to a command."""
    command = click.option(
        "--api-key",
        envvar="AGENTSTREAM_API_KEY",
        show_envvar=True,
        metavar="KEY",
        help="API key, if the front end requires one.",
    )(command)
    return click.option(
        "--url",
        envvar="AGENTSTREAM_URL",
        show_envvar=True,
        default=_default_url,
        show_default="the address of AGENTSTREAM_HOST and AGENTSTREAM_PORT, else http://127.0.0.1:8000",
        metavar="URL",
        help="Address of the front end.",
    )(command)


def events_flag(command: Command) -> Command:
    """Add the flag ``--events`` to a command."""
    return click.option(
        "--events",
        "event_types",
        metavar="TYPES",
        help="Also show these types of the agent's own events: names separated by commas, or all.",
    )(command)
