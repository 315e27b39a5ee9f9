"""What the orders of a sale leave behind: its stock, its buyers' purses, its deadline queues.

An order's last record says it all, whatever had happened before:

    held, paying     held           the buyer has the units
    confirmed        confirmed      the buyer has the units
    refunded         available, or out of the total; the buyer has them unless the limit came back
    released         available
    expired          available      one lapse of the buyer
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from seckill.order import read_cart

__all__ = ["Purses"]


class Purses:
    """``add`` takes each order once, in any order."""

    def __init__(self) -> None:
        self.orders = 0
        self.units: dict[str, defaultdict[int, int]] = {
            name: defaultdict(int) for name in ("held", "confirmed", "gone")
        }
        self._texts: dict[str, str] = {}
        self._several: dict[str, tuple[defaultdict[int, int], list[int]]] = {}
        self._queues: dict[str, list[tuple[int, str]]] = {"h": [], "p": []}
        self._carts: dict[str, dict[int, int]] = {}

    def add(self, order: str, record: str) -> None:
        """One order by its record, see lua/lib/record.lua. Raises LookupError or ValueError for a
        damaged one."""
        head, cart, buyer, *more = record.split("|")
        state = head[0]
        units = self._carts.get(cart)
        if units is None:
            units = self._carts[cart] = read_cart(cart)
        owns, lapses = True, 0
        if state in "hp":
            self._queues[state].append((int(head[8:]), order))
            self._count("held", units)
        elif state == "c":
            self._count("confirmed", units)
        elif state == "f":
            _, returned, limit = more[1].rsplit(",", 2)
            owns = limit != "1"
            if returned != "1":
                self._count("gone", units)
        else:
            owns, lapses = False, int(state == "x")
        self.orders += 1
        self._give(buyer, cart if owns else "", units if owns else {}, lapses)

    def _count(self, name: str, units: dict[int, int]) -> None:
        counts = self.units[name]
        for index, count in units.items():
            counts[index] += count

    def _give(self, buyer: str, cart: str, units: dict[int, int], lapses: int) -> None:
        # Most buyers have one order, and then the text of its cart is that of their purse.
        first = self._texts.get(buyer)
        if first is None:
            self._texts[buyer] = f"{cart}!{lapses}" if lapses else cart
            return
        several = self._several.get(buyer)
        if several is None:
            body, _, lapsed = first.partition("!")
            several = (defaultdict(int, read_cart(body)), [int(lapsed or 0)])
            self._several[buyer] = several
        for index, count in units.items():
            several[0][index] += count
        several[1][0] += lapses

    def buyers(self) -> Iterator[tuple[str, str]]:
        """Each buyer and what the buyers hash holds of him, see lua/lib/units.lua."""
        for buyer, text in self._texts.items():
            several = self._several.get(buyer)
            if several is not None:
                counts, (lapses,) = several
                lines = [
                    str(index) if counts[index] == 1 else f"{index}:{counts[index]}"
                    for index in sorted(counts)
                ]
                text = ",".join(lines) + (f"!{lapses}" if lapses else "")
            yield buyer, text

    def queue(self, state: str) -> list[str]:
        """The ids of the held ("h") or paying ("p") orders, by their deadlines."""
        return [order for _, order in sorted(self._queues[state])]

    def longest_ms(self) -> int:
        """The last deadline of all, as records have it; 0 where nothing is held."""
        return max((ms for queue in self._queues.values() for ms, _ in queue), default=0)
