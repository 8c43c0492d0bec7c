"""Reading the settings from the environment and from flags, and showing them without secrets."""

import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import AliasChoices, TypeAdapter, ValidationError

from agentstream.config import service_links, values
from agentstream.config.listen_address import ENV_PREFIX, ListenAddress
from agentstream.config.secret_values import without_secrets
from agentstream.config.settings import Settings, env_name
from agentstream.errors import MASK, StartupError

# Variables of command-line flags that are no settings.
_CLIENT_VARIABLES: Final = {"AGENTSTREAM_URL"}

_MIN_SIMILARITY: Final = 0.7  # PROT is as similar to PORT as 0.75; RELOAD is to READ_URL as 0.57
_MAX_LONGER: Final = 3
_SHOWN_CHARS: Final = 200


# How to write a value, by pydantic's type of the error.
_HOW_TO_WRITE: Final = {
    "int_parsing": "write a whole number in digits, such as 8",
    "int_from_float": "write a whole number in digits, such as 8",
    "int_type": "write a whole number in digits, such as 8",
    "float_parsing": "write a number, with a point if it has a fraction, such as 30 or 2.5",
    "float_type": "write a number, with a point if it has a fraction, such as 30 or 2.5",
    "finite_number": "write a number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "too_short": "write at least one entry",
}
# The unit of a number, by the end of its setting's name.
_UNITS: Final = {
    "_s": "seconds, or a number with a unit, such as 30s or 2m",
    "_ms": "milliseconds, or a number with a unit, such as 500ms",
    "_bytes": "bytes, or a number with a unit, such as 4MB",
    "_tokens": "tokens",
}


def load_settings(**flags: Any) -> Settings:  # noqa: ANN401 -- raw flag values
    """Return the settings of a process that listens on AGENTSTREAM_HOST, from the environment.

    ``flags`` override it; a flag that is None was not given.

    Raises StartupError. It names every wrong setting, its value and the allowed values.
    """
    settings = load_client_settings(**flags)
    if fault := settings.open_to_all():
        message = f"wrong settings:\n  {fault}"
        raise StartupError(message)
    return settings


def load_client_settings(**flags: Any) -> Settings:  # noqa: ANN401 -- raw flag values
    """Return the settings of a process that does not listen on AGENTSTREAM_HOST, so that it needs no API keys for it.

    A worker may get the same environment as a front end. Otherwise as ``load_settings``.
    """
    given = {_init_name(name): value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as exc:
        message = _explain_all(exc)
    # Outside the except block: the exception may quote a secret, and a traceback would show it as the context.
    raise StartupError(message)


def front_end_url() -> str:
    """Return the URL of a front end on this machine, from AGENTSTREAM_HOST and AGENTSTREAM_PORT.

    Raises StartupError if one of them is wrong, or if the port is not known because the setting is 0.
    """
    try:
        address = ListenAddress()
        message = f"{env_name('port')} is 0, so the front end picks a free port: name its URL with --url"
        if address.port:
            return address.url
    except ValidationError as exc:
        message = _explain_all(exc)
    raise StartupError(message)


def _explain_all(exc: ValidationError) -> str:
    return "wrong settings:\n  " + "\n  ".join(map(_explain, exc.errors()))


def failed_start_delay_s(flags: Mapping[str, Any]) -> float:
    """Return the setting of this name, even if other settings are wrong; 0 if it is wrong itself."""
    field = "failed_start_delay_s"
    value = flags.get(field) or os.environ.get(env_name(field)) or 0
    try:
        return max(0.0, TypeAdapter(values.Seconds).validate_python(values.clean(value)))
    except ValidationError:
        return 0.0


def unset_empty_variables() -> None:
    """Remove variables of settings, of OpenTelemetry and of OpenAI that are empty: an empty variable is not set.

    A line ``NAME=`` in a file of variables leaves them. Libraries that read the environment themselves, such as the
    clients in an agent, would take "" for a value.
    """
    ours = {alias for field in Settings.model_fields for alias in _names(field)}
    for name, value in list(os.environ.items()):
        if (name in ours or name.startswith((ENV_PREFIX, "OPENAI_", "OTEL_"))) and values.clean(value) == "":
            del os.environ[name]


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables that give a child process the same settings."""
    variables: dict[str, str] = {}
    for field in Settings.model_fields:
        value = getattr(settings, field)
        if value is not None:
            variables[env_name(field)] = ",".join(value) if isinstance(value, tuple) else str(value)
    return variables


def setting_source(field: str, flags: Mapping[str, Any]) -> str:
    """Return the source of a setting: ``--flag``, the name of its environment variable, or "default"."""
    if flags.get(field) is not None:
        return f"--{field.replace('_', '-')}"
    given = {name.lower(): name for name, value in os.environ.items() if value}  # pydantic-settings ignores case
    return next((given[name.lower()] for name in _names(field) if name.lower() in given), "default")


def _names(field: str) -> list[str]:
    """Return the names of the environment variables of a setting, the first one first."""
    alias = Settings.model_fields[field].validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else [env_name(field)]


def masked(field: str, value: Any) -> Any:  # noqa: ANN401 -- a setting's
    """Return the value of a setting with stars in the place of every secret."""
    if isinstance(value, tuple):
        return tuple(masked(field, item) for item in value)
    if not isinstance(value, str):
        return value
    if Settings.model_fields[field].repr or field == "redis_url":  # the address is no secret
        return without_secrets(value) if "://" in value or "@" in value else value
    return MASK


def terminal_type() -> str:
    """Return the type of the terminal according to the environment, or "dumb" if it is unknown."""
    return os.environ.get("TERM") or "dumb"


def unknown_variables() -> list[str]:
    """Return one line for each AGENTSTREAM_ variable that is not a setting. The line suggests a similar name.

    All variables that Kubernetes sets for Services share one line.
    """
    known = {env_name(field) for field in Settings.model_fields} | _CLIENT_VARIABLES
    bare_names = {name.removeprefix(ENV_PREFIX): name for name in known}
    unknown = [name for name in sorted(os.environ) if name.startswith(ENV_PREFIX) and name not in known]
    links = [name for name in unknown if service_links.service_of(name)]
    lines = [service_links.describe(links)] if links else []
    for name in unknown:
        if name not in links:
            close = similar(name.removeprefix(ENV_PREFIX), bare_names)
            lines.append(f"{name} is not a setting" + (f"; did you mean {bare_names[close[0]]}?" if close else ""))
    return lines


def similar(name: str, known: Collection[str]) -> list[str]:
    """Return the known names that a mistyped name probably means, the best first: similar ones, and longer ones."""
    close = difflib.get_close_matches(name, known, cutoff=_MIN_SIMILARITY)
    longer = [option for option in known if name and option.startswith(name) and option not in close]
    return close + sorted(longer, key=len)[:_MAX_LONGER]


def _init_name(field: str) -> str:
    """Return the keyword argument of Settings for a field: its alias if it has one."""
    return env_name(field) if Settings.model_fields[field].validation_alias else field


def _explain(error: Any) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    field = next((name for name in Settings.model_fields if error["loc"][0] in (name, env_name(name))), None)
    name = env_name(field) if field else str(error["loc"][0])
    message = str(error["msg"]).removeprefix("Value error, ")
    if how := _HOW_TO_WRITE.get(error["type"]):
        unit = next((text for end, text in _UNITS.items() if name.lower().endswith(end)), "")
        message = f"{message}; {how}{f' (the unit is {unit})' if unit and 'number' in how else ''}"
    meaning = f". {Settings.model_fields[field].description}" if field else ""
    return f"{name}{_shown(field, error['input'])}: {message}{meaning}"


def _shown(field: str | None, value: object) -> str:
    """Return a wrong value for an error, without secrets: a wrong value may be a secret in the wrong place."""
    if field in {"api_keys", "openai_api_key", "redis_url"} or (field == "mcp_servers" and "{" in str(value)):
        return ""
    text = repr(without_secrets(value) if isinstance(value, str) and ("://" in value or "@" in value) else value)
    return f"={text if len(text) <= _SHOWN_CHARS else f'{text[:_SHOWN_CHARS]}...'}"
