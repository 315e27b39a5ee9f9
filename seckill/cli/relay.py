"""``seckill relay``: the events of the sales to the mall's endpoint, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.command import DataDir, Durability, RedisUrl, Target
from seckill.cli.output import warn
from seckill.errors import InvalidInput
from seckill.relay import Endpoint, Relay, Tally

if TYPE_CHECKING:
    from seckill.engine import Engine
    from seckill.server.settings import Settings, Webhook

__all__ = ["relay"]

_SETTINGS = "Instead of a setting"

_log = logging.getLogger("seckill.relay")


def relay(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The settings, a TOML file (or set SECKILL_CONFIG)."),
    ] = None,
    sale: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only this sale; may be repeated. All sales otherwise."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when nothing is left to deliver.")
    ] = False,
    after_trim: Annotated[
        bool,
        typer.Option(
            "--after-trim", help="Begin, where earlier events were trimmed, at those that are left."
        ),
    ] = False,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    durability: Annotated[
        Durability | None,
        typer.Option(
            help="memory: the server may be one that does not wait for its disk.",
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
) -> None:
    """Deliver every event to the mall's endpoint (webhook.url), signed and in order."""
    from seckill.server import log

    if redis is not None and embedded is not None:
        raise InvalidInput("--redis, --embedded", "are both given", "give one of the two")
    given: dict[str, tuple[str, Any]] = {
        "redis.url": ("--redis", redis),
        "redis.data": ("--embedded", embedded and str(embedded)),
        "redis.durability": ("--durability", durability and durability.value),
        "redis.allow_unverified": ("--allow-unverified", allow_unverified or None),
    }
    options = {name: option for name, option in given.items() if option[1] is not None}
    settings = _read(config, options)
    engine = _target(settings).engine(sweep_ms=0)
    endpoint = _endpoint(settings.webhook)
    log.configure(settings.log)
    tally = asyncio.run(_run(engine, endpoint, tuple(sale or ()), once=once, after_trim=after_trim))
    if once and (tally.left or tally.dead or tally.elsewhere):
        raise typer.Exit(1)


def _read(config: Path | None, options: dict[str, tuple[str, Any]]) -> Settings:
    from seckill.server.load import read

    loaded = read(config, options=options)
    for warning in loaded.warnings:
        warn(warning)
    return loaded.settings


def _endpoint(webhook: Webhook) -> Endpoint:
    return Endpoint(
        url=webhook.url,
        secrets=tuple(secret.get_secret_value().encode() for secret in webhook.secrets),
        timeout_s=webhook.timeout_s,
        give_up_s=webhook.give_up_s,
        in_flight=webhook.in_flight,
    )


def _target(settings: Settings) -> Target:
    at = settings.redis
    data = Path(at.data) if at.data else None
    return Target(at.url or None, data, Durability(at.durability), at.allow_unverified)


async def _run(
    engine: Engine, to: Endpoint, sales: tuple[str, ...], *, once: bool, after_trim: bool
) -> Tally:
    async with engine:
        relay = Relay(engine, to, sales=sales, once=once, after_trim=after_trim)
        loop = asyncio.get_running_loop()

        def end() -> None:
            relay.stop()
            # A second one ends it at once, and what is under way comes again.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        _log.info("events of %s go to %s", ", ".join(sales) or "all sales", to.name)
        tally = await relay.run()
        for elsewhere in tally.elsewhere:
            _log.warning("sale %s: another relay has it", elsewhere)
        _log.info(
            "delivered %d, failed attempts %d, new dead letters %d, left %d",
            *(tally.delivered, tally.failed, tally.dead, tally.left),
        )
        return tally
