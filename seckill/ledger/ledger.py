"""The ledger: a sale's events and orders in the mall's SQL database.

Whatever is written may be written again and in any order, so any number of consumers may write at
once, and each acknowledges what it took only after its commit.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from seckill.errors import LedgerForked, LedgerRefused, UnknownSale
from seckill.ledger import migrate
from seckill.ledger.database import connect, our_errors
from seckill.ledger.rows import Known, Raw, event_row, newest_orders, raw_event, sale_state
from seckill.ledger.rows import decode as decode_raw
from seckill.ledger.statements import put_events, put_items, put_orders, put_sale
from seckill.ledger.tables import EVENTS, IDENTITY, ITEMS, ORDERS, SALES
from seckill.sale import Sale
from seckill.stream import SALE_SUBJECT, EventKind

__all__ = ["Ledger"]

READ_ROWS: int = 2_000
COMPARED_ROWS: int = 500


class Ledger:
    """One database. Used as an async context manager, or with ``start`` and ``aclose``.

    Its methods raise LedgerUnavailable (the same call may do later) and LedgerRefused.
    """

    def __init__(self, url: str) -> None:
        """``url`` is sqlite:///file, postgresql://… or mysql://…; raises InvalidInput,
        MissingExtra."""
        self.engine: AsyncEngine = connect(url)

    @property
    def file(self) -> Path | None:
        """Where it is, if it is a file."""
        at = self.engine.url
        return Path(at.database or "") if at.get_backend_name() == "sqlite" else None

    @property
    def name(self) -> str:
        """Where it is, for people: the URL without user, password and options."""
        at = self.engine.url
        if self.file is not None:
            return f"sqlite:///{self.file.absolute()}"
        plain = URL.create(at.get_backend_name(), None, None, at.host, at.port, at.database)
        return plain.render_as_string()

    async def identity(self) -> str:
        """Its own id, 32 hexadecimal digits. A backup and a copy have the same.

        Asked of the database each time: another one may have taken its place.
        """
        with our_errors():
            for _ in range(2):
                async with self.engine.connect() as connection:
                    found = await connection.scalar(select(IDENTITY.c.id))
                if found is not None:
                    return str(found)
                await migrate.identify(self.engine)
        raise LedgerRefused("its table seckill_ledger does not keep what is written there")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Brings the tables up to date, which only ever adds to them."""
        with our_errors():
            await migrate.upgrade(self.engine)

    async def aclose(self) -> None:
        """Disconnects. Can be repeated."""
        await self.engine.dispose()

    # -- writing ------------------------------------------------------------------------------

    async def know(self, known: Known) -> None:
        """Writes a sale that the ledger does not have. Raises LedgerForked when it has another one
        under this id."""
        sale = known.sale
        row = {
            "sale": sale.id,
            "made": known.made,
            "definition": sale.definition().decode(),
            "origin_ms": known.origin_ms,
            "opens_ms": sale.opens_ms,
            "ends_ms": sale.ends_ms,
            "state": "created",
            "reason": "",
            "state_seq": 0,
            "seen_seq": 0,
            "seen_at_ms": 0,
            "refusals": "{}",
            "removed_at_ms": 0,
        }
        items = [
            {
                "sale": sale.id,
                "position": position,
                "sku": item.sku,
                "title": item.title,
                "price_fen": item.price_fen,
                "total": item.total,
                "total_seq": 0,
            }
            for position, item in enumerate(sale.items)
        ]
        with our_errors():
            async with self.engine.begin() as connection:
                if not await put_sale(connection, row):
                    made = await connection.scalar(
                        select(SALES.c.made).where(SALES.c.sale == sale.id)
                    )
                    if made != known.made:
                        raise LedgerForked(sale.id, 1, "another sale was made under its id")
                await put_items(connection, items)

    async def write(self, batch: Sequence[tuple[Known, Sequence[Raw]]]) -> None:
        """Writes events, of one or more sales that ``know`` has written, in one transaction.

        Raises LookupError or ValueError for a damaged event, LedgerForked for one that is there
        with another content; nothing is written then.
        """
        todo = [
            (known, sorted(raws), newest_orders(known, raws))
            for known, raws in sorted(batch, key=lambda pair: pair[0].sale.id)
        ]
        with our_errors():
            async with self.engine.begin() as connection:
                for known, raws, orders in todo:
                    rows = [event_row(known.sale.id, raw) for raw in raws]
                    if await put_events(connection, rows) < len(rows):
                        await self._compare(connection, known.sale.id, rows)
                    await put_orders(connection, orders)
                    for raw in raws:
                        if raw.subject == SALE_SUBJECT:
                            await _follow(connection, known, raw)
                    await _check_made(connection, known)

    async def _compare(
        self, connection: AsyncConnection, sale: str, rows: list[dict[str, Any]]
    ) -> None:
        """Some of these events were there before: by a redelivery, or are they others?"""
        for start in range(0, len(rows), COMPARED_ROWS):
            by_seq = {row["seq"]: row for row in rows[start : start + COMPARED_ROWS]}
            found = await connection.execute(
                select(EVENTS).where(EVENTS.c.sale == sale, EVENTS.c.seq.in_(by_seq))
            )
            for there in found.mappings():
                if by_seq[there["seq"]] != dict(there):
                    problem = "the ledger has it with another content"
                    raise LedgerForked(sale, there["seq"], problem)

    async def seen(self, sale: str, seq: int) -> None:
        """Keeps the highest seq that Redis was seen to have, which says after a loss of Redis how
        much was lost between it and the ledger."""
        values = {"seen_seq": seq, "seen_at_ms": int(time.time() * 1000)}
        with our_errors():
            async with self.engine.begin() as connection:
                await connection.execute(
                    update(SALES)
                    .where(SALES.c.sale == sale, SALES.c.seen_seq <= seq)
                    .values(values)
                )

    async def refused(self, sale: str, counts: str) -> None:
        """Keeps the refusals of a sale, JSON as ``refusals.refusals_json`` makes it."""
        with our_errors():
            async with self.engine.begin() as connection:
                await connection.execute(
                    update(SALES).where(SALES.c.sale == sale).values(refusals=counts)
                )

    # -- reading ------------------------------------------------------------------------------

    async def sales(self) -> list[dict[str, Any]]:
        """The rows of seckill_sales, sorted by sale."""
        with our_errors():
            async with self.engine.connect() as connection:
                found = await connection.execute(select(SALES).order_by(SALES.c.sale))
                return [dict(row) for row in found.mappings()]

    async def sale(self, sale: str) -> dict[str, Any]:
        """A row of seckill_sales. Raises UnknownSale."""
        with our_errors():
            async with self.engine.connect() as connection:
                found = await connection.execute(select(SALES).where(SALES.c.sale == sale))
                row = found.mappings().first()
        if row is None:
            raise UnknownSale(sale)
        return dict(row)

    async def known(self, sale: str) -> Known:
        """What was written by ``know``. Raises UnknownSale."""
        row = await self.sale(sale)
        return Known(
            Sale.from_definition(row["definition"].encode()), row["origin_ms"], row["made"]
        )

    async def last(self, sale: str) -> tuple[int, int]:
        """The highest seq there, and its time ms; 0, 0 for none. Lower ones may be missing yet."""
        with our_errors():
            async with self.engine.connect() as connection:
                found = await connection.execute(
                    select(EVENTS.c.seq, EVENTS.c.at_ms)
                    .where(EVENTS.c.sale == sale)
                    .order_by(EVENTS.c.seq.desc())
                    .limit(1)
                )
                row = found.first()
        return (row[0], row[1]) if row else (0, 0)

    async def counts(self, sale: str) -> tuple[int, int]:
        """How many events and how many orders are there."""
        with our_errors():
            async with self.engine.connect() as connection:
                of = (select(func.count()).where(each.c.sale == sale) for each in (EVENTS, ORDERS))
                events, orders = [int(await connection.scalar(each) or 0) for each in of]
        return events, orders

    async def events(
        self, sale: str, *, after_seq: int = 0, through_seq: int | None = None
    ) -> AsyncIterator[list[Raw]]:
        """The events in the order of seq, some thousands at a time. Each part is one read of its
        own, so nothing is held open in between."""
        columns = (EVENTS.c.seq, EVENTS.c.at_ms, EVENTS.c.kind, EVENTS.c.subject, EVENTS.c.body)
        while True:
            wanted = [EVENTS.c.sale == sale, EVENTS.c.seq > after_seq]
            if through_seq is not None:
                wanted.append(EVENTS.c.seq <= through_seq)
            query = select(*columns).where(and_(*wanted)).order_by(EVENTS.c.seq).limit(READ_ROWS)
            with our_errors():
                async with self.engine.connect() as connection:
                    rows = (await connection.execute(query)).all()
            if rows:
                yield [raw_event(*row) for row in rows]
                after_seq = rows[-1][0]
            if len(rows) < READ_ROWS:
                return

    async def orders(self, sale: str, *columns: str) -> AsyncIterator[Sequence[Any]]:
        """The orders in the order of their ids, rows of these columns, some thousands at a time."""
        chosen = [ORDERS.c[name] for name in columns]
        after = ""
        while True:
            query = (
                select(ORDERS.c.id, *chosen)
                .where(ORDERS.c.sale == sale, ORDERS.c.id > after)
                .order_by(ORDERS.c.id)
                .limit(READ_ROWS)
            )
            with our_errors():
                async with self.engine.connect() as connection:
                    rows = (await connection.execute(query)).all()
            if rows:
                yield [tuple(row)[1:] for row in rows]
                after = rows[-1][0]
            if len(rows) < READ_ROWS:
                return


async def _check_made(connection: AsyncConnection, known: Known) -> None:
    """Raises LedgerForked if the sale was made anew since ``know``. Until the commit nobody else
    can do so either: a rebuild tells the ledger first, and waits here."""
    query = select(SALES.c.made).where(SALES.c.sale == known.sale.id).with_for_update(read=True)
    made = await connection.scalar(query)
    if made != known.made:
        raise LedgerForked(known.sale.id, 1, "it was made anew while its events were written")


async def _follow(connection: AsyncConnection, known: Known, raw: Raw) -> None:
    """What an event of the sale itself changes: its state, or the total of a SKU."""
    event = decode_raw(known, raw)
    state = sale_state(event)
    if state is not None:
        await connection.execute(
            update(SALES)
            .where(SALES.c.sale == known.sale.id, SALES.c.state_seq < raw.seq)
            .values(state=state[0], reason=state[1], state_seq=raw.seq)
        )
    elif event.kind is EventKind.STOCK_CHANGED:
        _, position, _, total = event.detail.rsplit("|", 3)
        await connection.execute(
            update(ITEMS)
            .where(
                ITEMS.c.sale == known.sale.id,
                ITEMS.c.position == int(position),
                ITEMS.c.total_seq < raw.seq,
            )
            .values(total=int(total), total_seq=raw.seq)
        )
