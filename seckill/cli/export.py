"""``seckill export``: a sale's orders as a file for finance."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.text import Text

from seckill.cli.command import LedgerUrl, SaleId, open_ledger
from seckill.cli.files import written
from seckill.cli.ledger_sale import known_sale
from seckill.cli.output import new_console, yuan
from seckill.cli.report import Zone
from seckill.zone import CHINA, read_zone

if TYPE_CHECKING:
    from seckill.ledger.export import Exported

__all__ = ["export"]


class Format(StrEnum):
    """The kinds of files."""

    CSV = "csv"


class Order(StrEnum):
    """What the rows are in order of."""

    TIME = "time"
    ID = "id"


def export(
    sale: SaleId,
    ledger: LedgerUrl = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; else to stdout."),
    ] = None,
    format: Annotated[  # noqa: A002
        Format, typer.Option(help="One row for each line of each order.")
    ] = Format.CSV,
    sort: Annotated[Order, typer.Option(help="By the time of the order, or by its id.")] = (
        Order.TIME
    ),
    zone: Zone = CHINA,
    bom: Annotated[
        bool,
        typer.Option(
            "--bom/--no-bom", help="Begin with a byte order mark, without which Excel reads GBK."
        ),
    ] = True,
) -> None:
    """Write a sale's orders as CSV, for finance."""
    place, book = read_zone(zone), open_ledger(ledger)
    from seckill.ledger.export import BOM, Sort, export_csv

    async def main(file: BinaryIO) -> Exported:
        def write(part: str) -> None:
            file.write(part.encode())

        async with book:
            await known_sale(book, sale)
            write(BOM if bom else "")
            told = await export_csv(book, sale, place, write, sort=Sort(sort))
        file.flush()
        return told

    # stdout is only looked at if it is the file.
    target = nullcontext(sys.stdout.buffer) if output is None else written(output, "--output")
    with target as file:
        told = asyncio.run(main(file))
    # On stderr where stdout is the file itself.
    console = new_console()
    console.stderr = output is None
    rows = f"{told.orders:,} orders in {told.rows:,} rows"
    money = f"{yuan(told.gross_fen)} gross, {yuan(told.refunded_fen)} refunded"
    what = f"sale {sale}: {rows}; {money}, {yuan(told.net_fen)} net"
    console.print(Text.assemble(("✓ ", "green"), what))
