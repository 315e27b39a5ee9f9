"""``seckill ledger``: keeping the SQL ledger, and looking at how far it is."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import typer

from seckill.cli import ledger_adopt
from seckill.cli.command import DataDir, Json, LedgerUrl, RedisUrl, on_engine, open_ledger
from seckill.cli.daemon import Config, Once, Sales, ledger_settings, target_of, until_signal
from seckill.cli.output import Output, new_table, warn
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.groups import groups_of
from seckill.keys import LEDGER_GROUP, SALES

if TYPE_CHECKING:
    from seckill.cli import lean
    from seckill.ledger.run import Written
    from seckill.server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
app.command("adopt")(ledger_adopt.adopt)

_log = logging.getLogger("seckill.ledger")

REUSED: Final = "id reused"
UNLISTED: Final = "not in list"


@app.command("run")
def run(
    config: Config = None,
    sale: Sales = None,
    once: Once = False,
    ledger: LedgerUrl = None,
    redis: RedisUrl = None,
    embedded: DataDir = None,
) -> None:
    """Write every event and order into the ledger, until Ctrl-C. Several may share the work."""
    given: dict[str, tuple[str, Any]] = {
        "redis.url": ("--redis", redis),
        "redis.data": ("--embedded", embedded and str(embedded)),
        "ledger.url": ("--ledger", ledger),
    }
    settings = ledger_settings(config, given)
    # Refused before anything is connected to.
    open_ledger(settings.ledger.url, new=True)
    engine = target_of(settings).engine(sweep_ms=0)
    written = asyncio.run(_keep(engine, settings, tuple(sale or ()), once=once))
    if once and (written.left or written.dead or written.forked):
        raise typer.Exit(1)


@app.command("migrate")
def migrate(ledger: LedgerUrl = None, json: Json = False) -> None:
    """Make the ledger's tables, or bring them up to date; `ledger run` does so by itself, if its
    user may."""
    url = open_ledger(ledger, new=True)

    async def main() -> None:
        async with url:
            Output(json=json).answer({"ok": True}, "✓ the ledger's tables are up to date")

    asyncio.run(main())


@app.command("status")
@on_engine
async def status(engine: Engine, out: Output, ledger: LedgerUrl = None) -> int:
    """Show how far the ledger is with each sale; the exit code is 1 when it is behind, a sale is
    fenced, not in Redis' list, or has the id of one that was removed, or Redis belongs to another
    ledger."""
    book = open_ledger(ledger)
    from seckill.ledger.reused import REMEDY
    from seckill.ledger.reused import find as find_reused

    async with book:
        is_other = await ledger_adopt.warn_of_another(engine, book)
        here = await engine.sales()
        known = {row["sale"]: row for row in await book.sales()}
        reused = await find_reused(engine, known.values())
        rows: list[dict[str, Any]] = []
        unlisted: list[str] = []
        for sale in sorted({*here, *known}):
            gone: tuple[int | None, str, int] = (None, "", 0)
            # One that is just being removed leaves the list first.
            is_gone = sale not in here and bool(known[sale]["removed_at_ms"])
            seq, state, waiting = gone if is_gone else await _standing(engine, sale)
            if seq is not None and sale not in here:
                unlisted.append(sale)
            last, _ = await book.last(sale)
            events, orders = await book.counts(sale)
            if sale in reused:
                state = REUSED
            elif sale in unlisted:
                state = UNLISTED
            elif state != "fenced":
                state = known[sale]["state"] if sale in known else "unknown"
            rows.append(
                {
                    "sale": sale,
                    "state": state,
                    "seq": seq,
                    "ledger_seq": last,
                    "waiting": waiting,
                    "events": events,
                    "orders": orders,
                }
            )
    table = new_table(
        *("sale", "state", ">Redis is at", ">ledger is at", ">waiting", ">events", ">orders")
    )
    for row in rows:
        at = "removed" if row["seq"] is None else f"{row['seq']:,}"
        numbers = (f"{row[name]:,}" for name in ("ledger_seq", "waiting", "events", "orders"))
        table.add_row(row["sale"], row["state"], at, *numbers)
    out.answer(rows, table if rows else "no sales")
    for sale in sorted(reused):
        said = f"sale {sale} was created under the id of one that was removed"
        warn(f"{said}, and is not in the ledger; {REMEDY.format(sale=sale)}")
    for sale in unlisted:
        said = f"Redis has sale {sale}, but its list of sales does not, so nobody looks after it"
        warn(f"{said}; put it back: redis-cli SADD {SALES} {sale}")
    return int(is_other or any(map(_is_wrong, rows)))


async def _standing(engine: Engine, sale: str) -> tuple[int | None, str, int]:
    """How far Redis is, the sale's state, and what the ledger has not acknowledged: events that
    nobody has taken, and entries that somebody has."""
    try:
        snapshot = await engine.snapshot(sale)
    except UnknownSale:
        return None, "", 0  # A create that got no further than the list.
    try:
        groups = await groups_of(engine, sale)
    except UnknownSale:
        groups = []  # Its stream is lost.
    waiting = [each.unread + each.pending for each in groups if each.name == LEDGER_GROUP]
    return snapshot.seq, snapshot.state, sum(waiting)


def _is_wrong(row: dict[str, Any]) -> bool:
    is_behind = row["seq"] is not None and row["seq"] > row["ledger_seq"]
    return is_behind or bool(row["waiting"]) or row["state"] in ("fenced", REUSED, UNLISTED)


async def _keep(
    engine: Engine, settings: Settings | lean.Settings, sales: tuple[str, ...], *, once: bool
) -> Written:
    from seckill.ledger.keep import Keeper

    options = settings.ledger
    async with engine:
        keeper = Keeper(
            engine,
            options.url,
            keep_events_s=options.keep_events_s,
            keep_sales_days=options.keep_sales_days,
            retention_days=options.retention_days,
            sales=sales,
            once=once,
        )
        until_signal(keeper.stop)
        _log.info("events of %s go to the ledger", ", ".join(sales) or "all sales")
        written = await keeper.run()
        _log.info(
            "wrote %d events, new dead letters %d, left %d",
            *(written.events, written.dead, written.left),
        )
        return written
