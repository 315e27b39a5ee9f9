"""Stock: what Redis counts against what its own orders hold, exact although the sale goes on.

The orders are counted while they are scanned, which takes a while. Those that changed meanwhile are
known from the events of that time, and counted as their last event before the second picture left
them. For that a scan remembers 16 bytes an order.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Final

from seckill.ledger.drift import Drift, DriftKind
from seckill.ledger.reconcile_sides import Picture, RedisSide
from seckill.order import read_cart
from seckill.stream import SALE_SUBJECT

__all__ = ["OrderCount", "compare_stock"]

# Events that may happen during a scan; a sale that is faster is scanned again by itself, which is
# a matter of seconds.
WINDOW_MAX: Final = 100_000
ROUNDS: Final = 3
_BITS: Final = (1 << 64) - 1
# What an order's units are in, by the first letter of its record.
_HOLDS: Final = {"h": "held", "p": "held", "c": "confirmed"}

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


async def compare_stock(redis: RedisSide, start: Picture, count: OrderCount) -> list[Drift] | None:
    """Where the stock differs from the orders counted since ``start``. None: could not be told."""
    found: list[Drift] | None = None
    for again in range(ROUNDS):
        if again:
            picture = await redis.picture()
            if picture is None:
                return None
            start, count = picture, OrderCount()
            async for records in redis.scan():
                count.feed(records)
        before, found = found, await _compare(redis, start, count)
        # A difference is believed when it is seen twice.
        if found == [] or (found is not None and found == before):
            break
    return found


async def _compare(redis: RedisSide, start: Picture, count: OrderCount) -> list[Drift] | None:
    end = await redis.picture()
    if end is None or end.known != start.known or end.seq - start.seq > WINDOW_MAX:
        return None
    changed = await _changed(redis, start, end)
    if changed is None:
        return None
    return _differences(end, count.uses(changed, end.orders))


async def _changed(redis: RedisSide, start: Picture, end: Picture) -> dict[str, str] | None:
    """The orders that changed between two pictures, as the second has them. None: the stream does
    not have all of these events."""
    changed: dict[str, str] = {}
    at = start.seq
    if at == end.seq:
        return changed
    async for raws in redis.events(start.after):
        for raw in raws:
            if raw.seq > end.seq:
                break
            if raw.seq != at + 1:
                return None
            at = raw.seq
            if raw.subject != SALE_SUBJECT:
                word, _, record = raw.value.split("|", 2)
                # A new order's record has three parts, and its attrs follow, bars and all.
                parts = 3 if word == "held" else 5
                changed[raw.subject] = "|".join(record.split("|", parts)[:parts])
        if at == end.seq:
            return changed
    return None


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


def _differences(end: Picture, uses: Counter[_Use]) -> list[Drift]:
    units: dict[str, Counter[int]] = {"held": Counter(), "confirmed": Counter(), "gone": Counter()}
    for (where, cart), count in uses.items():
        if where:
            for index, quantity in read_cart(cart).items():
                units[where][index] += quantity * count
    found = []
    for index, item in enumerate(end.known.sale.items):
        held, confirmed = units["held"][index], units["confirmed"][index]
        total = item.total + end.changes.get(index, 0) - units["gone"][index]
        there = {
            name: end.stock.get(f"{index}:{name}")
            for name in ("available", "held", "confirmed", "total")
        }
        if there["total"] != total:
            text = f"Redis: {_shown(there['total'])}; {item.total:,} at first, "
            text += f"{end.changes.get(index, 0):+,} by stock changes, "
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
