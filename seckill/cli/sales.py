"""``seckill sale``: a sale's life."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, countdown, moment, new_table, outcome_data
from seckill.cli.stock import stock_table
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.sale import Sale
from seckill.salefile import load_sale
from seckill.snapshot import Snapshot

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

_PHASE_STYLE = {"selling": "bold green", "not started": "cyan", "paused": "bold yellow"}


@app.command("create")
@on_engine
async def create(
    engine: Engine,
    out: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The sale's definition.")],
    open: Annotated[bool, typer.Option("--open", help="Open it as well.")] = False,  # noqa: A002
) -> int:
    """Create a sale from a TOML file."""
    sale = load_sale(file)
    outcome = await engine.create(sale)
    if open and outcome.ok:
        opened = await engine.open(sale.id)
        data = outcome_data(opened) | {"created": outcome_data(outcome)}
        return out.verdict(opened.status, f"sale {sale.id} created and opened", data)
    return out.status(outcome, f"sale {sale.id}")


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
    return out.status(await engine.open(sale), f"sale {sale}: open")


@app.command("pause")
@on_engine
async def pause(
    engine: Engine,
    out: Output,
    sale: SaleId,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the sale's events.")] = "",
) -> int:
    """Stop new orders at once; held ones can still be paid."""
    return out.status(await engine.pause(sale, reason), f"sale {sale}: pause")


@app.command("resume")
@on_engine
async def resume(engine: Engine, out: Output, sale: SaleId) -> int:
    """Let a paused sale sell again."""
    return out.status(await engine.resume(sale), f"sale {sale}: resume")


@app.command("close")
@on_engine
async def close(engine: Engine, out: Output, sale: SaleId) -> int:
    """End a sale for good; it is settled once no unit is held."""
    return out.status(await engine.close(sale), f"sale {sale}: close")


def _phase(snapshot: Snapshot) -> Text:
    return Text(snapshot.phase, style=_PHASE_STYLE.get(snapshot.phase, ""))


def _header(sale: Sale, snapshot: Snapshot) -> Text:
    header = Text.assemble((sale.title, "bold"), f"  {sale.id}  ", _phase(snapshot))
    if snapshot.reason:
        header.append(f" ({snapshot.reason})")
    for name, ms in (("opens", snapshot.opens_ms), ("ends", snapshot.ends_ms)):
        header.append(f"\n{name:<6} {moment(ms)}  {countdown(ms, snapshot.at_ms)}")
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
    return header
