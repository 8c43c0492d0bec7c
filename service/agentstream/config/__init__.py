"""The settings. This folder alone reads the environment.

Every field has an environment variable ``AGENTSTREAM_<FIELD>`` and a command-line flag ``--field``. The settings for
Redis and OpenAI have their conventional variables instead, such as ``REDIS_URL``.
"""

from agentstream.config.listen_address import is_loopback
from agentstream.config.loading import (
    environment,
    failed_start_delay_s,
    front_end_url,
    load_client_settings,
    load_settings,
    masked,
    setting_source,
    similar,
    terminal_type,
    unknown_variables,
    unset_empty_variables,
)
from agentstream.config.settings import BUILTIN, AgentRoute, Settings, env_name
from agentstream.config.traces import TraceSettings, trace_settings
from agentstream.config.values import header_value

__all__ = [
    "BUILTIN",
    "AgentRoute",
    "Settings",
    "TraceSettings",
    "env_name",
    "environment",
    "failed_start_delay_s",
    "front_end_url",
    "header_value",
    "is_loopback",
    "load_client_settings",
    "load_settings",
    "masked",
    "setting_source",
    "similar",
    "terminal_type",
    "trace_settings",
    "unknown_variables",
    "unset_empty_variables",
]
