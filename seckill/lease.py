"""What one process may answer for one sale without asking Redis: sold out, and not open yet.

    Redis refuses often ─▶ lease.lua ─▶ good for lease_ms, from before it was asked
                              ▲                 │ asked again while people ask
                              └─────────────────┘

Neither answer is given to a buyer who may hold an order, because a blind retry must find it:

- Before a sale's opening nobody holds one. The lease ends at the opening, if that is sooner.
- A SKU reported as sold out is not sold again until the lease is over (lua/lib/window.lua), so
  whoever has ordered it had done so before. All buyers who had orders are read once the SKU is
  leased, and what was read stays complete for it as long as one lease begins before the last ended.

Only a storm is answered from here: below REFUSALS in WINDOW_S, and for a sale of more than
BUYERS_MAX buyers with orders, Redis is asked each time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

from seckill.errors import SeckillError
from seckill.order import read_cart
from seckill.sale import Sale
from seckill.status import Status

__all__ = ["LEASE_MS_MAX", "Lease"]

LEASE_MS_MAX: Final = 990
REFUSALS: Final = 32
WINDOW_S: Final = 0.1
BUYERS_MAX: Final = 100_000
READ_PAUSE_S: Final = 1.0
CARTS_MAX: Final = 1_000

_log = logging.getLogger("seckill.lease")


class Lease:
    """The memory of one shard. ``ask`` runs lease.lua, ``buyers`` reads who has had orders."""

    def __init__(
        self,
        sale: Sale,
        ask: Callable[[], Awaitable[list[Any]]],
        buyers: Callable[[], Awaitable[set[str]]],
        lease_ms: int,
    ) -> None:
        self._sale = sale
        self._ask = ask
        self._read_buyers = buyers
        self._lease_s = lease_ms / 1000
        self._until_s = 0.0
        self._renew_s = 0.0
        self._status = Status.DONE
        self._sold_out: frozenset[int] = frozenset()
        self._buyers: set[str] = set()
        self._made = b""
        self._read_at_s = -READ_PAUSE_S
        # By cart text: whether this cart is refused by what is known now.
        self._refused: dict[str, bool] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._since_s = 0.0
        self._refusals = 0
        self.answered = 0

    def refusal(self, buyer: str, cart: str) -> Status | None:
        """What Redis would answer to a new order of this buyer, if that is known."""
        now_s = monotonic()
        if now_s >= self._until_s:
            return None
        if now_s >= self._renew_s:
            self._renew()
        refused = self._refused.get(cart)
        if refused is None:
            refused = self._judge(cart)
        if not refused or buyer in self._buyers:
            return None
        self.answered += 1
        return self._status

    def noticed(self) -> None:
        """Redis has refused an order with an answer that could come from here."""
        now_s = monotonic()
        if now_s - self._since_s > WINDOW_S:
            self._since_s, self._refusals = now_s, 0
        self._refusals += 1
        if self._refusals >= REFUSALS:
            self._renew()

    async def aclose(self) -> None:
        """Forgets everything, for good."""
        self._closed, self._until_s = True, 0.0
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _judge(self, cart: str) -> bool:
        if len(self._refused) >= CARTS_MAX:
            self._refused.clear()
        self._refused[cart] = refused = self._would_refuse(read_cart(cart))
        return refused

    def _would_refuse(self, lines: dict[int, int]) -> bool:
        """Whether the one answer known is that to a buyer who never had an order."""
        sale = self._sale
        if any(index >= len(sale.items) for index in lines):
            return False  # An unknown SKU, which comes first.
        if self._status is Status.NOT_OPEN:
            return True
        # A limit comes before the stock.
        units = sum(lines.values())
        if any(0 < limit < units for limit in (sale.limit_per_order, sale.limit_per_buyer)):
            return False
        if any(0 < sale.items[i].limit_per_buyer < quantity for i, quantity in lines.items()):
            return False
        return not self._sold_out.isdisjoint(lines)

    def _renew(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._look()
        except SeckillError as error:
            # The next refusal tries again; until then Redis is asked, and says so itself.
            _log.debug("sale %s has no lease: %s", self._sale.id, error)
        except Exception:  # noqa: BLE001 - logged; a lease is never needed
            _log.exception("the lease of sale %s failed", self._sale.id)
        finally:
            self._task = None

    async def _look(self) -> None:
        # Counted from before the question, so that it is over here before it is in Redis.
        asked_s = monotonic()
        status, opens_in_ms, buyers, made, *sold_out = await self._ask()
        if made != self._made:
            # Another sale, though its definition is the same: the first one was lost.
            self._made, self._until_s, self._buyers = made, 0.0, set()
            self._read_at_s = -READ_PAUSE_S
        if status == Status.NOT_OPEN and opens_in_ms > 0:
            until_s = asked_s + min(self._lease_s, opens_in_ms / 1000)
            self._hold(Status.NOT_OPEN, frozenset(), asked_s, until_s)
            return
        if status != Status.DONE or not sold_out or buyers > BUYERS_MAX:
            self._until_s = 0.0
            return
        leased = frozenset(map(int, sold_out))
        until_s = asked_s + self._lease_s
        if len(self._buyers) == buyers:
            covered = leased  # Nobody is ever taken out, so these are still all of them.
        elif monotonic() < self._until_s and self._status is Status.SOLD_OUT:
            covered = leased & self._sold_out
        else:
            covered = frozenset()
        self._hold(Status.SOLD_OUT, covered, asked_s, until_s)
        if covered != leased and asked_s - self._read_at_s >= READ_PAUSE_S:
            self._read_at_s = asked_s
            self._buyers = await self._read_buyers()
            if monotonic() < until_s:
                self._hold(Status.SOLD_OUT, leased, asked_s, until_s)

    def _hold(
        self, status: Status, sold_out: frozenset[int], asked_s: float, until_s: float
    ) -> None:
        if self._closed:
            return
        if status is not self._status or sold_out != self._sold_out:
            self._refused.clear()
        self._status, self._sold_out = status, sold_out
        self._until_s, self._renew_s = until_s, asked_s + self._lease_s / 2
