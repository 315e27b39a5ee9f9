"""The other witnesses of a sale: the ledger's rows, and the logs of those who consume its events.

A consumer's log has a JSON line for each event, before it is acknowledged:

    {"group": "mall", "consumer": "c-1", "t": 81.2, "seq": 7, "subject": "00…",
     "kind": "order_held", "version": 1}

The same event may be seen twice and by two, as when a consumer was killed. A log that was cut is
read as far as it has whole lines.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.faults.checker_report import broken
from tests.faults.observed import Observed, SeenEvent, SeenOrder, read_event, read_record

__all__ = [
    "LedgerOrder",
    "SeenLedger",
    "Sighting",
    "all_events",
    "consumer_problems",
    "ledger_problems",
    "read_ledger",
    "read_sightings",
]

LEDGER_GROUP: Final = "ledger"
EVENTS_QUERY: Final = (
    "SELECT seq, at_ms, subject, kind, body FROM seckill_events WHERE sale = {} ORDER BY seq"
)
ORDERS_QUERY: Final = "SELECT id, version, record FROM seckill_orders WHERE sale = {}"
# The ledger's words for events, where they are not the stream's with "order_" or "sale_" before
# them.
OWN_WORDS: Final = {"stock_changed": "stock", "refund_due": "refund_due"}


class LedgerOrder(msgspec.Struct):
    """One row of the ledger's orders."""

    version: int
    record: SeenOrder


class SeenLedger(msgspec.Struct):
    """What the ledger has of one sale."""

    events: list[SeenEvent]
    orders: dict[str, LedgerOrder]


class Sighting(msgspec.Struct, frozen=True):
    """One event that a consumer has seen. ``version`` is 0 for an event of the sale."""

    group: str
    consumer: str
    seq: int
    subject: str
    kind: str
    version: int


async def read_ledger(url: str, sale: str) -> SeenLedger:
    """Reads a ledger in SQLite or PostgreSQL with their own drivers."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            events = connection.execute(EVENTS_QUERY.format("?"), (sale,)).fetchall()
            orders = connection.execute(ORDERS_QUERY.format("?"), (sale,)).fetchall()
        return _ledger_of(events, orders)
    if not url.startswith("postgresql://"):
        raise ValueError(f"the checker reads no ledger at {url.partition(':')[0]}")
    import asyncpg  # type: ignore[import-untyped]

    database = await asyncpg.connect(url)
    try:
        # The events first: the orders' rows are written with them, and so never older.
        events = await database.fetch(EVENTS_QUERY.format("$1"), sale)
        orders = await database.fetch(ORDERS_QUERY.format("$1"), sale)
    finally:
        await database.close()
    return _ledger_of(events, orders)


def _ledger_of(events: Iterable[Any], orders: Iterable[Any]) -> SeenLedger:
    return SeenLedger(
        [
            read_event(seq, at_ms, subject, f"{stream_word(kind)}|{body}")
            for seq, at_ms, subject, kind, body in events
        ],
        {order: LedgerOrder(version, read_record(record)) for order, version, record in orders},
    )


def stream_word(kind: str) -> str:
    """What the stream calls an event that has this kind elsewhere."""
    return OWN_WORDS.get(kind) or kind.removeprefix("order_").removeprefix("sale_")


def read_sightings(logs: Iterable[Path]) -> list[Sighting]:
    """What the consumers have written down. Raises ValueError for a line that none has written."""
    found = []
    for log in logs:
        data = log.read_bytes()
        found += [
            msgspec.json.decode(line, type=Sighting)
            for line in data[: data.rfind(b"\n") + 1].splitlines()
        ]
    return found


def all_events(seen: Observed, ledger: SeenLedger | None) -> list[SeenEvent] | None:
    """Every event of the sale: what is not in the stream any more comes from the ledger. None where
    nobody has them."""
    first = seen.events[0].seq if seen.events else seen.seq + 1
    rebuilt = bool(seen.events) and seen.events[0].kind == "rebuilt"
    if first == 1 or not (rebuilt or seen.trimmed_seq >= first - 1):
        return seen.events  # Whole, or damaged, which the replay finds.
    if ledger is None:
        return None
    return [*(event for event in ledger.events if event.seq < first), *seen.events]


def ledger_problems(ledger: SeenLedger, seen: Observed, events: list[SeenEvent]) -> Iterator[str]:
    """Where the ledger tells another story than the stream, of what both have."""
    there = {event.seq: event for event in events}
    theirs = {event.seq for event in ledger.events}
    newest: dict[str, int] = {}
    for event in ledger.events:
        ours = there.get(event.seq)
        if event.seq > seen.seq:
            said = f"the ledger has event {event.seq} ({event.kind} of {event.subject})"
            yield broken("lost", f"{said} and the server ends at {seen.seq}")
        elif ours is None or (ours.at_ms, ours.subject, ours.text) != (
            event.at_ms,
            event.subject,
            event.text,
        ):
            said = f"event {event.seq} ({event.kind} of {event.subject}) is {event.text!r} in the"
            yield broken("ledger", f"{said} ledger and {ours.text if ours else None!r} elsewhere")
        if event.record is not None:
            newest[event.subject] = max(newest.get(event.subject, 0), event.record.version)
    for seq in sorted(seen.acked.get(LEDGER_GROUP, set()) - theirs):
        yield broken("ledger", f"event {seq} is acknowledged by the ledger, which does not have it")
    yield from _row_problems(ledger, seen, events, newest)


def _row_problems(
    ledger: SeenLedger, seen: Observed, events: list[SeenEvent], newest: dict[str, int]
) -> Iterator[str]:
    # Events that only the ledger has are told of as lost, and its rows are right to follow them.
    lost = [event for event in ledger.events if event.seq > seen.seq]
    told = {
        (event.subject, event.record.version): event.record
        for event in (*events, *lost)
        if event.record is not None
    }
    last = {order: record.version for order, record in seen.orders.items()}
    for order_id in newest.keys() - ledger.orders.keys():
        yield broken("ledger", f"order {order_id} has events in the ledger and no row")
    for order_id, row in ledger.orders.items():
        if row.version < newest.get(order_id, 0):
            said = f"the ledger's row of order {order_id} has version {row.version}"
            yield broken("version", f"{said}, and its events go up to {newest[order_id]}")
        elif row.version > max(last.get(order_id, 0), newest.get(order_id, 0)):
            said = f"the ledger has order {order_id} in version {row.version}"
            yield broken("lost", f"{said}, and the server only in {last.get(order_id, 0)}")
        elif row.record.version != row.version or row.record != told.get((order_id, row.version)):
            said = f"order {order_id} is {row.record} in the ledger's row"
            yield broken("ledger", f"{said}, and not so in event of version {row.version}")


def consumer_problems(
    sightings: list[Sighting], seen: Observed, events: list[SeenEvent]
) -> Iterator[str]:
    """Where consumers have seen something else than the stream has, or a group has let an event go
    that none of its consumers has seen."""
    there = {event.seq: event for event in events}
    known: dict[str, set[int]] = {}
    for sighting in sightings:
        known.setdefault(sighting.group, set()).add(sighting.seq)
        said = f"{sighting.consumer} of {sighting.group} has seen event {sighting.seq}"
        said = f"{said} ({sighting.kind} of {sighting.subject}, version {sighting.version})"
        if sighting.seq > seen.seq:
            yield broken("lost", f"{said} and the server ends at {seen.seq}")
            continue
        event = there.get(sighting.seq)
        version = event.record.version if event and event.record else 0
        if event is None or (event.subject, event.kind, version) != (
            sighting.subject,
            stream_word(sighting.kind),
            sighting.version,
        ):
            yield broken("consumer", f"{said}, which is not in the stream")
    for group, done in known.items():
        for seq in sorted(seen.acked.get(group, set()) - done):
            yield broken("consumer", f"event {seq} is acknowledged by {group} and nobody saw it")
