"""A sale's orders as CSV, for finance: one row for each line of each order.

Excel opens such a file as if it had been typed: what begins with = + - @ becomes a formula, and a
payment's id of 28 digits becomes 4.2E+27. So any text that Excel would compute or round gets an
apostrophe in front; a program takes one leading apostrophe off and has what was there.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import tzinfo
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import case, func, select

from seckill.errors import UnknownSale
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.report import snapshot
from seckill.ledger.tables import EVENTS, ORDERS, SALES
from seckill.sale import Item, Sale
from seckill.stream import EventKind
from seckill.zone import iso_time

__all__ = ["BOM", "COLUMNS", "Exported", "Sort", "export_csv"]

BOM: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""Without it Excel in China reads UTF-8 as GBK."""
READ_ROWS: Final = 2_000

COLUMNS: Final = (
    *("sale", "order", "buyer", "sku", "title", "quantity", "price_fen", "amount_fen", "amount"),
    *("state", "held_at", "paid_at", "refunded_at", "payment", "refund", "due_back_payments"),
)
# An apostrophe as well, so that taking one off always gives back what was there.
_COMPUTED: Final = re.compile(r"[=+\-@'\t\r\n]").match
_ROUNDED: Final = re.compile(r"0\d+|\d{12,}|\d+[.]?\d*[eE][+-]?\d+").fullmatch


class Sort(StrEnum):
    """What the rows are in order of; orders of the same moment stand in the order of their ids."""

    TIME = "time"
    ID = "id"


class Exported(msgspec.Struct):
    """What was written; money in fen, as in the report of the same moment. ``rows``: lines of
    orders; ``gross_fen`` is of orders that were paid, also if they were refunded since."""

    orders: int = 0
    rows: int = 0
    gross_fen: int = 0
    refunded_fen: int = 0

    @property
    def net_fen(self) -> int:
        """What remains."""
        return self.gross_fen - self.refunded_fen

    def add(self, state: str, fen: Sequence[int]) -> None:
        """One order, of which each line costs so much."""
        self.orders += 1
        self.rows += len(fen)
        if state in ("confirmed", "refunded"):
            self.gross_fen += sum(fen)
        if state == "refunded":
            self.refunded_fen += sum(fen)


async def export_csv(
    ledger: Ledger,
    sale: str,
    zone: tzinfo,
    write: Callable[[str], object],
    *,
    sort: Sort = Sort.TIME,
) -> Exported:
    """Hands the file to ``write`` in parts of some thousand rows, with its header but without a
    byte order mark. One reading of one moment, which the database sorts.

    Columns: ``amount_fen`` is the line's, ``amount`` the same in yuan with two decimals; times are
    ISO 8601 in ``zone``, empty for what has not happened; ``payment`` bought the order, and
    ``due_back_payments`` bought nothing and are due back, separated by spaces.

    Raises UnknownSale, LedgerUnavailable, LedgerRefused, and what ``write`` raises.
    """
    told = Exported()
    async with snapshot(ledger) as connection:
        with our_errors():
            text = await connection.scalar(select(SALES.c.definition).where(SALES.c.sale == sale))
            if text is None:
                raise UnknownSale(sale)
            orders = await connection.stream(_orders(sale, sort))
        items = {item.sku: item for item in Sale.from_definition(text.encode()).items}
        sheet = io.StringIO()
        writer = csv.writer(sheet)
        writer.writerow(COLUMNS)
        while True:
            with our_errors():
                part = await orders.fetchmany(READ_ROWS)
            for order in part:
                units = msgspec.json.decode(order.items, type=dict[str, int])
                lines = [(items[sku], quantity) for sku, quantity in units.items()]
                told.add(order.state, [item.price_fen * quantity for item, quantity in lines])
                writer.writerows(_rows(sale, order, lines, zone))
            write(sheet.getvalue())
            if not part:
                return told
            sheet.seek(0)
            sheet.truncate()


def _orders(sale: str, sort: Sort) -> Any:
    paid, refunded = str(EventKind.CONFIRMED), str(EventKind.REFUNDED)
    # Each happens once at most, so the highest time is the only one.
    times = (
        select(
            EVENTS.c.subject,
            func.max(case((EVENTS.c.kind == paid, EVENTS.c.at_ms))).label("paid_ms"),
            func.max(case((EVENTS.c.kind == refunded, EVENTS.c.at_ms))).label("refunded_ms"),
        )
        .where(EVENTS.c.sale == sale, EVENTS.c.kind.in_((paid, refunded)))
        .group_by(EVENTS.c.subject)
        .subquery()
    )
    query = (
        select(
            *(ORDERS.c[name] for name in ("id", "buyer", "state", "items", "held_ms")),
            *(ORDERS.c[name] for name in ("payment", "refund", "record")),
            times.c.paid_ms,
            times.c.refunded_ms,
        )
        .select_from(ORDERS)
        .outerjoin(times, times.c.subject == ORDERS.c.id)
        .where(ORDERS.c.sale == sale)
        .order_by(*([ORDERS.c.held_ms, ORDERS.c.id] if sort is Sort.TIME else [ORDERS.c.id]))
    )
    return query.execution_options(yield_per=READ_ROWS)


def _rows(
    sale: str, order: Any, lines: Iterable[tuple[Item, int]], zone: tzinfo
) -> Iterable[tuple[str | int, ...]]:
    held, paid, refunded = (
        iso_time(ms or 0, zone) for ms in (order.held_ms, order.paid_ms, order.refunded_ms)
    )
    due_back = _due_back(order.record, order.payment)
    for item, quantity in lines:
        fen = item.price_fen * quantity
        yield (
            *(_guarded(text) for text in (sale, order.id, order.buyer, item.sku, item.title)),
            *(quantity, item.price_fen, fen, f"{fen // 100}.{fen % 100:02d}"),
            *(order.state, held, paid, refunded),
            *(_guarded(text) for text in (order.payment, order.refund, due_back)),
        )


def _due_back(record: str, payment: str) -> str:
    """The payments that bought nothing: all but the first of an order that was paid."""
    parts = record.split("|")
    payments = parts[3].split(",") if len(parts) > 3 and parts[3] else []
    return " ".join(payments[1:] if payment else payments)


def _guarded(text: str) -> str:
    return f"'{text}" if _COMPUTED(text) or _ROUNDED(text) else text
