"""The two sides that reconcile compares: reads of Redis and of the ledger, each small and bounded.

Redis is asked for at most ``PART`` things at a time, so that no read holds a running sale up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from sqlalchemy import ARRAY, Column, String, any_, cast, func, select
from sqlalchemy.sql.elements import ColumnElement

from seckill import redis as servers
from seckill.errors import ScriptFailed, UnknownSale, UpgradeNeeded
from seckill.keys import group_keys, refusals_key, shard_keys
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.letters import GROUP
from seckill.ledger.rows import Known, Raw, raw_of
from seckill.ledger.tables import EVENTS, ITEMS, ORDERS
from seckill.sale import Sale
from seckill.scripts import FORMAT
from seckill.stream import SALE_SUBJECT

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["PART", "SETTINGS", "LedgerSide", "Picture", "Progress", "RedisSide", "is_rebuilt"]

PART: Final = 1_000
# An entry has up to 32 events.
ENTRIES: Final = 200
SETTINGS: Final = (
    *("definition_id", "origin_ms", "opens_ms", "ends_ms", "hold_ms", "pay_ms"),
    *("limit_per_order", "limit_per_buyer", "max_lapsed"),
)
"""Fields of a sale's header that never change, see lua/create.lua."""


def is_rebuilt(raw: Raw) -> bool:
    """Whether a rebuilt sale goes on with this event, past all seqs that were ever given."""
    return raw.subject == SALE_SUBJECT and raw.value.partition("|")[0] == "rebuilt"


class Picture(msgspec.Struct, frozen=True):
    """A sale in Redis at one moment. ``settings`` are the numbers by which its scripts decide,
    ``changes`` the changes of stock that its header has by key, as ``index:units``, ``stock`` what
    its hash says by ``index:name``; ``orders`` counts its records."""

    seq: int
    last_ms: int
    state: str
    reason: str
    known: Known
    trimmed_seq: int
    settings: dict[str, str]
    changes: dict[str, str]
    stock: dict[str, int]
    orders: int

    @property
    def after(self) -> str:
        """Where the events after this moment begin: an entry's id is at least this."""
        return f"{self.last_ms}-{self.seq + 1}"


class Progress(NamedTuple):
    """How far the ledger's group is: everything up to ``applied`` was written and acknowledged."""

    applied: int
    exists: bool
    pending: int


class RedisSide:
    """One sale in Redis. Raises redis-py's exceptions."""

    def __init__(self, client: Redis, sale: str) -> None:
        self._client: Any = client
        self._sale = sale
        keys = shard_keys(sale)
        self._header, self._stock, self._buyers = keys[:3]
        self._orders, self._events = keys[3], keys[6]
        self._queues = {"h": keys[4], "p": keys[5]}

    async def picture(self) -> Picture | None:
        """Header, stock and number of orders in one step; None when there is no such sale.

        Raises UpgradeNeeded, and ScriptFailed for a damaged header.
        """
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._header)
            pipe.hgetall(self._stock)
            pipe.hlen(self._orders)
            header, stock, orders = await pipe.execute()
        if not header:
            return None
        fields = {name.decode(): value.decode() for name, value in header.items()}
        if fields.get("format") != str(FORMAT):
            raise UpgradeNeeded(self._sale)
        try:
            return _picture(fields, stock, orders)
        except (LookupError, ValueError) as error:
            raise ScriptFailed(f"the hash of sale {self._sale!r} is damaged: {error!r}") from None

    async def seq(self) -> int:
        """The last event's seq; 0 when there is no such sale."""
        return int(await self._client.hget(self._header, "seq") or 0)

    async def trimmed_seq(self) -> int:
        """The last event that a trim has taken."""
        return int(await self._client.hget(self._header, "trimmed_seq") or 0)

    async def scan(self) -> AsyncIterator[dict[str, str]]:
        """Every order's record, some hundreds at a time; one may come twice, as of two moments."""
        cursor = 0
        while True:
            cursor, part = await self._client.hscan(self._orders, cursor, count=PART)
            if part:
                yield {_text(order): _text(record) for order, record in part.items()}
            if cursor == 0:
                return

    async def records(self, orders: Sequence[str]) -> dict[str, str]:
        """The records of those of these orders that are there."""
        found: dict[str, str] = {}
        for part in _parts(orders):
            records = await self._client.hmget(self._orders, part)
            found |= {
                order: _text(record)
                for order, record in zip(part, records, strict=True)
                if record is not None
            }
        return found

    async def queue(self, state: str) -> AsyncIterator[list[str]]:
        """The ids in the queue of the held ("h") or the paying ("p") orders, its end first: a sweep
        takes from its front meanwhile, and what is left moves to where it was not read yet."""
        end = await self._client.llen(self._queues[state])
        while end > 0:
            start = max(0, end - PART)
            found = await self._client.lrange(self._queues[state], start, end - 1)
            yield [_text(order) for order in found]
            end = start

    async def purses(self) -> AsyncIterator[dict[str, str]]:
        """What each buyer has had, some hundreds at a time, as of several moments."""
        cursor = 0
        while True:
            cursor, part = await self._client.hscan(self._buyers, cursor, count=PART)
            if part:
                yield {_text(buyer): _text(purse) for buyer, purse in part.items()}
            if cursor == 0:
                return

    async def purses_of(self, buyers: Sequence[str]) -> tuple[int, dict[str, str]]:
        """What those of at most ``PART`` buyers have had who are there, and as of which event."""
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hget(self._header, "seq")
            pipe.hmget(self._buyers, list(buyers))
            seq, purses = await pipe.execute()
        found = {
            buyer: _text(purse)
            for buyer, purse in zip(buyers, purses, strict=True)
            if purse is not None
        }
        return int(seq or 0), found

    async def refusals(self) -> dict[str, str]:
        """How often an order was refused, by status, as it stands there. Raises ScriptFailed when
        it is no hash."""
        with servers.our_errors():
            found = await self._client.hgetall(refusals_key(self._sale))
        return {_text(name): _text(count) for name, count in found.items()}

    async def events(self, start: str = "-") -> AsyncIterator[list[Raw]]:
        """What the stream holds from an entry id on, up to some thousand events at a time."""
        while True:
            entries = await self._client.execute_command(
                "XRANGE", self._events, start, "+", "COUNT", ENTRIES
            )
            if entries:
                yield [raw for entry_id, fields in entries for raw in raw_of(entry_id, fields)]
                start = "(" + entries[-1][0].decode()
            if len(entries) < ENTRIES:
                return

    async def progress(self) -> Progress:
        """How far the ledger's consumers are, together."""
        try:
            groups = await self._client.xinfo_groups(self._events)
        except Exception as error:
            if "no such key" in str(error):
                return Progress(0, exists=False, pending=0)
            raise
        for group in groups:
            if group["name"] == GROUP.encode():
                break
        else:
            return Progress(0, exists=False, pending=0)
        applied = _seq(group["last-delivered-id"])
        pending = await self._client.xpending(self._events, GROUP)
        if pending["pending"]:
            oldest = pending["min"]
            entries = await self._client.execute_command("XRANGE", self._events, oldest, oldest)
            events = len(entries[0][1]) // 2 if entries else 1
            applied = min(applied, _seq(oldest) - events)
        elif applied == 0:
            # A group that has read nothing yet needs nothing of what is gone from the stream.
            entries = await self._client.execute_command(
                "XRANGE", self._events, "-", "+", "COUNT", 1
            )
            if entries:
                applied = raw_of(*entries[0])[0].seq - 1
        return Progress(applied, exists=True, pending=pending["pending"])

    async def consumers(self) -> list[tuple[str, int, int]]:
        """Of the ledger's consumers that hold entries: name, entries, ms since they last asked."""
        found = await self._client.xinfo_consumers(self._events, GROUP)
        return [
            (_text(one["name"]), one["pending"], one["idle"]) for one in found if one["pending"]
        ]

    async def letters(self) -> dict[int, tuple[str, str]]:
        """The ledger's dead letters: by seq, subject and cause. Fields that name no event are told
        as one, with seq 0."""
        found: dict[int, tuple[str, str]] = {}
        nameless, key, cursor = set[str](), group_keys(self._sale, GROUP).dead, 0
        while True:
            cursor, part = await self._client.hscan(key, cursor, count=PART)
            for field, text in part.items():
                number, _, subject = _text(field).partition(":")
                if number.isdecimal() and subject:
                    found[int(number)] = (subject, _cause(text, f"{key} {_text(field)}"))
                else:
                    nameless.add(_text(field)[:60])
            if cursor == 0:
                break
        if nameless:
            named = ", ".join(sorted(nameless)[:8])
            found[0] = ("", f"no letters, take them out ({len(nameless)}): HDEL {key} {named}")
        return found


class LedgerSide:
    """One sale in the ledger. Raises LedgerUnavailable and LedgerRefused."""

    def __init__(self, ledger: Ledger, sale: str) -> None:
        self.ledger = ledger
        self.sale = sale

    async def row(self) -> dict[str, Any] | None:
        """The sale's row."""
        try:
            return await self.ledger.sale(self.sale)
        except UnknownSale:
            return None

    async def items(self) -> dict[int, dict[str, Any]]:
        """The items' rows by position."""
        found = await self._all(select(ITEMS).where(ITEMS.c.sale == self.sale))
        return {row["position"]: row for row in found}

    async def events(self, first: int, last: int) -> list[dict[str, Any]]:
        """The rows of up to ``PART`` events between these seqs, in order."""
        return await self._all(
            select(EVENTS)
            .where(EVENTS.c.sale == self.sale, EVENTS.c.seq.between(first, last))
            .order_by(EVENTS.c.seq)
            .limit(PART)
        )

    async def sale_events(self, after: int) -> list[dict[str, Any]]:
        """The rows of all events of the sale itself after this seq."""
        mine = (EVENTS.c.sale == self.sale, EVENTS.c.subject == SALE_SUBJECT)
        return await self._all(select(EVENTS).where(*mine, EVENTS.c.seq > after))

    async def has_orders_without_events(self) -> bool:
        """Whether there are more orders than any event tells of."""
        named = func.count(EVENTS.c.subject.distinct())
        mine = (EVENTS.c.sale == self.sale, EVENTS.c.subject != SALE_SUBJECT)
        # In this order, because both only grow.
        orders = select(func.count().label("n")).where(ORDERS.c.sale == self.sale)
        [of_rows] = await self._all(orders)
        [of_events] = await self._all(select(named.label("n")).where(*mine))
        return bool(of_rows["n"] > of_events["n"])

    async def count(self, first: int, last: int) -> int:
        """How many events are there between these seqs."""
        query = select(func.count()).where(
            EVENTS.c.sale == self.sale, EVENTS.c.seq.between(first, last)
        )
        with our_errors():
            async with self.ledger.engine.connect() as connection:
                return int(await connection.scalar(query) or 0)

    async def rows(self, orders: Collection[str]) -> dict[str, dict[str, Any]]:
        """The rows of those of these orders that are there."""
        found: dict[str, dict[str, Any]] = {}
        for part in _parts(list(orders)):
            among = self._among(ORDERS.c.id, part)
            query = select(ORDERS).where(ORDERS.c.sale == self.sale, among)
            found |= {row["id"]: row for row in await self._all(query)}
        return found

    async def records(self, orders: Collection[str]) -> dict[str, str]:
        """The records of those of these orders that are there, as their rows hold them."""
        found: dict[str, str] = {}
        columns = (ORDERS.c.id, ORDERS.c.record)
        for part in _parts(list(orders)):
            among = self._among(ORDERS.c.id, part)
            query = select(*columns).where(ORDERS.c.sale == self.sale, among)
            with our_errors():
                async with self.ledger.engine.connect() as connection:
                    found |= {row[0]: row[1] for row in await connection.execute(query)}
        return found

    async def ids(self) -> AsyncIterator[list[str]]:
        """The orders' ids in order, ``PART`` at a time."""
        after = ""
        while True:
            found = await self._all(
                select(ORDERS.c.id)
                .where(ORDERS.c.sale == self.sale, ORDERS.c.id > after)
                .order_by(ORDERS.c.id)
                .limit(PART)
            )
            if found:
                yield [row["id"] for row in found]
                after = found[-1]["id"]
            if len(found) < PART:
                return

    async def history(self, orders: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """The events' rows of some orders, in order. No index leads to them, so this reads all of
        the sale's events."""
        found: dict[str, list[dict[str, Any]]] = {}
        for part in _parts(list(orders)):
            query = (
                select(EVENTS)
                .where(EVENTS.c.sale == self.sale, self._among(EVENTS.c.subject, part))
                .order_by(EVENTS.c.seq)
            )
            for row in await self._all(query):
                found.setdefault(row["subject"], []).append(row)
        return found

    async def _all(self, query: Any) -> list[dict[str, Any]]:
        with our_errors():
            async with self.ledger.engine.connect() as connection:
                found = await connection.execute(query)
                names = list(found.keys())
                return [dict(zip(names, row, strict=True)) for row in found]

    def _among(self, column: Column[str], values: Sequence[str]) -> ColumnElement[bool]:
        """``column IN values``; PostgreSQL takes an array for it, which it need not parse."""
        if self.ledger.engine.dialect.name == "postgresql":
            return column == any_(cast(values, ARRAY(String)))
        return column.in_(values)


def _picture(fields: dict[str, str], stock: dict[bytes, bytes], orders: int) -> Picture:
    sale = Sale.from_definition(fields["definition"].encode())
    return Picture(
        seq=int(fields["seq"]),
        last_ms=int(fields["last_ms"]),
        state=fields["state"],
        reason=fields.get("reason", ""),
        known=Known(sale, int(fields["origin_ms"]), fields["made"]),
        trimmed_seq=int(fields.get("trimmed_seq", 0)),
        settings={name: fields.get(name, "") for name in SETTINGS},
        changes={
            name.removeprefix("stock:"): value
            for name, value in fields.items()
            if name.startswith("stock:")
        },
        stock={name.decode(): int(value) for name, value in stock.items()},
        orders=orders,
    )


def _cause(letter: bytes, where: str) -> str:
    try:
        return str(msgspec.json.decode(letter, type=dict).get("cause", ""))
    except (ValueError, RecursionError):
        return f"the letter can't be read, take it out: HDEL {where}"


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + PART] for start in range(0, len(names), PART)]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _seq(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[2])
