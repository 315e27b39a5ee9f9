"""``seckill doctor``: red, yellow or green before 20:00."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seckill.cli.command import DataDir, Durability, Json, RedisUrl, SaleId, Target
from seckill.cli.output import Output
from seckill.cli.reach import reach
from seckill.doctor import (
    CHECKS,
    Finding,
    Level,
    Report,
    check_intake,
    check_open_files,
    examine,
    load_settings,
    shown_url,
)
from seckill.errors import EmbeddedError, InvalidInput, MissingExtra
from seckill.sale import check_sale_id

if TYPE_CHECKING:
    from seckill.server.settings import Settings

__all__ = ["doctor"]

# What the intake uses where no settings file says otherwise (server/settings.py).
IN_FLIGHT: Final = 2_000

_MARKS: Final = {Level.GREEN: ("✓", "green"), Level.YELLOW: ("!", "bold yellow")}
_RED_MARK: Final = ("✗", "bold red")


def doctor(
    sale: SaleId,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE.toml", help="The intake's settings, to be checked as well."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for a yellow finding, too.")
    ] = False,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    durability: Annotated[
        Durability | None,
        typer.Option(
            help="What the intake will ask of the server; aof unless the settings say otherwise.",
            rich_help_panel="Server",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a sale, its server and the intake's settings before it begins."""
    check_sale_id(sale, "sale")
    report = asyncio.run(_examine(sale, config, Target(redis, embedded), durability))
    out = Output(json=json)
    out.answer(_data(report), *_shown(report, out.console, asked_settings=config is not None))
    if report.level is Level.RED or (strict and report.level is Level.YELLOW):
        raise typer.Exit(1)


async def _examine(
    sale: str, config: Path | None, target: Target, durability: Durability | None
) -> Report:
    findings: list[Finding] = []
    settings: Settings | None = None
    if config is not None:
        settings, finding = _load(config)
        findings.append(finding)
    in_flight, workers, demanded = IN_FLIGHT, 1, durability or Durability.AOF
    if settings is not None and config is not None:
        findings += check_intake(settings, config)
        in_flight, workers = settings.server.max_in_flight, settings.server.workers
        demanded = durability or Durability(settings.redis.durability)
    findings.append(check_open_files(in_flight))
    target = _target(target, settings, demanded)
    try:
        async with reach(target) as url:
            findings += await examine(
                sale,
                url,
                durability=demanded.value,
                embedded=target.embedded is not None,
                workers=workers,
            )
            return Report.of(sale, shown_url(url), findings)
    except EmbeddedError as error:
        remedy = "see what it says; a directory has one owner at a time"
        findings.append(Finding("server", Level.RED, str(error), remedy))
        return Report.of(sale, str(target.embedded), findings)


def _load(config: Path) -> tuple[Settings | None, Finding]:
    try:
        return load_settings(config)
    except ModuleNotFoundError as error:
        raise MissingExtra("server", (error.name or "").partition(".")[0]) from None
