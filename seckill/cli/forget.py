"""``seckill forget``: a buyer has asked to be forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from seckill.cli.command import Json, LedgerUrl, open_ledger
from seckill.cli.output import Output
from seckill.sale import check_buyer

if TYPE_CHECKING:
    from seckill.ledger.forget import Forgotten

__all__ = ["forget"]


def forget(
    buyer: Annotated[str, typer.Argument(metavar="BUYER", help="The mall's id of the buyer.")],
    ledger: LedgerUrl = None,
    json: Json = False,
) -> None:
    """Replace a buyer's id in the ledger by a pseudonym, and empty what came with their orders."""
    check_buyer(buyer, "BUYER")
    book = open_ledger(ledger)
    from seckill.ledger.forget import forget as forget_buyer

    async def main() -> Forgotten:
        async with book:
            return await forget_buyer(book, buyer)

    done = asyncio.run(main())
    Output(json=json).answer(msgspec.structs.asdict(done), _said(done))


def _said(done: Forgotten) -> Text:
    if not done.sales:
        return Text.assemble(("✓ ", "green"), "the ledger has no orders of this buyer")
    what = f"{done.orders:,} orders and {done.events:,} events in {', '.join(done.sales)}"
    said = Text.assemble(("✓ ", "green"), f"forgotten in {what}")
    return said.append("\n  amounts and payments stay; archives made before still name the buyer")
