"""``seckill relay``: the events of the sales to the mall's endpoint, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.command import DataDir, Durability, RedisUrl
from seckill.cli.daemon import Config, Once, Sales, read_settings, target_of, until_signal
from seckill.relay import Endpoint, Relay, Tally

if TYPE_CHECKING:
    from seckill.engine import Engine
    from seckill.server.settings import Webhook

__all__ = ["relay"]

_SETTINGS = "Instead of a setting"

_log = logging.getLogger("seckill.relay")


def relay(
    config: Config = None,
    sale: Sales = None,
    once: Once = False,
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

    given: dict[str, tuple[str, Any]] = {
        "redis.url": ("--redis", redis),
        "redis.data": ("--embedded", embedded and str(embedded)),
        "redis.durability": ("--durability", durability and durability.value),
        "redis.allow_unverified": ("--allow-unverified", allow_unverified or None),
    }
    settings = read_settings(config, given)
    engine = target_of(settings).engine(sweep_ms=0)
    endpoint = _endpoint(settings.webhook)
    log.configure(settings.log)
    tally = asyncio.run(_run(engine, endpoint, tuple(sale or ()), once=once, after_trim=after_trim))
    if once and (tally.left or tally.dead or tally.elsewhere):
        raise typer.Exit(1)


def _endpoint(webhook: Webhook) -> Endpoint:
    return Endpoint(
        url=webhook.url,
        secrets=tuple(secret.get_secret_value().encode() for secret in webhook.secrets),
        timeout_s=webhook.timeout_s,
        give_up_s=webhook.give_up_s,
        in_flight=webhook.in_flight,
    )


async def _run(
    engine: Engine, to: Endpoint, sales: tuple[str, ...], *, once: bool, after_trim: bool
) -> Tally:
    async with engine:
        relay = Relay(engine, to, sales=sales, once=once, after_trim=after_trim)
        # At a second signal, what is under way comes again.
        until_signal(relay.stop)
        _log.info("events of %s go to %s", ", ".join(sales) or "all sales", to.name)
        tally = await relay.run()
        for elsewhere in tally.elsewhere:
            _log.warning("sale %s: another relay has it", elsewhere)
        _log.info(
            "delivered %d, failed attempts %d, new dead letters %d, left %d",
            *(tally.delivered, tally.failed, tally.dead, tally.left),
        )
        return tally
