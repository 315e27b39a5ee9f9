"""What commands share that run for ever with the settings of a file: `relay` and `ledger run`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli import lean
from seckill.cli.command import Target
from seckill.cli.output import warn
from seckill.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from seckill.server.settings import Settings

__all__ = [
    "Config",
    "Once",
    "Sales",
    "ledger_settings",
    "read_settings",
    "target_of",
    "until_signal",
]

Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The settings, a TOML file (or set SECKILL_CONFIG)."),
]
Sales = Annotated[
    list[str] | None,
    typer.Option(metavar="ID", help="Only this sale; may be repeated. All sales otherwise."),
]
Once = Annotated[bool, typer.Option("--once", help="End when nothing is left to do.")]


def read_settings(config: Path | None, given: dict[str, tuple[str, Any]]) -> Settings:
    """The settings, with the options that were given in their place: by the setting's name, the
    option's and its value, which is None if it was not given."""
    from seckill.server.load import read

    loaded = read(config, options=_options(given))
    for warning in loaded.warnings:
        warn(warning)
    return loaded.settings


def ledger_settings(
    config: Path | None, given: dict[str, tuple[str, Any]]
) -> Settings | lean.Settings:
    """The same for the ledger, and the log is set up by them. On a machine without the intake they
    are its own part of the settings: writing a ledger takes no HTTP server."""
    try:
        from seckill.server import log
    except (MissingExtra, ModuleNotFoundError):
        # The plain settings have a plain log.
        own = lean.read(config, _options(given))
        lean.configure(own.log)
        return own
    settings = read_settings(config, given)
    log.configure(settings.log)
    return settings


def _options(given: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    if all(given.get(name, ("", None))[1] for name in ("redis.url", "redis.data")):
        raise InvalidInput("--redis, --embedded", "are both given", "give one of the two")
    return {name: option for name, option in given.items() if option[1] is not None}


def target_of(settings: Settings | lean.Settings) -> Target:
    """The server that the settings name."""
    at = settings.redis
    data = Path(at.data) if at.data else None
    return Target(at.url or None, data, at.durability, at.allow_unverified)


def until_signal(stop: Callable[[], None]) -> None:
    """Calls ``stop`` at the first SIGINT or SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
