"""Stock: what Redis counts against what its own orders hold, exact although the sale goes on.

The orders are counted while they are scanned, which takes a while. Those that changed meanwhile are
known from the events of that time, and counted as their last event before the second picture left
them. For that a scan remembers 16 bytes an order.

What the totals must be is not taken from Redis: it follows from the sale's definition, the events
of its changes of stock and its orders. The settings that never change are compared here as well.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Final

from seckill.ledger.drift import Drift, DriftKind
from seckill.ledger.reconcile_sides import Picture, RedisSide
from seckill.ledger.rows import Known, Raw
from seckill.order import read_cart
from seckill.sale import Sale
from seckill.stream import SALE_SUBJECT

__all__ = ["OrderCount", "StockChanges", "changed_orders", "compare_stock"]

# Events that may happen during a scan; a sale that is faster is scanned again by itself, which is
# a matter of seconds.
WINDOW_MAX: Final = 100_000
ROUNDS: Final = 3
_BITS: Final = (1 << 64) - 1
# What an order's units are in, by the first letter of its record.
_HOLDS: Final = {"h": "held", "p": "held", "c": "confirmed"}

_CHANGE: Final = re.compile(r"\d+:-?\d+").fullmatch
_CART: Final = re.compile(r"\d+(:\d+)?(,\d+(:\d+)?)*").fullmatch

_Use = tuple[str, str]


class OrderCount:
    """What the orders of a scan hold: a kind of use and a cart for each."""

    def __init__(self) -> None:
        self._names = array("Q")
        self._uses = array("L")
        self._numbers: dict[_Use, int] = {}

    def feed(self, records: Mapping[str, str]) -> None:
        """Counts some orders."""
        for order, record in records.items():
            use = _use(record)
            self._names.append(hash(order) & _BITS)
            self._uses.append(self._numbers.setdefault(use, len(self._numbers)))

    def uses(self, changed: Mapping[str, str], orders: int) -> Counter[_Use]:
        """How many orders there are of each use, with ``changed`` as they are there. ``orders`` is
        how many there should be in all: a scan may show one twice."""
        new = {hash(order) & _BITS: _use(record) for order, record in changed.items()}
        counts: Counter[int] = Counter()
        pairs = zip(self._names, self._uses, strict=True)
        counts.update(number for name, number in pairs if name not in new)
        if counts.total() + len(new) != orders:
            once = dict(zip(self._names, self._uses, strict=True))
            counts = Counter(number for name, number in once.items() if name not in new)
        uses = {number: use for use, number in self._numbers.items()}
        found: Counter[_Use] = Counter({uses[number]: count for number, count in counts.items()})
        found.update(new.values())
        return found


class StockChanges:
    """The changes of stock by their keys, as ``index:units``, by the sale's events.

    ``known`` are those up to event ``seq``; later events are in the stream from ``after`` on.
    """

    def __init__(self, known: Mapping[str, str], seq: int, after: str) -> None:
        self._known = dict(known)
        self._seq = seq
        self._after = after

    async def upto(self, redis: RedisSide, end: Picture) -> dict[str, str] | None:
        """Those up to a picture that is later than any before. None: the stream does not tell."""
        if self._seq >= end.seq:
            return self._known
        async for raw in _window(redis, self._after, self._seq, end.seq):
            if raw is None:
                return None
            if raw.subject == SALE_SUBJECT and raw.value.startswith("stock|"):
                key, index, units, _ = raw.value.removeprefix("stock|").rsplit("|", 3)
                self._known[key] = f"{index}:{units}"
        self._seq, self._after = end.seq, end.after
        return self._known


async def compare_stock(
    redis: RedisSide,
    known: Known,
    start: Picture,
    count: OrderCount,
    changes: StockChanges | None = None,
) -> list[Drift] | None:
    """Where stock and settings differ from the sale as it was created, the ``changes`` of its stock
    (None: believe the header's) and the orders counted since ``start``. None: could not be told."""
    found: list[Drift] | None = None
    for again in range(ROUNDS):
        if again:
            picture = await redis.picture()
            if picture is None:
                return None
            start, count = picture, OrderCount()
            async for records in redis.scan():
                count.feed(records)
        before, found = found, await _compare(redis, known, start, count, changes)
        # A difference is believed when it is seen twice.
        if found == [] or (found is not None and found == before):
            break
    return found


async def _compare(
    redis: RedisSide, known: Known, start: Picture, count: OrderCount, changes: StockChanges | None
) -> list[Drift] | None:
    end = await redis.picture()
    if end is None or end.known != start.known or end.seq - start.seq > WINDOW_MAX:
        return None
    changed = await changed_orders(redis, start, end.seq)
    if changed is None:
        return None
    told = await changes.upto(redis, end) if changes else None
    if told is None:
        told = end.changes
    differing = _settings_differ(known, end, told)
    return differing + _differences(known.sale, end, told, count.uses(changed, end.orders))


async def changed_orders(redis: RedisSide, start: Picture, seq: int) -> dict[str, str] | None:
    """The orders that changed between a picture and a later event, as that left them. None: the
    stream does not have all of these events."""
    changed: dict[str, str] = {}
    async for raw in _window(redis, start.after, start.seq, seq):
        if raw is None:
            return None
        if raw.subject != SALE_SUBJECT:
            word, _, record = raw.value.split("|", 2)
            # A new order's record has three parts, and its attrs follow, bars and all.
            parts = 3 if word == "held" else 5
            changed[raw.subject] = "|".join(record.split("|", parts)[:parts])
    return changed


async def _window(redis: RedisSide, after: str, first: int, last: int) -> AsyncIterator[Raw | None]:
    """The events after ``first`` through ``last``, which begin at an entry; ends with None where
    the stream lacks one."""
    at = first
    if at >= last:
        return
    async for raws in redis.events(after):
        for raw in raws:
            if raw.seq <= first:
                continue
            if raw.seq != at + 1:
                yield None
                return
            yield raw
            at = raw.seq
            if at == last:
                return
    yield None


def _use(record: str) -> _Use:
    """What a record's units are in; "gone" is out of the sale."""
    parts = record.split("|")
    if len(parts) < 3:
        return "", ""
    if not _CART(parts[1]):
        return "", ""
    if record[0] == "f":
        _, _, choices = parts[-1].partition(",")
        return ("gone", parts[1]) if choices.startswith("0") else ("", "")
    where = _HOLDS.get(record[0], "")
    return where, parts[1] if where else ""


def _settings_differ(known: Known, end: Picture, changes: Mapping[str, str]) -> list[Drift]:
    sale = known.sale
    right = {
        "origin_ms": known.origin_ms,
        "definition_id": sale.definition_id,
        "opens_ms": sale.opens_ms,
        "ends_ms": sale.ends_ms,
        "hold_ms": sale.hold_ms,
        "pay_ms": sale.pay_ms,
        "limit_per_order": sale.limit_per_order,
        "limit_per_buyer": sale.limit_per_buyer,
        "max_lapsed": sale.max_lapsed,
    }
    texts = [
        f"{name}: Redis {end.settings[name][:80]!r}, it was created with {str(value)[:80]!r}"
        for name, value in right.items()
        if end.settings[name] != str(value)
    ]
    if end.known.sale != sale:
        texts.append("definition: Redis has another one than the sale was created with")
    texts += [
        f"change of stock {key!r}: Redis {end.changes.get(key, 'nothing')}, by its events"
        f" {changes.get(key, 'nothing')} (index:units)"
        for key in sorted(changes.keys() | end.changes.keys())
        if changes.get(key) != end.changes.get(key)
    ]
    found = [Drift(DriftKind.SETTING_DIFFERS, text) for text in texts]
    for index, item in enumerate(sale.items):
        limit = end.stock.get(f"{index}:limit")
        if limit != item.limit_per_buyer:
            text = f"limit: Redis {_shown(limit)}, it was created with {item.limit_per_buyer:,}"
            found.append(Drift(DriftKind.SETTING_DIFFERS, text, sku=item.sku))
    return found


def _differences(
    sale: Sale, end: Picture, changes: Mapping[str, str], uses: Counter[_Use]
) -> list[Drift]:
    added: Counter[int] = Counter()
    for change in changes.values():
        if _CHANGE(change):
            place, _, number = change.partition(":")
            added[int(place)] += int(number)
    units: dict[str, Counter[int]] = {"held": Counter(), "confirmed": Counter(), "gone": Counter()}
    for (where, cart), count in uses.items():
        if where:
            for index, quantity in read_cart(cart).items():
                units[where][index] += quantity * count
    found = []
    for index, item in enumerate(sale.items):
        held, confirmed = units["held"][index], units["confirmed"][index]
        total = item.total + added[index] - units["gone"][index]
        there = {
            name: end.stock.get(f"{index}:{name}")
            for name in ("available", "held", "confirmed", "total")
        }
        if there["total"] != total:
            text = f"Redis: {_shown(there['total'])}; {item.total:,} at first, "
            text += f"{added[index]:+,} by stock changes, "
            text += f"{-units['gone'][index]:,} by refunds make {total:,}"
            found.append(Drift(DriftKind.TOTAL_DIFFERS, text, sku=item.sku))
        right = {"available": total - held - confirmed, "held": held, "confirmed": confirmed}
        wrong = [name for name, number in right.items() if there[name] != number]
        if there["total"] != total and wrong == ["available"]:
            wrong = _available_wrong(there, held + confirmed)
        if wrong:
            text = "; ".join(
                f"{name}: Redis {_shown(there[name])}, by its orders {right[name]:,}"
                for name in wrong
            )
            found.append(Drift(DriftKind.STOCK_DIFFERS, text, sku=item.sku))
    return found


def _available_wrong(there: dict[str, int | None], taken: int) -> list[str]:
    """A wrong total is one fault: what is available is only wrong if it doesn't fit that either."""
    if None in there.values():
        return ["available"]
    return [] if there["available"] == (there["total"] or 0) - taken else ["available"]


def _shown(number: int | None) -> str:
    return "nothing" if number is None else f"{number:,}"
