"""``seckill sale``: a sale's life."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.text import Text

from seckill.admission import Admission
from seckill.checks import to_ms
from seckill.cli.command import LedgerUrl, SaleId, has_ledger, on_engine, open_ledger
from seckill.cli.ledger_sale import known_sale
from seckill.cli.output import Output, countdown, moment, new_table, outcome_data, warn
from seckill.cli.stock import stock_table
from seckill.engine import Engine
from seckill.errors import (
    InvalidInput,
    ScriptFailed,
    SeckillError,
    UnknownSale,
    UpgradeNeeded,
)
from seckill.sale import Sale
from seckill.salefile import load_sale
from seckill.snapshot import Snapshot
from seckill.status import Status

if TYPE_CHECKING:
    from seckill.ledger import Ledger

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

_EXISTS_OTHERWISE = (
    "exists with another definition, and a sale can't change once it is created "
    "(its stock can: seckill stock add); choose another id"
)
_PHASE_STYLE = {"selling": "bold green", "not started": "cyan", "paused": "bold yellow"}


@app.command("create")
@partial(on_engine, new_data=True)
async def create(
    engine: Engine,
    out: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The sale's definition.")],
    open: Annotated[bool, typer.Option("--open", help="Open it as well.")] = False,  # noqa: A002
    now: Annotated[
        bool,
        typer.Option("--now", help="For trying: let it begin at this moment and last as long."),
    ] = False,
    ledger: LedgerUrl = None,
) -> int:
    """Create a sale from a TOML file. With a ledger, one that Redis has lost is not made anew."""
    sale, now_ms = load_sale(file), await engine.now_ms()
    if now:
        sale = _moved(sale, now_ms)
    if has_ledger(ledger):
        await _check_new(engine, open_ledger(ledger, missing_ok=True), sale.id)
    outcome = await engine.create(sale)
    if not outcome.ok:
        said = _EXISTS_OTHERWISE if outcome.status is Status.CONFLICT else ""
        return out.verdict(outcome.status, f"sale {sale.id}", outcome_data(outcome), said=said)
    what, said, data = f"sale {sale.id}", "", outcome_data(outcome)
    status = outcome.status
    if open:
        opened = await engine.open(sale.id)
        status, what = opened.status, f"{what} created and opened"
        said = "it is open already" if status is Status.ALREADY else ""
        data = outcome_data(opened) | {"created": data}
        if opened.ok and sale.ends_ms <= now_ms:
            warn(f"sale {sale.id} ended at {moment(sale.ends_ms)}, so it sells nothing")
    window = [Text(_window(sale.opens_ms, sale.ends_ms, now_ms))] if now else []
    if now:
        data |= {"opens_ms": sale.opens_ms, "ends_ms": sale.ends_ms}
    return out.verdict(status, what, data, *window, said=said)


@app.command("show")
@on_engine
async def show(engine: Engine, out: Output, sale: SaleId) -> int:
    """Show a sale's definition and its stock as they are now."""
    definition, snapshot = await engine.sale(sale), await engine.snapshot(sale)
    data = {
        "definition": msgspec.Raw(definition.definition()),
        "phase": snapshot.phase,
        "snapshot": snapshot,
    }
    out.answer(data, _header(definition, snapshot), "", stock_table(definition, snapshot))
    return 0


@app.command("list")
@on_engine
async def list_sales(engine: Engine, out: Output) -> int:
    """List every sale on the server."""
    table = new_table("~sale", "phase", "opens", ">paid", ">total")
    rows: list[dict[str, Any]] = []
    for name in await engine.sales():
        try:
            definition, snapshot = await engine.sale(name), await engine.snapshot(name)
        except UnknownSale:
            continue  # A create that got no further than the list; repeating it completes it.
        except (InvalidInput, ScriptFailed, UpgradeNeeded) as error:
            warn(f"{name}: {error}")
            continue
        confirmed = sum(stock.confirmed for stock in snapshot.stock.values())
        total = sum(stock.total for stock in snapshot.stock.values())
        rows.append(
            {
                "sale": name,
                "title": definition.title,
                "phase": snapshot.phase,
                "opens_ms": snapshot.opens_ms,
                "ends_ms": snapshot.ends_ms,
                "confirmed": confirmed,
                "total": total,
            }
        )
        table.add_row(
            Text.assemble((name, "bold"), f"\n{definition.title}"),
            _phase(snapshot),
            f"{moment(snapshot.opens_ms)}\n{countdown(snapshot.opens_ms, snapshot.at_ms)}",
            f"{confirmed:,}",
            f"{total:,}",
        )
    out.answer(rows, table if rows else "no sales on this server; seckill sale create FILE.toml")
    return 0


@app.command("open")
@on_engine
async def open_sale(engine: Engine, out: Output, sale: SaleId) -> int:
    """Let a created sale sell, from its opens_at on."""
    done = await engine.open(sale)
    return out.status(done, f"sale {sale}: open", already="it is open already")


@app.command("pause")
@on_engine
async def pause(
    engine: Engine,
    out: Output,
    sale: SaleId,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the sale's events.")] = "",
) -> int:
    """Stop new orders at once; held ones can still be paid."""
    done = await engine.pause(sale, reason)
    return out.status(done, f"sale {sale}: pause", already="it is paused already")


@app.command("resume")
@on_engine
async def resume(engine: Engine, out: Output, sale: SaleId) -> int:
    """Let a paused sale sell again."""
    done = await engine.resume(sale)
    return out.status(done, f"sale {sale}: resume", already="it is open already")


@app.command("close")
@on_engine
async def close(engine: Engine, out: Output, sale: SaleId) -> int:
    """End a sale for good; it is settled once no unit is held."""
    done = await engine.close(sale)
    return out.status(done, f"sale {sale}: close", already="it is closed already")


@app.command("remove")
@on_engine
async def remove(
    engine: Engine,
    out: Output,
    sale: SaleId,
    ledger: LedgerUrl = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json.gz", help="Write its whole history there before."),
    ] = None,
) -> int:
    """Take a settled sale's keys out of Redis, once the ledger has all of it."""
    book = open_ledger(ledger)
    from seckill.ledger.remove import remove as remove_sale

    async with book:
        await known_sale(book, sale)
        try:
            removed = await remove_sale(engine, book, sale, archive=archive)
        except OSError as error:
            if isinstance(error, SeckillError) or archive is None:
                raise
            problem = f"{archive} can't be written: {error.strerror}"
            raise InvalidInput("--archive", problem, "name a file in a folder of yours") from None
    kept = f"; its {removed.events:,} events stay in the ledger"
    if archive is not None:
        kept += f" and in {archive}"
    what = f"{removed.keys} keys removed" if removed.keys else "its keys had gone before"
    data = msgspec.structs.asdict(removed)
    out.answer(data, Text.assemble(("✓ ", "green"), f"sale {sale}: {what}{kept}"))
    return 0


async def _check_new(engine: Engine, book: Ledger, sale: str) -> None:
    """Refuses a sale that Redis has lost, or whose id is used up. Where no ledger is yet, no sale
    can have been in it."""
    from seckill.ledger.existing import NoLedger
    from seckill.ledger.fence import check_new

    with suppress(NoLedger):
        async with book:
            await check_new(engine, book, sale)


def _moved(sale: Sale, now_ms: int) -> Sale:
    """The same sale, but from now on."""
    by = timedelta(milliseconds=now_ms - sale.opens_ms)
    admission = None if sale.admission is None else sale.admission.moved(by)
    return msgspec.structs.replace(
        sale, opens_at=sale.opens_at + by, ends_at=sale.ends_at + by, admission=admission
    )


def _window(opens_ms: int, ends_ms: int, now_ms: int) -> str:
    return "\n".join(
        f"{name:<6} {moment(ms)}  {countdown(ms, now_ms)}"
        for name, ms in (("opens", opens_ms), ("ends", ends_ms))
    )


def _phase(snapshot: Snapshot) -> Text:
    return Text(snapshot.phase, style=_PHASE_STYLE.get(snapshot.phase, ""))


def _header(sale: Sale, snapshot: Snapshot) -> Text:
    header = Text.assemble((sale.title, "bold"), f"  {sale.id}  ", _phase(snapshot))
    if snapshot.reason:
        header.append(f" ({snapshot.reason})")
    header.append(f"\n{_window(snapshot.opens_ms, snapshot.ends_ms, snapshot.at_ms)}")
    limits = [
        f"{count:,} {what}"
        for count, what in (
            (sale.limit_per_order, "units per order"),
            (sale.limit_per_buyer, "units per buyer"),
            (sale.max_lapsed, "unpaid orders per buyer"),
        )
        if count
    ]
    header.append(f"\nlimits {', '.join(limits) or 'none'}")
    header.append(f"\npay    within {sale.hold_ms / 1000:g} s, then {sale.pay_ms / 1000:g} s more")
    if sale.admission is not None:
        header.append(f"\n{sale.admission.mode:<6} {_admission(sale, sale.admission)}")
    return header


def _admission(sale: Sale, admission: Admission) -> str:
    """How buyers get to the till, in a line."""
    joins = "at once" if admission.joins_at is None else f"from {moment(to_ms(admission.joins_at))}"
    parts = [f"tickets {joins}"]
    if admission.is_drawn:
        parts.append(f"drawn at {moment(sale.draw_ms)}")
    if admission.mode != "draw":
        parts.append(f"{admission.rate_per_s:,} called a second at most")
    parts.append(f"{admission.token_life_ms / 1000:g} s to order")
    if admission.weights:
        parts.append("lots " + ", ".join(f"{tier} {lots}" for tier, lots in admission.weights))
    if admission.public_value is not None:
        parts.append(f"public value: {admission.public_value}")
    return "; ".join(parts)
