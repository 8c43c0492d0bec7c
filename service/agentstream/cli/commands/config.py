"""``agentstream config``: shows the current settings and the source of each value."""

import json
import sys
from typing import Any

import click

from agentstream.cli.flags import check_redis_url, format_value, setting_flags, settings_from
from agentstream.cli.terminal.layout import format_table
from agentstream.cli.terminal.word_wrap import terminal_columns
from agentstream.config import Settings, env_name, masked, setting_source, unknown_variables


@click.command()
@setting_flags()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def config(*, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """Show every setting and the source of its value.

    A line has the environment variable, the value, the source of the value and the meaning. The source is a flag, an
    environment variable or the default. Run this command with the flags and the environment of a process to see the
    settings of that process. Keys and passwords are masked. If a setting is wrong, the command names it and exits with
    2, as the process would. --json also has the full meaning.

    \b
      agentstream config --workers 4
      agentstream config --json | jq .settings.port
    """
    settings = settings_from(flags, listens=True)
    check_redis_url(settings)
    rows = [
        (field, masked(field, getattr(settings, field)), setting_source(field, flags))
        for field in type(settings).model_fields
    ]
    warnings = unknown_variables()
    if as_json:
        settings_json = {
            field: {"value": value, "from": origin, "variable": env_name(field), "meaning": _meaning(field)}
            for field, value, origin in rows
        }
        click.echo(json.dumps({"settings": settings_json, "warnings": warnings}))
        return
    columns = terminal_columns(sys.stdout)
    for line in format_table(
        [
            (env_name(field), "" if value is None else format_value(value), origin, _meaning(field).split(". ")[0])
            for field, value, origin in rows
        ]
    ):
        click.echo(line if columns is None or len(line) <= columns else f"{line[: columns - 1]}…")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _meaning(field: str) -> str:
    return Settings.model_fields[field].description or ""
