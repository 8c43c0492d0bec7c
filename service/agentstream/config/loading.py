"""Reading the settings from the environment and from flags, and showing them without secrets."""

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import AliasChoices, ValidationError

from agentstream.config.settings import ENV_PREFIX, Settings, env_name
from agentstream.errors import StartupError

# Variables of command-line flags that are no settings.
_CLIENT_VARIABLES: Final = {"AGENTSTREAM_URL"}


_URL_PASSWORD: Final = re.compile(r"(://[^/?#@:]*:)[^/?#]*@")


_QUERY_PASSWORD: Final = re.compile(r"([?&][^=&#]*password=)[^&#]*")


def load_settings(**flags: Any) -> Settings:  # noqa: ANN401 -- raw flag values
    """Return the settings of the environment. ``flags`` override it; a flag that is None was not given.

    Raises StartupError. It names every wrong setting, its value and the allowed values.
    """
    given = {_init_name(name): value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as exc:
        lines = [_explain(error) for error in exc.errors()]
        raise StartupError("wrong settings:\n  " + "\n  ".join(lines)) from exc


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables that give a child process the same settings."""
    values: dict[str, str] = {}
    for field in Settings.model_fields:
        value = getattr(settings, field)
        if value is not None:
            values[env_name(field)] = ",".join(value) if isinstance(value, tuple) else str(value)
    return values


def setting_source(field: str, flags: Mapping[str, Any]) -> str:
    """Return the source of a setting: ``--flag``, the name of its environment variable, or "default"."""
    if flags.get(field) is not None:
        return f"--{field.replace('_', '-')}"
    alias = Settings.model_fields[field].validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [env_name(field)]
    given = {name.lower(): name for name, value in os.environ.items() if value}  # pydantic-settings ignores case
    return next((given[str(name).lower()] for name in names if str(name).lower() in given), "default")


def masked(field: str, value: Any) -> Any:  # noqa: ANN401 -- a setting's
    """Return the value of a setting with stars in the place of every secret."""
    if isinstance(value, tuple):
        return tuple(masked(field, item) for item in value)
    if not isinstance(value, str):
        return value
    if Settings.model_fields[field].repr or field == "redis_url":  # the address is no secret
        return _URL_PASSWORD.sub(r"\1***@", _QUERY_PASSWORD.sub(r"\1***", value))
    return "***"


def terminal_type() -> str:
    """Return the type of the terminal according to the environment, or "dumb" if it is unknown."""
    return os.environ.get("TERM") or "dumb"


def unknown_variables() -> list[str]:
    """Return one line for each AGENTSTREAM_ variable that is not a setting. The line suggests a similar name."""
    known = {env_name(field) for field in Settings.model_fields} | _CLIENT_VARIABLES
    lines = []
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            bare = name.removeprefix(ENV_PREFIX)
            close = [bare] if bare in known else difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return lines


def _init_name(field: str) -> str:
    """Return the keyword argument of Settings for a field: its alias if it has one."""
    return env_name(field) if Settings.model_fields[field].validation_alias else field


def _explain(error: Any) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    field = next((name for name in Settings.model_fields if error["loc"][0] in (name, env_name(name))), None)
    name = env_name(field) if field else str(error["loc"][0])
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if field in {"api_keys", "openai_api_key", "redis_url"} else f"={error['input']!r}"
    meaning = f". {Settings.model_fields[field].description}" if field else ""
    return f"{name}{shown}: {message}{meaning}"
