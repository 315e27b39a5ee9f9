"""The state machine that drives the twin and the real engine side by side.

Time moves in whole steps, by shifting the sale's window and deadlines. Every duration is an odd
number of half steps, so whatever real time a run takes (up to half a step, 30 s) changes no answer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from seckill.engine import Engine
from seckill.order import Order, Outcome, State, order_id
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.properties.story import check_story
from tests.properties.strategies import (
    ENDS_MS,
    HALF_MS,
    HOLD_MS,
    KEYS,
    MOOT,
    NOWHERE,
    PAY_MS,
    PRICES_FEN,
    SKUS,
    STEP_MS,
    Place,
    Wish,
    buyers,
    keys,
    places,
    some_expired,
    some_orders,
    wishes,
)
from tests.properties.twin import Twin, TwinEvent, TwinOrder
from tests.properties.world import World
from tests.support import make_item, make_sale, shift

T = TypeVar("T")


class TwinMachine(RuleBasedStateMachine):
    """Every rule asks both, and they must say the same; every invariant looks at both."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        # Without leases: the twin knows at once that a unit has come back.
        options: dict[str, Any] = {"durability": "memory", "sweep_ms": 0, "lease_ms": 0}
        self.engine = Engine(self.world.url, **options, timeout_ms=60_000)
        self.world.run(self.engine.start())
        self.touched = ""

    @initialize(
        totals=st.tuples(*[st.sampled_from([3, 2, 4, 1, 6, 0])] * len(SKUS)),
        limits=st.tuples(*[st.sampled_from([0, 0, 3, 2, 1])] * len(SKUS)),
        limit_per_order=st.sampled_from([0, 0, 0, 3, 2]),
        limit_per_buyer=st.sampled_from([0, 0, 0, 5, 3]),
        max_lapsed=st.sampled_from([0, 1, 1, 2]),
        opens=st.sampled_from([-1, -1, -1, -1, -1, 1]),
    )
    def create(
        self,
        totals: tuple[int, ...],
        limits: tuple[int, ...],
        limit_per_order: int,
        limit_per_buyer: int,
        max_lapsed: int,
        opens: int,
    ) -> None:
        now = datetime.now(UTC)
        opens_ms = opens * HALF_MS
        sale = make_sale(
            opens_at=now + timedelta(milliseconds=opens_ms),
            ends_at=now + timedelta(milliseconds=ENDS_MS),
            items=tuple(
                make_item(sku, price_fen=PRICES_FEN[sku], total=total, limit_per_buyer=limit)
                for sku, total, limit in zip(SKUS, totals, limits, strict=True)
            ),
            hold_ms=HOLD_MS,
            pay_ms=PAY_MS,
            limit_per_order=limit_per_order,
            limit_per_buyer=limit_per_buyer,
            max_lapsed=max_lapsed,
        )
        self.twin = Twin(sale, opens_ms, ENDS_MS)
        self.created_ms = sale.ends_ms - ENDS_MS
        assert self.ask(self.engine.create(sale)).status is Status.CREATED
        # The engine learns the sale, and opens its lane, before any time has passed.
        unsold = self.ask(self.engine.reserve(sale.id, "ann", "none", {"zz": 1}))
        assert unsold.status is Status.UNKNOWN_SKU
        if opens_ms < 0:
            # Most runs should sell something; the others open by the rule.
            assert self.ask(self.engine.open(sale.id)).status is self.twin.open()

    @property
    def sale(self) -> Sale:
        return self.twin.sale

    def ask(self, work: Coroutine[Any, Any, T]) -> T:
        return self.world.run(work)

    def name(self, place: Place) -> tuple[str, str]:
        """An order id and its buyer."""
        state, number = place
        known = list(self.twin.orders.values())
        if number == NOWHERE or not known:
            return order_id(self.sale.id, "ann", "never"), "ann"
        wanted = [order for order in known if order.state == state] or known
        order = wanted[number % len(wanted)]
        return order.id, order.buyer

    # -- reserving ----------------------------------------------------------------------------

    @rule(wish=wishes)
    def reserve(self, wish: Wish) -> None:
        self.compare_reserves([wish])

    @rule(batch=st.lists(wishes, min_size=2, max_size=8))
    def reserve_together(self, batch: list[Wish]) -> None:
        self.compare_reserves(batch)

    @some_orders
    @rule(number=st.integers(0, 11), change=st.sampled_from(["", "", "cart", "attrs", "sku"]))
    def retry(self, number: int, change: str) -> None:
        """The identical call again, for an order in whatever state it is, or a changed one."""
        known = list(self.twin.orders.values())
        order = known[number % len(known)]
        key = next(k for k in KEYS if order_id(self.sale.id, order.buyer, k) == order.id)
        cart, text = order.cart, order.attrs
        if change == "cart":
            cart = {sku: units + 1 for sku, units in cart.items()}
        elif change == "attrs":
            text += "."
        elif change == "sku":
            cart = cart | {"zz": 1}
        self.compare_reserves([(order.buyer, key, cart, text)])

    @rule(buyer=buyers, key=keys)
    def reserve_unknown_sku(self, buyer: str, key: str) -> None:
        self.compare_reserves([(buyer, key, {"a": 1, "zz": 1}, "")])

    def compare_reserves(self, batch: list[Wish]) -> None:
        """Those submitted together are one batch of the lane, decided in their order."""
        expected = []
        for buyer, key, cart, text in batch:
            name = order_id(self.sale.id, buyer, key)
            status = self.twin.reserve(name, buyer, cart, text)
            # What an order of this batch found is the order as it then was.
            found = self.twin.orders.get(name) if status.ok else None
            expected.append((status, found and self.picture_of_twin(found)))

        async def submit() -> list[Outcome]:
            return await asyncio.gather(
                *(
                    self.engine.reserve(self.sale.id, buyer, key, cart, attrs=text)
                    for buyer, key, cart, text in batch
                )
            )

        before = self.batches()
        outcomes = self.ask(submit())
        assert self.batches() == before + 1
        # A new order's deadline comes from the server's clock, which does not travel.
        assert [
            (
                outcome.status,
                outcome.order
                and self.picture(
                    outcome.order,
                    self.twin.now_ms if outcome.status is Status.CREATED else 0,
                ),
            )
            for outcome in outcomes
        ] == expected

    def batches(self) -> int:
        lane = self.engine._shards[self.sale.id].lane
        assert lane is not None
        return lane.batches

    # -- orders -------------------------------------------------------------------------------

    @some_orders
    @rule(place=places("held"), who=st.sampled_from(["", "owner", "owner", "other"]))
    def begin_payment(self, place: Place, who: str) -> None:
        name, owner = self.name(place)
        buyer = {"": "", "owner": owner, "other": "mallory"}[who]
        outcome = self.ask(self.engine.begin_payment(self.sale.id, name, buyer=buyer))
        self.compare_order(outcome, self.twin.begin_payment(name, buyer), name)

    @some_orders
    @rule(
        place=places("held", "paying", "expired", "confirmed"),
        payment=st.sampled_from(["p1", "p2", "p3"]),
    )
    def confirm(self, place: Place, payment: str) -> None:
        name, _ = self.name(place)
        outcome = self.ask(self.engine.confirm(self.sale.id, name, payment))
        self.compare_order(outcome, self.twin.confirm(name, payment), name)

    @some_orders
    @rule(place=places("held", "paying"), who=st.sampled_from(["", "owner", "owner", "other"]))
    def release(self, place: Place, who: str) -> None:
        name, owner = self.name(place)
        buyer = {"": "", "owner": owner, "other": "mallory"}[who]
        outcome = self.ask(self.engine.release(self.sale.id, name, buyer=buyer))
        self.compare_order(outcome, self.twin.release(name, buyer), name)

    @some_expired
    @rule(number=st.integers(0, 5), payment=st.sampled_from(["p1", "p2", "p3"]))
    def pay_late(self, number: int, payment: str) -> None:
        self.confirm(("expired", number), payment)

    @some_expired
    @rule(number=st.integers(0, 5), is_same=st.booleans(), buyer=buyers, key=keys)
    def take_what_has_expired(self, number: int, is_same: bool, buyer: str, key: str) -> None:
        """The same units once more, for the same buyer or another: now late money finds no unit,
        or a limit that is used up."""
        expired = [order for order in self.twin.orders.values() if order.state == "expired"]
        order = expired[number % len(expired)]
        self.compare_reserves([(order.buyer if is_same else buyer, key, order.cart, "")])

    @some_expired
    @rule(number=st.integers(0, 5), key=keys, payment=st.sampled_from(["p1", "p2", "p3"]))
    def buy_again_and_pay_late(self, number: int, key: str, payment: str) -> None:
        """The three that belong together when limits are to stop late money."""
        expired = [order for order in self.twin.orders.values() if order.state == "expired"]
        order = expired[number % len(expired)]
        self.compare_reserves([(order.buyer, key, order.cart, "")])
        if order.state == "expired":
            self.pay_late(expired.index(order), payment)

    @some_orders
    @rule(
        place=places("confirmed", "confirmed", "refunded"),
        refund=st.sampled_from(["r1", "r2"]),
        units=st.booleans(),
        limit=st.booleans(),
    )
    def refund(self, place: Place, refund: str, units: bool, limit: bool) -> None:
        name, _ = self.name(place)
        outcome = self.ask(
            self.engine.refund(self.sale.id, name, refund, return_units=units, return_limit=limit)
        )
        self.compare_order(outcome, self.twin.refund(name, refund, units, limit), name)

    def compare_order(self, outcome: Outcome, status: Status, name: str) -> None:
        assert outcome.status is status
        self.touched = name
        if status is Status.UNKNOWN_ORDER:
            assert outcome.order is None
        else:
            assert outcome.order is not None
            assert self.picture(outcome.order) == self.picture_of_twin(self.twin.orders[name])

    # -- the sale and its time ----------------------------------------------------------------

    @rule(sku=st.sampled_from([*SKUS, "zz"]), units=st.sampled_from([2, -1, 1, -3]), key=keys)
    def add_stock(self, sku: str, units: int, key: str) -> None:
        outcome = self.ask(self.engine.add_stock(self.sale.id, sku, units, key=key))
        assert outcome.status is self.twin.add_stock(sku, units, key)
        if sku in SKUS:
            stock = self.twin.stock[sku]
            assert (outcome.available, outcome.total) == (stock.available, stock.total)

    @rule(steps=st.sampled_from([1, 1, 2, 3]))
    def travel(self, steps: int) -> None:
        self.ask(shift(self.world.client, self.sale.id, steps * STEP_MS))
        self.twin.now_ms += steps * STEP_MS

    @rule(look_at=st.sampled_from([1, 2, 100, 100]))
    def expire(self, look_at: int) -> None:
        got = self.ask(self.engine._expire(self.sale.id, look_at))
        assert got == self.twin.expire(look_at)

    @some_orders
    @rule(steps=st.sampled_from([2, 3]))
    def lapse(self, steps: int) -> None:
        """The two that belong together: whatever is not paid by now expires."""
        self.travel(steps)
        self.expire(100)

    @precondition(lambda self: self.twin.now_ms < self.twin.opens_ms)
    @rule()
    def wait_for_the_start(self) -> None:
        self.travel(1)

    @precondition(lambda self: self.twin.state == "created")
    @rule()
    def open(self) -> None:
        assert self.ask(self.engine.open(self.sale.id)).status is self.twin.open()

    @some_orders
    @rule()
    def pause(self) -> None:
        outcome = self.ask(self.engine.pause(self.sale.id, "why"))
        assert outcome.status is self.twin.pause("why")

    # A paused sale refuses everything, so it has two ways to be resumed, and only one to be paused.
    @precondition(lambda self: self.twin.state == "paused")
    @rule()
    def resume_soon(self) -> None:
        self.resume()

    @some_orders
    @rule()
    def resume(self) -> None:
        assert self.ask(self.engine.resume(self.sale.id)).status is self.twin.resume()

    @precondition(lambda self: len(self.twin.events) > 9)
    @rule()
    def close(self) -> None:
        """Not too early, for it is the end of most of the fun."""
        assert self.ask(self.engine.close(self.sale.id)).status is self.twin.close()

    # -- what must hold after every step ------------------------------------------------------

    @invariant()
    def both_look_the_same(self) -> None:
        snapshot = self.ask(self.engine.snapshot(self.sale.id))
        assert snapshot.stock == self.twin.stock
        for sku, stock in snapshot.stock.items():
            assert stock.available + stock.held + stock.confirmed == stock.total, sku
            assert min(stock.available, stock.held, stock.confirmed) >= 0, sku
        assert (snapshot.state, snapshot.reason) == (self.twin.state, self.twin.reason)
        assert snapshot.seq == len(self.twin.events)
        assert snapshot.orders == len(self.twin.orders)
        assert snapshot.buyers == len({order.buyer for order in self.twin.orders.values()})
        queues = (snapshot.holds_queue, snapshot.paying_queue)
        assert queues == tuple(len(queue) for queue in self.twin.queues.values())
        if self.touched:
            order = self.ask(self.engine.order(self.sale.id, self.touched))
            mine = self.twin.orders.get(self.touched)
            assert (order and self.picture(order)) == (mine and self.picture_of_twin(mine))
            self.touched = ""

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and hasattr(self, "twin"):
                self.ask(self.compare_history())
        finally:
            self.ask(self.engine.aclose())

    async def compare_history(self) -> None:
        """The stream tells the twin's story, event by event, and verify finds nothing."""
        told = [event async for event in self.engine.history(self.sale.id)]
        assert [event.seq for event in told] == list(range(1, len(told) + 1))
        assert [
            TwinEvent(
                event.kind,
                event.order.id if event.order else "",
                event.order.version if event.order else 0,
                event.order.state.value if event.order else "",
                event.detail,
                event.attrs,
            )
            for event in told
        ] == self.twin.events
        violations = [
            *check_story(self.sale, told),
            *(await verify(self.engine, self.sale.id)).violations,
        ]
        assert [violation for violation in violations if violation.rule not in MOOT] == []

    def picture(self, order: Order, travelled_ms: int = 0) -> dict[str, Any]:
        """An order in a form that compares; deadlines to the step."""
        is_open = order.state in {State.HELD, State.PAYING}
        return {
            "id": order.id,
            "buyer": order.buyer,
            "state": order.state.value,
            "version": order.version,
            "items": order.items,
            "amount_fen": order.amount_fen,
            "deadline": (order.deadline_ms - self.created_ms + travelled_ms) // STEP_MS
            if is_open
            else None,
            "payments": order.payments,
            "refund": order.refund,
        }

    def picture_of_twin(self, order: TwinOrder) -> dict[str, Any]:
        return {
            "id": order.id,
            "buyer": order.buyer,
            "state": order.state,
            "version": order.version,
            "items": dict(order.cart),
            "amount_fen": sum(PRICES_FEN[sku] * units for sku, units in order.cart.items()),
            "deadline": order.deadline_ms // STEP_MS if order.is_open else None,
            "payments": tuple(order.payments),
            "refund": order.refund[0] if order.refund else "",
        }
