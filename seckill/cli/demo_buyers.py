"""How buyers behave: what they ask for, how they ask, and what becomes of the orders they get."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from time import time
from typing import Any, Final

from seckill.cli.demo_messages import ACCEPTED, LoadOrders, Receipt
from seckill.cli.demo_shop import Shop

__all__ = ["Crowd"]

# How the wishes fall on the items, the dearest first: everybody wants the phone.
_WANTED: Final = (34, 22, 16, 14, 14)
# So many buyers keep asking, which is what sells a unit again that comes back.
_PATIENT: Final = 500
_PATIENT_SHARE_MAX: Final = 0.6
_ASK_AGAIN_S: Final = (0.5, 1.3)
_HOPELESS: Final = frozenset({"sku_limit", "buyer_limit", "order_limit", "not_allowed", "ended"})


class Crowd:
    """All buyers. ``waiting`` counts by SKU those who keep asking, ``busy`` the orders whose life
    goes on. From ``settling`` on everybody pays, and ``over`` ends the asking."""

    def __init__(self, shop: Shop, orders: LoadOrders) -> None:
        self._shop = shop
        self._orders = orders
        self._skus = orders.skus
        self._limits = dict(zip(orders.skus, orders.limits, strict=True))
        self._wanted = [_WANTED[min(i, len(_WANTED) - 1)] for i in range(len(orders.skus))]
        self._patience = min(_PATIENT_SHARE_MAX, _PATIENT / orders.buyers)
        self._lives: set[asyncio.Task[None]] = set()
        self.waiting: Counter[str] = Counter()
        self.paid = 0
        self.settling = False
        self.over = asyncio.Event()

    @property
    def busy(self) -> int:
        """Orders whose buyers are not done with them, and buyers who wait."""
        return len(self._lives) - self.waiting.total()

    async def visit(self, number: int, *, early: bool) -> None:
        """One buyer comes and asks, in one of the ways people do."""
        shop, buyer = self._shop, f"u{number:06d}"
        key, items = f"{buyer}-1", self._wish()
        if early:
            shop.mischief.early += 1
            await shop.reserve(buyer, key, items)
            # A refused key may be used again; half a second later the sale has begun.
            await asyncio.sleep(max(0.0, self._orders.opens_ms / 1000 - time()) + 0.02)
        way = random.random()
        if way < 0.10:
            shop.mischief.double_clicks += 1
            codes = await asyncio.gather(*(shop.reserve(buyer, key, items) for _ in range(2)))
            code = next((code for code in codes if code in ACCEPTED), codes[0])
        elif way < 0.14:
            shop.mischief.blind_retries += 1
            await shop.abort(buyer, key, items)
            code = await shop.reserve(buyer, key, items)
        else:
            code = await shop.reserve(buyer, key, items)
        if code in ACCEPTED:
            self._begin(self._live(shop.receipts[buyer, key]))
        elif code in ("sold_out", "insufficient") and random.random() < self._patience:
            self._begin(self._wait(buyer, random.choice(list(items))))

    async def finish(self) -> None:
        """Ends the asking and waits until every order has been lived to its end."""
        self.over.set()
        while self._lives:
            await asyncio.wait(set(self._lives))

    async def probe(self) -> dict[str, str]:
        """What somebody who never had an order is told of each SKU now. Takes nothing."""
        codes = {}
        for sku in self._skus:
            buyer = f"probe-{sku}"[:64]
            codes[sku] = await self._shop.reserve(buyer, "1", {sku: 1})
            receipt = self._shop.receipts.get((buyer, "1"))
            if receipt is not None:
                await self._release(receipt)
        return codes

    def _wish(self) -> dict[str, int]:
        if random.random() < 0.01:
            # More than one order may have.
            return {self._skus[-1]: self._orders.limit_per_order + 1}
        cart = random.random() < 0.10
        if not cart:
            sku = random.choices(self._skus, self._wanted)[0]
            most = self._limits[sku] or self._orders.limit_per_order or 2
            return {sku: random.choice((1, 1, min(2, most)))}
        self._shop.mischief.carts += 1
        # Carts are of everyday things: they are all or nothing, and the phones are gone.
        everyday = self._skus[-3:]
        lines = min(random.choice((2, 2, 3)), len(everyday))
        return dict.fromkeys(random.sample(everyday, lines), 1)

    def _begin(self, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(life)
        self._lives.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._lives.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._shop.broken.append(("the demo itself", repr(error)))

    async def _wait(self, buyer: str, sku: str) -> None:
        """Keeps asking for one unit, under a new key each time, until it comes back from others."""
        self.waiting[sku] += 1
        attempt = 1
        try:
            while not await self._pause(random.uniform(*_ASK_AGAIN_S)):
                attempt += 1
                code = await self._shop.reserve(buyer, f"{buyer}-{attempt}", {sku: 1})
                if code in ACCEPTED or code in _HOPELESS:
                    break
        finally:
            self.waiting[sku] -= 1
        receipt = self._shop.receipts.get((buyer, f"{buyer}-{attempt}"))
        if receipt is not None:
            await self._live(receipt)

    async def _pause(self, seconds: float) -> bool:
        """Sleeps; the answer is whether the sale is over."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _live(self, receipt: Receipt) -> None:
        """What becomes of an accepted order."""
        await self._fidget(receipt)
        fate = random.random()
        if self.settling or fate < 0.56:
            await self._pay(receipt, begin=random.random() < 0.9)
        elif fate < 0.62:
            await self._pay(receipt, begin=True)
            await self._pay_again(receipt)
        elif fate < 0.70:
            await self._pay_late(receipt)
        elif fate < 0.75:
            await asyncio.sleep(random.uniform(0.1, 1.0))
            await self._release(receipt)
        else:
            self._shop.mischief.abandoned += 1
            if fate < 0.80:
                await self._shop.begin_payment(receipt)

    async def _fidget(self, receipt: Receipt) -> None:
        """What people and their phones do right after an order went through."""
        shop, buyer, key = self._shop, receipt.buyer, receipt.key
        sku = next(iter(receipt.items))
        for what in random.sample(("repeat", "reuse", "greedy"), 3):
            if random.random() > 0.15:
                continue
            if what == "repeat":
                await shop.repeat(receipt)
            elif what == "reuse":
                await shop.reuse(receipt, receipt.items | {sku: receipt.items[sku] + 1})
            else:
                shop.mischief.greedy += 1
                most = self._limits[sku] or self._orders.limit_per_order
                more = f"{key}-more-{random.randrange(10**6)}"
                if await shop.reserve(buyer, more, {sku: most}) in ACCEPTED:
                    self._begin(self._live(shop.receipts[buyer, more]))

    async def _pay(self, receipt: Receipt, *, begin: bool) -> None:
        await asyncio.sleep(random.uniform(0.05, 0.6))
        if begin:
            await self._shop.begin_payment(receipt)
            await asyncio.sleep(random.uniform(0.05, 0.6))
        await self._confirm(receipt, f"pay-{receipt.order}")

    async def _pay_again(self, receipt: Receipt) -> None:
        """The provider says the same twice, and the buyer pays once more."""
        if not receipt.paid:
            return
        self._shop.mischief.paid_twice += 1
        code = await self._shop.confirm(receipt, receipt.paid)
        if code not in ("already", ""):
            self._shop.broken.append(("paid once", f"{code} to a repeat for {receipt.order}"))
        await self._confirm(receipt, f"again-{receipt.order}")

    async def _pay_late(self, receipt: Receipt) -> None:
        """Begins to pay just when nobody expects it any more."""
        self._shop.mischief.paid_late += 1
        await asyncio.sleep(receipt.deadline_ms / 1000 - time() + random.uniform(0.6, 1.4))
        await self._confirm(receipt, f"late-{receipt.order}")

    async def _confirm(self, receipt: Receipt, payment: str) -> None:
        code = await self._shop.confirm(receipt, payment)
        if code in ("done", "already", "confirmed_late"):
            receipt.states, receipt.paid = ("confirmed",), payment
            self.paid += 1
        elif code in ("late", "duplicate_payment"):
            receipt.due_back = (*receipt.due_back, payment)
        elif not code:
            # Nobody knows, and nobody asks again: it is either.
            receipt.states = (*receipt.states, "confirmed")
        else:
            self._shop.broken.append(("unexpected answer", f"{code} to payment {payment}"))

    async def _release(self, receipt: Receipt) -> None:
        self._shop.mischief.released += 1
        code = await self._shop.release(receipt)
        if code in ("done", "already"):
            receipt.states = ("released",)
        elif not code:
            receipt.states = ("released", "expired")
        elif code != "expired":
            self._shop.broken.append(("unexpected answer", f"{code} to release {receipt.order}"))
