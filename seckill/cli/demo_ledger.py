"""The demo's last question: is every accepted order in the SQL ledger, as it stands in Redis?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from seckill.cli.demo_report import Story
from seckill.engine import Engine
from seckill.keys import refusals_key
from seckill.refusals import refusals_json
from seckill.verify import Violation

if TYPE_CHECKING:
    from seckill.ledger import Ledger
    from seckill.ledger.report import Report

__all__ = ["bring_up", "check_ledger", "sale_report"]

NAMED_MAX: Final = 20


async def bring_up(engine: Engine, ledger: Ledger) -> None:
    """Writes what the intake's worker had not yet written when it ended."""
    from seckill.ledger.run import LedgerRunner

    # The worker has ended, so nobody will write what it may have taken and not acknowledged.
    await LedgerRunner(engine, ledger, once=True, reclaim_ms=1).run()
    for sale in await engine.sales():
        client = engine._calls.client_of(refusals_key(sale))
        await ledger.refused(sale, await refusals_json(client, sale))


async def sale_report(ledger: Ledger, sale: str) -> Report:
    """What `seckill report` would show of it."""
    from seckill.ledger.report import make_report

    return await make_report(ledger, sale)


async def check_ledger(ledger: Ledger, sale: str, story: Story) -> tuple[int, list[Violation]]:
    """The number of orders in the ledger, and every disagreement with the stream."""
    found: list[Violation] = []
    rows = 0
    async for part in ledger.orders(sale, "id", "buyer", "state", "version", "amount_fen"):
        for order_id, *row in part:
            rows += 1
            order = story.orders.get(order_id)
            told = order and [order.buyer, order.state.value, order.version, order.amount_fen]
            if row != told:
                text = f"order {order_id} is {row} in SQL and {told} in the stream"
                found.append(Violation(0, "ledger", text))
    if rows != len(story.orders):
        text = f"{len(story.orders):,} orders were accepted, {rows:,} are in SQL"
        found.append(Violation(0, "ledger", text))
    events, _ = await ledger.counts(sale)
    if events != story.events:
        text = f"{story.events:,} events are in the stream, {events:,} in SQL"
        found.append(Violation(0, "ledger", text))
    return rows, found[:NAMED_MAX]
