"""The rows of a sale and its items against the ledger's own events of it.

A row and the event that changed it are written at once, and both only move on. So where a row reads
the same before and after its events were read, what they make of it is what it must say, also while
the sale runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
from sqlalchemy import update

from seckill.errors import ScriptFailed
from seckill.ledger.database import our_errors
from seckill.ledger.drift import Drift, DriftKind, Drifts
from seckill.ledger.reconcile_history import SaleStory
from seckill.ledger.reconcile_sides import LedgerSide, RedisSide
from seckill.ledger.rows import Known, raw_event
from seckill.ledger.statements import put_items
from seckill.ledger.tables import ITEMS, SALES

__all__ = ["SaleRows", "compare_refusals"]

Row = dict[str, Any]

ROUNDS: Final = 5
_RAW: Final = ("seq", "at_ms", "kind", "subject", "body")
# What a keeper writes anew every few seconds.
_MOVING: Final = ("seen_seq", "seen_at_ms", "refusals")


class SaleRows:
    """Of one sale. ``is_lost`` says of an event whether the ledger may have lost it: a row that is
    of such a one is right. ``differing`` are events that nobody knows what to make of, ``refusals``
    is what Redis has of them, None where it does not tell."""

    def __init__(
        self,
        book: LedgerSide,
        known: Known,
        drifts: Drifts,
        *,
        fix: bool,
        is_lost: Callable[[int], bool],
        differing: Collection[int] = (),
        refusals: dict[str, int] | None = None,
    ) -> None:
        self._book = book
        self._known = known
        self._drifts = drifts
        self._fix = fix
        self._is_lost = is_lost
        self._differing = differing
        self._refusals = refusals

    async def compare(self) -> SaleStory:
        """Names and mends what differs. Returns what the ledger's events say of the sale."""
        for _ in range(ROUNDS):
            row, items = await self._book.row() or {}, await self._book.items()
            story = await self._story()
            again = await self._book.row() or {}
            if _fixed(row) == _fixed(again) and items == await self._book.items():
                await self._compare_sale(row, story)
                await self._compare_items(items, story)
                break
        return story

    async def _story(self) -> SaleStory:
        story = SaleStory()
        for row in await self._book.sale_events(0):
            if row["seq"] not in self._differing:
                try:
                    story.tell(self._known, raw_event(*(row[name] for name in _RAW)))
                except (LookupError, ValueError):
                    continue  # Named by the comparison of the events.
        return story

    def _is_judged(self, row_seq: int, seq: int) -> bool:
        return row_seq <= seq or not self._is_lost(row_seq)

    # -- the sale -----------------------------------------------------------------------------

    async def _compare_sale(self, row: Row, story: SaleStory) -> None:
        sale = self._known.sale
        state, reason, seq = story.state
        right: Row = {
            "definition": sale.definition().decode(),
            "origin_ms": self._known.origin_ms,
            "opens_ms": sale.opens_ms,
            "ends_ms": sale.ends_ms,
        }
        if row and self._is_judged(row["state_seq"], seq):
            right |= {"state": state, "reason": reason, "state_seq": seq}
            if state != "settled":
                # Only a settled sale is ever removed.
                right["removed_at_ms"] = 0
        if row and not _is_counts(row["refusals"]):
            right["refusals"] = msgspec.json.encode(self._refusals or {}).decode()
        wrong = [name for name, value in right.items() if row.get(name) != value]
        if not wrong or not row:
            return
        text = "; ".join(f"{name} is {_short(row[name])}" for name in wrong)
        text += f", by its events {state} since event {seq:,}" if "state_seq" in wrong else ""
        mended = False
        if self._fix:
            where = (SALES.c.sale == sale.id, SALES.c.state_seq == row["state_seq"])
            await self._execute(update(SALES).where(*where).values(right))
            now = await self._book.row() or {}
            mended = all(
                _is_counts(now[name]) if name == "refusals" else now[name] == right[name]
                for name in wrong
            )
        self._drifts.add(Drift(DriftKind.SALE_ROW_DIFFERS, text, mended=mended))

    # -- its items ----------------------------------------------------------------------------

    async def _compare_items(self, rows: dict[int, Row], story: SaleStory) -> None:
        left = dict(rows)
        for position, item in enumerate(self._known.sale.items):
            row = left.pop(position, None)
            total, seq = story.totals.get(position, (item.total, 0))
            right: Row = {"sku": item.sku, "title": item.title, "price_fen": item.price_fen}
            if row is None or self._is_judged(row["total_seq"], seq):
                right |= {"total": total, "total_seq": seq}
            wrong = [name for name, value in right.items() if row is None or row[name] != value]
            if wrong:
                mended = self._fix and await self._mend_item(position, right, row)
                text = "it is missing" if row is None else _difference(wrong, row, right)
                drift = Drift(DriftKind.ITEM_ROW_DIFFERS, text, sku=item.sku, mended=mended)
                self._drifts.add(drift)
        for row in left.values():
            text = "the sale has no such item"
            self._drifts.add(Drift(DriftKind.ITEM_ROW_DIFFERS, text, sku=str(row["sku"])))

    async def _mend_item(self, position: int, right: Row, row: Row | None) -> bool:
        if row is None:
            whole = {"sale": self._known.sale.id, "position": position} | right
            with our_errors():
                async with self._book.ledger.engine.begin() as connection:
                    await put_items(connection, [whole])
        else:
            key = (ITEMS.c[name] == row[name] for name in ("sale", "position", "total_seq"))
            await self._execute(update(ITEMS).where(*key).values(right))
        there = (await self._book.items()).get(position)
        return there is not None and all(there[name] == right[name] for name in right)

    async def _execute(self, statement: Any) -> None:
        with our_errors():
            async with self._book.ledger.engine.begin() as connection:
                await connection.execute(statement)


async def compare_refusals(redis: RedisSide, drifts: Drifts) -> dict[str, int] | None:
    """Names what is no count among the refusals in Redis. Returns those that are."""
    try:
        found = await redis.refusals()
    except ScriptFailed as error:
        drifts.add(Drift(DriftKind.REFUSALS_UNREADABLE, f"they are no hash: {error}"))
        return None
    for name, count in sorted(found.items()):
        if not _is_count(count):
            text = f"field {_short(name)} is {_short(count)}"
            drifts.add(Drift(DriftKind.REFUSALS_UNREADABLE, text))
    return {name: int(count) for name, count in found.items() if _is_count(count)}


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_counts(text: str) -> bool:
    """Whether the row's refusals are JSON of counts by status."""
    try:
        counts = msgspec.json.decode(text or "{}", type=dict[str, int])
    except msgspec.DecodeError:
        return False
    return all(count >= 0 for count in counts.values())


def _fixed(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in _MOVING}


def _difference(names: list[str], row: Row, right: Row) -> str:
    return "; ".join(f"{name} is {row[name]!r}, not {right[name]!r}" for name in names[:3])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
