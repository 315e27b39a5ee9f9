"""Holds what the buyers saw against what Redis did. ``seckill.verify`` has proved the stream by its
own rules; here the question is whether the outside world was told the same story.
"""

from __future__ import annotations

from typing import Final

from seckill.cli.demo_messages import Books
from seckill.cli.demo_report import Story
from seckill.order import State
from seckill.snapshot import Snapshot
from seckill.verify import Violation

__all__ = ["check_books", "plainest_first"]

NAMED_MAX: Final = 20
# One bug breaks many rules; these name it best.
_PLAIN: Final = ("oversold", "accepted twice", "limit", "undersold", "lost payment", "lost")


def plainest_first(violations: list[Violation]) -> list[Violation]:
    """The violations with those in front that say most plainly what went wrong."""
    rank = {rule: index for index, rule in enumerate(_PLAIN)}
    return sorted(violations, key=lambda violation: rank.get(violation.rule, len(rank)))


def check_books(books: Books, story: Story, snapshot: Snapshot) -> list[Violation]:
    """Every disagreement between the buyers' books, the stream and the stock at the end."""
    found = [Violation(0, rule, text) for rule, text in books.broken]
    found += _check_receipts(books, story)
    found += _check_units(books, story)
    found += _check_stock(books, snapshot)
    return found


def _check_receipts(books: Books, story: Story) -> list[Violation]:
    found = []
    known = set()
    for receipt in books.receipts:
        known.add(receipt.order)
        order = story.orders.get(receipt.order)
        if order is None:
            found.append(Violation(0, "lost", f"order {receipt.order} is not in the stream"))
        elif (order.buyer, order.items) != (receipt.buyer, receipt.items):
            found.append(
                Violation(0, "another order", f"order {receipt.order} differs in the stream")
            )
        elif receipt.paid and order.state is not State.CONFIRMED:
            found.append(
                Violation(0, "lost payment", f"order {receipt.order} is paid, yet {order.state}")
            )
    # A request whose buyer hung up may be carried out after its retry was refused; what it took
    # comes back when it expires. Anybody else must have been told.
    hung_up = set(books.hung_up)
    found += [
        Violation(0, "unknown order", f"order {name} of {order.buyer}, whom nobody told")
        for name, order in story.orders.items()
        if name not in known and order.buyer not in hung_up
    ]
    return found[:NAMED_MAX]


def _check_units(books: Books, story: Story) -> list[Violation]:
    """Accepted units, counted by the buyers and by the stream."""
    seen = sum(sum(receipt.items.values()) for receipt in books.receipts)
    told = sum(
        sum(story.orders[receipt.order].items.values()) * story.held[receipt.order]
        for receipt in books.receipts
        if receipt.order in story.orders
    )
    if seen == told:
        return []
    return [Violation(0, "units", f"buyers were told of {seen:,} units, the stream of {told:,}")]


def _check_stock(books: Books, snapshot: Snapshot) -> list[Violation]:
    found = []
    for sku, stock in snapshot.stock.items():
        if stock.available + stock.held + stock.confirmed != stock.total:
            found.append(Violation(0, "conservation", f"SKU {sku}: {stock}"))
        if stock.held:
            found.append(Violation(0, "stuck", f"SKU {sku}: {stock.held:,} held after the end"))
        # The probe asked for one unit when all was quiet.
        probe = books.probes.get(sku, "")
        if stock.available > 0 and probe in ("sold_out", "insufficient"):
            text = f"SKU {sku}: {probe} was said of {stock.available:,} available units"
            found.append(Violation(0, "undersold", text))
    return found
