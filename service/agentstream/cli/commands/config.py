"""``agentstream config``: the settings in effect, and where each comes from."""

import json
from typing import Any

import click

from agentstream.cli.flags import format_value, setting_flags, settings_from
from agentstream.cli.terminal.layout import format_table
from agentstream.config import masked, setting_source, unknown_variables


@click.command()
@setting_flags()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of a table")
def config(*, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """Show every setting, and its source.

    A setting comes from a flag, an environment variable, or is the default. Give this the flags and the environment of
    a process, and it tells what that process would work with; keys and passwords are masked. Ends with 2, naming each
    wrong setting, where a process would refuse to start.

    \b
      agentstream config --workers 4
      agentstream config --json | jq .settings.port
    """
    settings = settings_from(flags)
    rows = [
        (field, masked(field, getattr(settings, field)), setting_source(field, flags))
        for field in type(settings).model_fields
    ]
    warnings = unknown_variables()
    if as_json:
        told = {field: {"value": value, "from": origin} for field, value, origin in rows}
        click.echo(json.dumps({"settings": told, "warnings": warnings}))
        return
    for line in format_table(
        [(field, "" if value is None else format_value(value), origin) for field, value, origin in rows]
    ):
        click.echo(line)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
