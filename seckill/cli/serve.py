"""``seckill serve``: the order intake in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from seckill.cli.command import DataDir, RedisUrl
from seckill.cli.output import new_console, version_text, warn
from seckill.durability import replicas_of
from seckill.errors import InvalidInput

if TYPE_CHECKING:
    from seckill.server.dev import Dev
    from seckill.server.settings import Settings, Users
    from seckill.server.workers import Running

__all__ = ["serve"]

_SETTINGS = "Instead of a setting"

Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The settings, a TOML file (or set SECKILL_CONFIG)."),
]


def serve(
    config: Config = None,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    host: Annotated[
        str | None,
        typer.Option(help="The address to listen on (127.0.0.1).", rich_help_panel=_SETTINGS),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="The port (8000); 0 takes a free one.", rich_help_panel=_SETTINGS),
    ] = None,
    unix: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A unix socket instead of host and port.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that take requests (1).", rich_help_panel=_SETTINGS),
    ] = None,
    durability: Annotated[
        str | None,
        typer.Option(
            metavar="aof|replicas:N|memory",
            help="aof (the default): an order is on disk before it is acknowledged. "
            "replicas:N: N replicas have it. memory: a crash may lose some.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Accept a managed server that hides its configuration.",
            rich_help_panel=_SETTINGS,
        ),
    ] = False,
    dev: Annotated[
        bool, typer.Option("--dev", help="Make keys for this run and print them: for trying out.")
    ] = False,
) -> None:
    """Take orders over HTTP until Ctrl-C; every order under way still gets its answer."""
    from seckill.server import workers as intake
    from seckill.server.dev import Dev

    if redis is not None and embedded is not None:
        raise InvalidInput("--redis, --embedded", "are both given", "give one of the two")
    given: dict[str, tuple[str, Any]] = {
        "redis.url": ("--redis", redis),
        "redis.data": ("--embedded", embedded and str(embedded)),
        "redis.durability": ("--durability", durability),
        "redis.allow_unverified": ("--allow-unverified", allow_unverified or None),
        "server.host": ("--host", host),
        "server.port": ("--port", port),
        "server.unix": ("--unix", unix and str(unix)),
        "server.workers": ("--workers", workers),
    }
    options = {name: option for name, option in given.items() if option[1] is not None}
    own = Dev.new() if dev else None
    intake.serve(lambda: _read(config, options, own), lambda running: _announce(running, own))


def _read(config: Path | None, options: dict[str, tuple[str, Any]], dev: Dev | None) -> Settings:
    from seckill.server.load import read

    loaded = read(config, options=options)
    for warning in loaded.warnings:
        warn(warning)
    return dev.added_to(loaded.settings) if dev else loaded.settings


def _announce(running: Running, dev: Dev | None) -> None:
    from seckill.server.describe import shown_url

    settings, facts = running.settings, running.facts
    lines = Text.assemble((version_text(), "bold"), " takes orders on ", (running.address, "bold"))
    lines.append(f"\nserver {shown_url(running.url)} (version {facts.version})")
    if facts.unverified:
        lines.append(f"\nunverified: {', '.join(facts.unverified)}", style="yellow")
    if facts.durability == "memory":
        lines.append("\na crash may lose acknowledged orders (memory)", style="bold yellow")
    waits_for = replicas_of(facts.durability)
    if 0 < waits_for < facts.replicas:
        lines.append(
            f"\n{waits_for} of {facts.replicas} replicas have an order before it is acknowledged:"
            " a failover to another one is noticed (the sale is fenced), not survived",
            style="yellow",
        )
    lines.append(f"\n{_counted(settings.server.workers, 'worker')}, {_proofs(settings)}")
    if dev is not None:
        lines.append("\ndev: a key and a user token for this run only", style="bold yellow")
        lines.append(f"\nexport SECKILL_KEY={dev.key}")
        lines.append(f"\nexport SECKILL_TOKEN={dev.user_token(settings.users)}")
    lines.append("\nCtrl-C ends it", style="dim")
    new_console().print(lines, soft_wrap=True)


def _proofs(settings: Settings) -> str:
    users = settings.users
    ways = _ways(users)
    tokens = f"user tokens by {', '.join(ways)}" if ways else "no user tokens"
    return f"{tokens}, {_counted(len(settings.keys), 'API key')}"


def _ways(users: Users) -> list[str]:
    ways = []
    if users.secrets:
        ways.append(_counted(len(users.secrets), "secret"))
    if users.key_files:
        ways.append(_counted(len(users.key_files), "key file"))
    if users.jwks_url:
        ways.append("JWKS")
    return ways


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
