"""``seckill order``: one order, for the person on duty."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, complain, countdown, moment, order_data, yuan
from seckill.engine import Engine
from seckill.order import Order, State
from seckill.sale import Sale
from seckill.status import Status

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="The order's id.")]


@app.command("show")
@on_engine
async def show(engine: Engine, out: Output, sale: SaleId, order: OrderId) -> int:
    """Show an order as it is now."""
    found = await engine.order(sale, order)
    if found is None:
        return complain(f"order {order}: {Status.UNKNOWN_ORDER.meaning}", code=1)
    now_ms = (await engine.snapshot(sale)).at_ms
    out.answer(order_data(found), _picture(await engine.sale(sale), found, now_ms))
    return 0


@app.command("begin-payment")
@on_engine
async def begin_payment(engine: Engine, out: Output, sale: SaleId, order: OrderId) -> int:
    """Give a held order the time to pay."""
    return out.status(await engine.begin_payment(sale, order), f"order {order}: begin payment")


@app.command("confirm")
@on_engine
async def confirm(
    engine: Engine,
    out: Output,
    sale: SaleId,
    order: OrderId,
    payment: Annotated[str, typer.Option(metavar="ID", help="The payment's own id.")],
) -> int:
    """Record that money has arrived for an order."""
    return out.status(await engine.confirm(sale, order, payment), f"order {order}: confirm")


@app.command("release")
@on_engine
async def release(engine: Engine, out: Output, sale: SaleId, order: OrderId) -> int:
    """Give an unpaid order up; its units go back on sale."""
    return out.status(await engine.release(sale, order), f"order {order}: release")


@app.command("refund")
@on_engine
async def refund(
    engine: Engine,
    out: Output,
    sale: SaleId,
    order: OrderId,
    refund: Annotated[str, typer.Option(metavar="ID", help="The refund's own id.")],
    return_units: Annotated[
        bool,
        typer.Option(
            "--return-units/--drop-units",
            help="Put the units on sale again, or take them out of the sale.",
        ),
    ],
    return_limit: Annotated[
        bool,
        typer.Option(
            "--return-limit/--keep-limit",
            help="Let the buyer buy as many again, or count the refunded units still.",
        ),
    ],
) -> int:
    """Record that a paid order's money goes back. Both choices must be made."""
    outcome = await engine.refund(
        sale, order, refund, return_units=return_units, return_limit=return_limit
    )
    return out.status(outcome, f"order {order}: refund")


def _picture(sale: Sale, order: Order, now_ms: int) -> Text:
    titles = {item.sku: item.title for item in sale.items}
    picture = Text.assemble((order.id, "bold"), f"  {order.state}, version {order.version}\n")
    picture.append(f"buyer    {order.buyer}\n")
    for sku, quantity in order.items.items():
        picture.append(f"item     {quantity:,} × {titles[sku]} ({sku})\n")
    picture.append(f"amount   {yuan(order.amount_fen)}\n")
    if order.state in (State.HELD, State.PAYING):
        deadline = f"{moment(order.deadline_ms)}  {countdown(order.deadline_ms, now_ms)}"
        picture.append(f"pay by   {deadline}\n")
    for index, payment in enumerate(order.payments):
        paid = index == 0 and order.state in (State.CONFIRMED, State.REFUNDED)
        picture.append(f"payment  {payment}{'' if paid else '  due for refund'}\n")
    if order.refund:
        picture.append(f"refund   {order.refund}\n")
    picture.rstrip()
    return picture
