"""``seckill settings``: every setting of the intake, what it is, and where that comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from seckill.cli.command import Json
from seckill.cli.output import Output, new_table, warn

__all__ = ["settings"]


def settings(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The settings, a TOML file (or set SECKILL_CONFIG)."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only say whether this file, with the environment, is in order."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show every setting of the intake; secrets are counted and never shown."""
    from seckill.server.describe import rows
    from seckill.server.load import read, wanted

    loaded = read(check or config)
    for warning in loaded.warnings:
        warn(warning)
    out = Output(json=json)
    found = list(rows(loaded.settings, loaded.sources))
    if check is not None:
        changed = sum(row.source != "default" for row in found)
        said = f"{check} is in order; {changed} of {len(found)} settings are not the default"
        if json:
            out.answer({"ok": True, "changed": changed})
        else:
            # A path is not to be folded.
            out.console.print(Text.assemble(("✓ ", "green"), said), soft_wrap=True)
            for want in wanted(loaded.settings):
                warn(f"seckill serve will want {want}")
        return
    table = new_table("setting", "~value", "~from")
    for row in found:
        style = "dim" if row.source == "default" else ""
        table.add_row(row.name, Text(row.value), Text(row.source), style=style)
    out.answer([msgspec.structs.asdict(row) for row in found], table)
