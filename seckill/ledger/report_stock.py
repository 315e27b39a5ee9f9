"""What happened to a sale's stock, told by its events in the order of their seq.

A unit that came back and is ordered again counts as resold. Units are all alike, so which of them
an order gets is a matter of counting: those that nobody had yet go first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

import msgspec

from seckill.order import read_cart
from seckill.sale import Item, Sale
from seckill.stream import EventKind

__all__ = ["Bucket", "SkuReport", "StockStory"]

CARTS_MAX: Final = 10_000
FIRST_SECONDS: Final = 60


class Bucket(msgspec.Struct):
    """Units ordered and units paid for in the stretch of time that begins at ``at_ms``."""

    at_ms: int
    held: int = 0
    confirmed: int = 0


class SkuReport(msgspec.Struct, frozen=True, kw_only=True):
    """One SKU: units and fen, as in Report. ``sold + held + unsold == total``.

    ``sold_out_after_ms`` is when none was available for the first time, from the sale's beginning
    on, None if there always were some; ``sold_out_ms`` how long that was so, all together.
    """

    sku: str
    title: str
    price_fen: int
    total: int
    sold: int
    refunded: int
    held: int
    unsold: int
    came_back: int
    resold: int
    gross_fen: int
    refunded_fen: int
    net_fen: int
    sold_out_after_ms: int | None
    sold_out_ms: int


class _Units:
    """The units of one SKU as they are now, and what has become of them."""

    __slots__ = (
        *("back", "came_back", "empty_since_ms", "ends_ms", "first_empty_ms", "fresh", "held"),
        *("item", "paid", "refunded", "resold", "sold_out_ms", "total"),
    )

    def __init__(self, item: Item, ends_ms: int) -> None:
        self.item = item
        # Nobody misses what is gone after the sale.
        self.ends_ms = ends_ms
        self.total = self.fresh = item.total
        self.back = self.held = self.paid = self.refunded = self.came_back = self.resold = 0
        self.first_empty_ms: int | None = None
        # None: there are some, or there never were any.
        self.empty_since_ms: int | None = None
        self.sold_out_ms = 0

    @property
    def available(self) -> int:
        return self.fresh + self.back

    def take(self, count: int, at_ms: int) -> None:
        again = max(0, count - max(0, self.fresh))
        self.fresh -= count - again
        self.back -= again
        self.resold += again
        self._look(at_ms)

    def give_back(self, count: int, at_ms: int) -> None:
        self.back += count
        self.came_back += count
        self._look(at_ms)

    def change(self, count: int, at_ms: int) -> None:
        """Units were added, or taken away unsold."""
        self.total += count
        from_back = max(0, -count - max(0, self.fresh))
        self.fresh += count + from_back
        self.back -= from_back
        self._look(at_ms)

    def _look(self, at_ms: int) -> None:
        """Whether it is sold out, after a change."""
        if self.available > 0:
            self.sold_out_ms += self.empty_ms(at_ms)
            self.empty_since_ms = None
        elif self.empty_since_ms is None:
            self.empty_since_ms = at_ms
            if self.first_empty_ms is None:
                self.first_empty_ms = at_ms

    def empty_ms(self, until_ms: int) -> int:
        """For how long it has been sold out this time."""
        if self.empty_since_ms is None:
            return 0
        return max(0, min(until_ms, self.ends_ms) - self.empty_since_ms)


class StockStory:
    """Feed it the events of one sale in the order of their seq, then ask.

    ``late`` are the orders that were paid after they had expired, whose units are sold anew.
    """

    def __init__(self, sale: Sale, late: Collection[str], bucket_ms: int) -> None:
        self.bucket_ms = bucket_ms
        self.began_ms = 0
        self.due_back_payments = 0
        self.due_back_fen = 0
        self.first_minute = [0] * FIRST_SECONDS
        self._sale = sale
        self._late = late
        self._units = [_Units(item, sale.ends_ms) for item in sale.items]
        self._carts: dict[str, _Cart] = {}
        self._buckets: dict[int, Bucket] = {}
        self._all_gone_ms: int | None = None

    def feed(self, at_ms: int, kind: str, subject: str, body: str) -> None:
        """One event, as a row of seckill_events has it."""
        order_event = _ORDER_EVENTS.get(kind)
        if order_event is None:
            self._feed_sale(at_ms, kind, body)
            return
        detail, _, cart, _ = body.split("|", 3)
        lines = self._carts.get(cart)
        if lines is None:
            if len(self._carts) >= CARTS_MAX:
                self._carts.clear()
            lines = self._carts[cart] = _Cart(self._units, cart)
        order_event(self, at_ms, subject, detail, lines)

    def _feed_sale(self, at_ms: int, kind: str, body: str) -> None:
        if kind == EventKind.SALE_OPENED:
            self.began_ms = max(at_ms, self._sale.opens_ms)
            for units in self._units:
                if units.empty_since_ms is not None:
                    units.empty_since_ms = max(units.empty_since_ms, self.began_ms)
        elif kind == EventKind.SALE_CLOSED:
            for units in self._units:
                units.ends_ms = min(units.ends_ms, at_ms)
        elif kind == EventKind.STOCK_CHANGED:
            _, index, change, _ = body.rsplit("|", 3)
            # Nothing is sold out before the sale has begun.
            self._units[int(index)].change(int(change), max(at_ms, self._sale.opens_ms))

    def _held(self, at_ms: int, order: str, detail: str, cart: _Cart) -> None:
        for units, count in cart.lines:
            units.held += count
        self._take(at_ms, cart)
        self._bucket(at_ms).held += cart.units
        second = (at_ms - self.began_ms) // 1_000
        if 0 <= second < FIRST_SECONDS:
            self.first_minute[second] += cart.units

    def _confirmed(self, at_ms: int, order: str, detail: str, cart: _Cart) -> None:
        late = order in self._late
        for units, count in cart.lines:
            units.paid += count
            if not late:
                units.held -= count
        if late:
            self._take(at_ms, cart)
        self._bucket(at_ms).confirmed += cart.units

    def _back(self, at_ms: int, order: str, detail: str, cart: _Cart) -> None:
        for units, count in cart.lines:
            units.held -= count
            units.give_back(count, at_ms)

    def _refunded(self, at_ms: int, order: str, detail: str, cart: _Cart) -> None:
        _, units_return, _ = detail.split(",")
        for units, count in cart.lines:
            units.refunded += count
            if units_return == "1":
                units.give_back(count, at_ms)
            else:
                units.total -= count

    def _due(self, at_ms: int, order: str, detail: str, cart: _Cart) -> None:
        self.due_back_payments += 1
        self.due_back_fen += cart.amount_fen

    def _take(self, at_ms: int, cart: _Cart) -> None:
        for units, count in cart.lines:
            units.take(count, at_ms)
        if self._all_gone_ms is None and not any(each.available for each in self._units):
            self._all_gone_ms = at_ms

    def _bucket(self, at_ms: int) -> Bucket:
        start_ms = at_ms - at_ms % self.bucket_ms
        bucket = self._buckets.get(start_ms)
        if bucket is None:
            bucket = self._buckets[start_ms] = Bucket(start_ms)
        return bucket

    @property
    def sold_out_after_ms(self) -> int | None:
        """When everything was gone for the first time, from the beginning on."""
        return self._after(self._all_gone_ms)

    def _after(self, at_ms: int | None) -> int | None:
        return None if at_ms is None else max(0, at_ms - self.began_ms)

    def curve(self) -> list[Bucket]:
        """The buckets in which something happened, in the order of time."""
        return [self._buckets[start_ms] for start_ms in sorted(self._buckets)]

    def skus(self, as_of_ms: int) -> list[SkuReport]:
        """The SKUs in the merchant's order. What is sold out counts as that until the sale ended,
        or until ``as_of_ms`` if that is sooner."""
        return list(self._skus(as_of_ms))

    def _skus(self, as_of_ms: int) -> Iterator[SkuReport]:
        for units in self._units:
            item, sold_out_ms = units.item, units.sold_out_ms + units.empty_ms(as_of_ms)
            gross_fen, refunded_fen = (n * item.price_fen for n in (units.paid, units.refunded))
            yield SkuReport(
                sku=item.sku,
                title=item.title,
                price_fen=item.price_fen,
                total=units.total,
                sold=units.paid - units.refunded,
                refunded=units.refunded,
                held=units.held,
                unsold=units.available,
                came_back=units.came_back,
                resold=units.resold,
                gross_fen=gross_fen,
                refunded_fen=refunded_fen,
                net_fen=gross_fen - refunded_fen,
                sold_out_after_ms=self._after(units.first_empty_ms),
                sold_out_ms=sold_out_ms,
            )


class _Cart:
    """What a cart's text means; most carts of a sale are alike."""

    __slots__ = ("amount_fen", "lines", "units")

    def __init__(self, units: list[_Units], text: str) -> None:
        self.lines = [(units[index], count) for index, count in read_cart(text).items()]
        self.units = sum(count for _, count in self.lines)
        self.amount_fen = sum(each.item.price_fen * count for each, count in self.lines)


_OrderEvent = Callable[[StockStory, int, str, str, _Cart], None]
_ORDER_EVENTS: Final[dict[str, _OrderEvent]] = {
    str(EventKind.HELD): StockStory._held,
    str(EventKind.CONFIRMED): StockStory._confirmed,
    str(EventKind.RELEASED): StockStory._back,
    str(EventKind.EXPIRED): StockStory._back,
    str(EventKind.REFUNDED): StockStory._refunded,
    str(EventKind.REFUND_DUE): StockStory._due,
}
