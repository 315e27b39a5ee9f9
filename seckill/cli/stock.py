"""``seckill stock``: units of a sale, shown and changed while it runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, new_table, yuan
from seckill.engine import Engine
from seckill.sale import Sale
from seckill.snapshot import Snapshot

__all__ = ["app", "stock_table"]

app = typer.Typer(no_args_is_help=True)

Sku = Annotated[str, typer.Argument(metavar="SKU", help="The item's SKU.")]
Units = Annotated[int, typer.Argument(metavar="UNITS", min=1, help="How many.")]
Key = Annotated[
    str, typer.Option(help="Names this change, so that repeating it changes nothing more.")
]


@app.command("show")
@on_engine
async def show(engine: Engine, out: Output, sale: SaleId) -> int:
    """Show every item's units."""
    definition, snapshot = await engine.sale(sale), await engine.snapshot(sale)
    out.answer(snapshot.stock, stock_table(definition, snapshot))
    return 0


@app.command("add")
@on_engine
async def add(engine: Engine, out: Output, sale: SaleId, sku: Sku, units: Units, key: Key) -> int:
    """Put more units of an item on sale."""
    return await _change(engine, out, sale, sku, units, key)


@app.command("take")
@on_engine
async def take(engine: Engine, out: Output, sale: SaleId, sku: Sku, units: Units, key: Key) -> int:
    """Take units off the sale; refused when fewer are available."""
    return await _change(engine, out, sale, sku, -units, key)


async def _change(engine: Engine, out: Output, sale: str, sku: str, units: int, key: str) -> int:
    outcome = await engine.add_stock(sale, sku, units, key=key)
    status = outcome.status
    data = {
        "ok": status.ok,
        "status": status.name.lower(),
        "meaning": status.meaning,
        "available": outcome.available,
        "total": outcome.total,
    }
    what = f"{units:+,} of SKU {sku}"
    if status.ok:
        what += f" ({outcome.available:,} available of {outcome.total:,})"
    return out.verdict(status, what, data)


def stock_table(sale: Sale, snapshot: Snapshot) -> Table:
    """Items and their units. Titles are Chinese as a rule, so widths are counted in cells."""
    table = new_table("SKU", "~title", ">price", ">avail", ">held", ">paid", ">total")
    for item in sale.items:
        stock = snapshot.stock[item.sku]
        table.add_row(
            Text(item.sku),
            Text(item.title),
            yuan(item.price_fen),
            Text(f"{stock.available:,}", style="" if stock.available else "dim"),
            f"{stock.held:,}",
            f"{stock.confirmed:,}",
            f"{stock.total:,}",
        )
    return table
