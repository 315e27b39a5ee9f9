"""``seckill relay``: the events of the sales to the mall's endpoint, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.command import DataDir, LedgerUrl, RedisUrl, open_ledger
from seckill.cli.daemon import Config, Once, Sales, read_settings, target_of, until_signal
from seckill.cli.ledger_sale import known_sale
from seckill.errors import InvalidInput
from seckill.relay import Endpoint, Relay, Tally

if TYPE_CHECKING:
    from seckill.engine import Engine
    from seckill.ledger import Ledger
    from seckill.server.settings import Settings, Webhook

__all__ = ["relay"]

_SETTINGS = "Instead of a setting"
SHOWN = 20

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
    from_ledger: Annotated[
        int | None,
        typer.Option(
            metavar="SEQ",
            min=1,
            help="Deliver what the stream of one sale has lost, from this event on: the ledger has"
            " it. Ends then.",
        ),
    ] = None,
    ledger: LedgerUrl = None,
    redis: RedisUrl = None,
    embedded: DataDir = None,
    durability: Annotated[
        str | None,
        typer.Option(
            metavar="aof|replicas:N|memory",
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
        "redis.durability": ("--durability", durability),
        "redis.allow_unverified": ("--allow-unverified", allow_unverified or None),
        "ledger.url": ("--ledger", ledger),
    }
    settings = read_settings(config, given)
    engine = target_of(settings).engine(sweep_ms=0)
    endpoint = _endpoint(settings.webhook)
    log.configure(settings.log)
    if from_ledger is not None:
        if after_trim:
            raise InvalidInput("--after-trim", "is for the stream", "leave out one of the two")
        book, name = _book(settings, sale), (sale or [""])[0]
        if not asyncio.run(_hand_over(engine, book, endpoint, name, from_ledger)):
            raise typer.Exit(1)
        return
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


def _book(settings: Settings, sales: list[str] | None) -> Ledger:
    if len(sales or ()) != 1:
        problem = "needs one sale, whose events are numbered"
        raise InvalidInput("--from-ledger", problem, "name it: --sale ID")
    return open_ledger(settings.ledger.url)


async def _hand_over(engine: Engine, book: Ledger, to: Endpoint, sale: str, seq: int) -> bool:
    """Whether everything was delivered."""
    from seckill.relay.handover import Handover

    async with engine, book:
        await known_sale(book, sale)
        work = Handover(engine, book, to, sale, seq)
        until_signal(work.stop)
        _log.info("events of %s go from the ledger to %s", sale, to.name)
        done = await work.run()
    said = "delivered %d of the events %d to %d, failed attempts %d"
    _log.info(said, done.delivered, done.first, done.last, done.failed)
    again = done.again or (done.left[0] if done.left else 0)
    if done.left:
        first = ", ".join(map(str, done.left[:SHOWN]))
        _log.error("given up: %d orders, at the events %s", len(done.left), first)
    if again:
        _log.warning("go on with --from-ledger %d; what was delivered comes again", again)
    return not again


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
