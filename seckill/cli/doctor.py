"""``seckill doctor``: red, yellow or green before 20:00."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import RenderableType
from rich.text import Text

from seckill.cli.command import DURABILITY_ENV, DataDir, Json, RedisUrl, SaleId, Target
from seckill.cli.output import Output, new_table
from seckill.cli.reach import is_named, reach
from seckill.doctor import (
    CHECKS,
    Finding,
    Level,
    Report,
    check_intake,
    check_open_files,
    check_user_keys,
    examine,
    read_settings,
    shown_url,
)
from seckill.errors import EmbeddedError, MissingExtra
from seckill.sale import check_sale_id

if TYPE_CHECKING:
    from seckill.server.load import Loaded
    from seckill.server.settings import Settings

__all__ = ["doctor"]

# What the intake uses where no settings file says otherwise (server/settings.py).
IN_FLIGHT: Final = 2_000

_MARKS: Final = {
    Level.GREEN: ("✓", "green"),
    Level.YELLOW: ("!", "yellow"),
    Level.RED: ("✗", "bold red"),
}


def doctor(
    sale: SaleId,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            envvar="SECKILL_CONFIG",
            help="The intake's settings, to be checked as well.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for a yellow finding, too.")
    ] = False,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    durability: Annotated[
        str | None,
        typer.Option(
            metavar="aof|replicas:N|memory",
            envvar=DURABILITY_ENV,
            help="What the intake will ask of the server; aof unless the settings say otherwise.",
            rich_help_panel="Server",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a sale, its server and the intake's settings before it begins."""
    check_sale_id(sale, "sale")
    report = asyncio.run(_examine(sale, config, Target(redis, embedded), durability))
    ok = report.level is Level.GREEN or (report.level is Level.YELLOW and not strict)
    out = Output(json=json)
    out.answer(_data(report, ok=ok), *_shown(report, settings=config is not None))
    if not ok:
        raise typer.Exit(1)


async def _examine(
    sale: str, config: Path | None, target: Target, durability: str | None
) -> Report:
    findings: list[Finding] = []
    settings: Settings | None = None
    if config is not None:
        loaded, finding = _read(config)
        findings.append(finding)
        if loaded is not None:
            settings = loaded.settings
            findings += check_intake(loaded)
            findings.append(await check_user_keys(settings))
    in_flight, workers = IN_FLIGHT, 1
    groups: tuple[str, ...] = ()
    demanded = durability or "aof"
    if settings is not None:
        in_flight, workers = settings.server.max_in_flight, settings.server.workers
        groups = _groups(settings)
        demanded = durability or settings.redis.durability
    findings.append(check_open_files(in_flight))
    target = _target(target, settings, demanded)
    if config is not None and settings is None and not is_named(target):
        # The settings' errors are what must be mended first, and they may hide the server's name.
        remedy = "correct the settings, or name it with --redis URL or --embedded DIR"
        seen = "not known: only the settings could name it, and they have errors"
        findings.append(Finding("server", Level.RED, seen, remedy))
        return Report.of(sale, "", findings)
    try:
        async with reach(target) as url:
            findings += await examine(
                sale,
                url,
                durability=demanded,
                workers=workers,
                groups=groups,
            )
            return Report.of(sale, shown_url(url), findings)
    except EmbeddedError as error:
        remedy = "see what it says; a directory has one owner at a time"
        findings.append(Finding("server", Level.RED, str(error), remedy))
        return Report.of(sale, str(target.embedded), findings)


def _read(config: Path) -> tuple[Loaded | None, Finding]:
    try:
        return read_settings(config)
    except ModuleNotFoundError as error:
        raise MissingExtra("server", (error.name or "").partition(".")[0]) from None


def _groups(settings: Settings) -> tuple[str, ...]:
    """The consumer groups that must have a reader."""
    if not settings.webhook.url:
        return ()
    # The relay brings an HTTP client with it, which only the extra `server` installs.
    from seckill.relay import GROUP

    return (GROUP,)


def _target(target: Target, settings: Settings | None, durability: str) -> Target:
    """The server that is meant: by an option, else by the settings, else by the environment."""
    url, data = target.redis, target.embedded
    if settings is not None and url is None and data is None:
        url = settings.redis.url or None
        data = Path(settings.redis.data) if settings.redis.data else None
    # Nothing is refused here: what an engine would refuse is what the checks are for.
    return Target(url, data, durability, allow_unverified=True)


def _data(report: Report, *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "level": report.level,
        "sale": report.sale,
        "server": report.server,
        "findings": report.findings,
    }


def _shown(report: Report, *, settings: bool) -> list[RenderableType]:
    """One table for all, so that its columns line up; what is not green comes with its remedy."""
    table = new_table("", "check", "~what was seen")
    table.show_header = False
    for group, checks in CHECKS.items():
        findings = [finding for finding in report.findings if finding.check in checks]
        server = None
        for finding in findings:
            if server != finding.server:
                # Each server of a cluster has a part of its own.
                server = finding.server
                table.add_row("", Text(group, style="dim"), Text(server, style="dim"))
            mark, style = _MARKS[finding.level]
            seen = Text(finding.seen, style="" if finding.level is Level.GREEN else style)
            if finding.remedy:
                seen.append(f"\n→ {finding.remedy}", style="default not bold")
            table.add_row(Text(mark, style=style), finding.check, seen)
    shown: list[RenderableType] = [table, ""]
    if not settings:
        shown.append(Text("settings not checked: name their file with --config", style="dim"))
    return [*shown, _verdict(report)]


def _verdict(report: Report) -> Text:
    counts = Counter(finding.level for finding in report.findings)
    mark, style = _MARKS[report.level]
    said = {
        Level.GREEN: f"sale {report.sale}: all {counts[Level.GREEN]} checks are green",
        Level.YELLOW: f"sale {report.sale}: nothing is red, {counts[Level.YELLOW]} yellow",
        Level.RED: f"sale {report.sale}: {counts[Level.RED]} red, {counts[Level.YELLOW]} yellow",
    }
    return Text.assemble((f"{mark} ", style), said[report.level])
