"""One buyer's evening, whatever it is asked by: HTTP or the socket.

look at the page ─▶ learn the clock ─▶ wait for the opening ─▶ buy, perhaps twice at once
                            └▶ join ─▶ hold the place ─▶ called ─┘   │
                 sold out: come back some times, then leave ◀────────┤
                 pay (cashier, money, result) │ give up │ abandon ◀──┘
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any, Final
from uuid import uuid4

import gevent

from .line import Line
from .promises import TURN, Answer, Wish
from .shop import Shop
from .way import Way, insist

__all__ = ["Buyer"]

_NOT_OPEN_MAX: Final = 100
_RESULTS_MAX: Final = 60
_RESULT_S: Final = 1.0
# How long after its deadline an unpaid order is asked for; it is to end within a second.
_SWEPT_MS: Final = 20_000
_FINAL: Final = ("confirmed", "refunded", "released", "expired")
_BACK: Final = ("sold_out", "insufficient", "paused")


class _Over(Exception):
    """The evening is over; says how."""


class Buyer:
    """``way`` is the buyer's own, ``mall`` that of the mall's backend, which knows what was paid.
    ``gave_up`` hears of a verb that nobody answers."""

    def __init__(self, name: str, shop: Shop, way: Way, mall: Way, gave_up: Any) -> None:
        self._name = name
        self._shop = shop
        self._notes = shop.notes
        self._options = shop.options
        self._way = way
        self._mall = mall
        self._gave_up = gave_up
        self._etag = ""
        self._page: dict[str, Any] = {}

    def evening(self) -> str:
        """All of it. Returns how it ended."""
        try:
            self._look()
            self._sync()
            if self._page["admission"] is None:
                return self._shopping(self._wait_for_opening())
            return self._shopping(self._new_wish(*self._stand_in_line(self._page["admission"])))
        except _Over as over:
            return str(over)

    # -- before -------------------------------------------------------------------------------

    def _look(self) -> None:
        answer = self._insist("page", etag=self._etag)
        if answer.ok:
            self._page, self._etag = answer.body, answer.etag
        elif answer.status != 304:
            raise _Over("no page")
        if self._page["phase"] in ("ended", "closed", "settled"):
            raise _Over("came too late")

    def _sync(self) -> None:
        for _ in range(3):
            answer = self._insist("time")
            if answer.ok:
                self._shop.clock.learn(answer.body["now_ms"], answer.sent_ms, answer.got_ms)
        if not self._shop.clock.known:
            raise _Over("no clock")

    def _wait_for_opening(self) -> Wish:
        """Until the moment of the press, or a little too early and then again."""
        wish, opens_ms = self._new_wish(), self._shop.rules.opens_ms
        if random.random() < self._options.early and self._shop.clock.now_ms() < opens_ms:
            self._wait_until(opens_ms - random.uniform(100, 1_000))
            self._press(wish)
        self._wait_until(opens_ms + _mean(self._options.reaction_ms))
        return wish

    def _wait_until(self, at_ms: float) -> None:
        """Waits on the server's clock, with a look at the page now and then."""
        while (left_s := (at_ms - self._shop.clock.now_ms()) / 1000) > 0:
            step_s = self._options.page_s * random.uniform(0.5, 1.5)
            if left_s < step_s + 0.5:
                gevent.sleep(left_s)
            else:
                gevent.sleep(step_s)
                self._look()

    # -- in line ------------------------------------------------------------------------------

    def _stand_in_line(self, admission: dict[str, Any]) -> tuple[str, int]:
        """Waits for the turn. Returns its token, and until when it is good."""
        self._wait_until((admission["joins_ms"] or 0) + _mean(self._options.reaction_ms))
        line = Line(self._notes, self._name, admission["mode"])
        place = self._join(line)
        patience_ms = max(self._shop.clock.now_ms(), self._shop.rules.opens_ms)
        patience_ms += self._options.patience_s * 1000
        sold_out = lapsed = 0
        while place["phase"] != "called":
            if place["phase"] == "lapsed":
                if admission["mode"] == "draw" or (lapsed := lapsed + 1) > 2:
                    raise _Over("the turn passed")
                place = self._join(line)
                continue
            if place["phase"] == "ended":
                raise _Over("the sale ended")
            if place["phase"] == "sold_out" and (sold_out := sold_out + 1) > 1:
                raise _Over("sold out, in line")
            if self._shop.clock.now_ms() > patience_ms:
                raise _Over("lost patience in line")
            gevent.sleep(place["poll_after_ms"] / 1000 * random.uniform(1.0, 1.1))
            place = self._ask_place(line, place["ticket"])
        if random.random() < self._options.no_show:
            raise _Over("called, did not come")
        left_s = (place["expires_ms"] - self._shop.clock.now_ms()) / 1000
        gevent.sleep(max(0.0, min(_mean(self._options.think_s), left_s - 1)))
        return place["token"], place["expires_ms"]

    def _join(self, line: Line) -> dict[str, Any]:
        for _ in range(_NOT_OPEN_MAX):
            answer = self._insist("join")
            if answer.ok:
                place: dict[str, Any] = answer.body["place"]
                line.told(place)
                return place
            if answer.code != "not_open":
                raise _Over(f"could not join: {answer.code or 'no answer'}")
            gevent.sleep(0.1)
        raise _Over("could not join: not_open")

    def _ask_place(self, line: Line, ticket: str) -> dict[str, Any]:
        answer = self._insist("place", ticket=ticket)
        if not answer.ok:
            if answer.code == "unknown_ticket":
                self._notes.broke(TURN, f"the ticket of {self._name} is unknown")
            raise _Over(f"lost the place: {answer.code or 'no answer'}")
        line.told(answer.body)
        return answer.body

    # -- at the till --------------------------------------------------------------------------

    def _shopping(self, wish: Wish) -> str:
        answer = self._buy(wish)
        order = answer.order
        if not answer.ok or order is None:
            return f"not bought: {answer.code or 'no answer'}"
        if random.random() < self._options.again:
            self._retry(wish)
        if random.random() < self._options.greedy:
            self._another(wish)
        how = random.random()
        if how < self._options.abandon:
            ended = self._abandon(order)
        elif how < self._options.abandon + self._options.give_up:
            ended = self._release(order["id"])
        else:
            ended = self._pay(order["id"])
        if random.random() < self._options.again:
            self._retry(wish)
        return ended

    def _new_wish(self, token: str = "", expires_ms: int = 0) -> Wish:
        item = random.choice(self._page["items"])
        limits = (
            item["limit_per_buyer"],
            self._page["limit_per_buyer"],
            self._page["limit_per_order"],
        )
        most = min((limit for limit in limits if limit), default=2)
        # Half of those who may have more take one.
        count = 1 if random.random() < 0.5 else random.randint(1, min(most, 3))
        return Wish(self._name, uuid4().hex, {item["sku"]: count}, token, expires_ms)

    def _buy(self, wish: Wish) -> Answer:
        """Presses until it is bought, or there is no point."""
        early = back = 0
        while True:
            answer = self._press(wish)
            if answer.code == "not_open" and (early := early + 1) < _NOT_OPEN_MAX:
                gevent.sleep(0.1)
            elif answer.code in _BACK and (back := back + 1) <= self._options.returns:
                gevent.sleep(1 + _mean(1))
            else:
                return answer

    def _press(self, wish: Wish) -> Answer:
        """One press, or two at the same moment: the same key, so it is one order."""
        if random.random() >= self._options.double:
            return self._order(wish)
        second = gevent.spawn(self._order, wish)
        try:
            first = self._order(wish)
            other: Answer = second.get()
        finally:
            second.kill()
        return first if first.ok else other

    def _order(self, wish: Wish) -> Answer:
        ask = partial(self._ask_order, wish)
        return insist(ask, self._gave_up)

    def _ask_order(self, wish: Wish) -> Answer:
        answer = self._way.ask("buy", wish=wish)
        self._notes.bought(wish, answer, self._shop.rules)
        return answer

    def _retry(self, wish: Wish) -> None:
        """Sends an accepted order again, as a phone does that missed the answer."""
        self._notes.refused_again(wish, self._order(wish))

    def _another(self, wish: Wish) -> None:
        """Wants the same once more, under a new key; what comes of it is given back at once."""
        answer = self._order(Wish(wish.buyer, uuid4().hex, wish.items, wish.token, wish.expires_ms))
        if answer.ok and answer.order is not None:
            self._release(answer.order["id"])

    # -- with an order ------------------------------------------------------------------------

    def _pay(self, order: str) -> str:
        gevent.sleep(_mean(self._options.think_s))
        begun = self._move("begin", order)
        if not begun.ok:
            return f"could not pay: {begun.code or 'no answer'}"
        gevent.sleep(_mean(self._options.pay_s))
        payment = f"p-{uuid4().hex}"
        ask = partial(self._mall.ask, "confirm", order=order, payment=payment)
        confirmed = insist(ask, self._gave_up)
        self._notes.moved(order, confirmed)
        if not confirmed.ok and not confirmed.later:
            return f"paid in vain: {confirmed.code}"
        state = self._result(order)
        return "paid" if state == "confirmed" else f"paid, and then {state}"

    def _release(self, order: str) -> str:
        gevent.sleep(_mean(self._options.think_s))
        self._notes.releasing(order)
        answer = self._move("release", order)
        if not answer.ok:
            return f"could not give up: {answer.code or 'no answer'}"
        return f"gave up, {self._result(order)}"

    def _abandon(self, order: dict[str, Any]) -> str:
        end_ms = (order["deadline_ms"] or 0) + _SWEPT_MS
        while (state := self._result(order["id"], once=True)) not in _FINAL:
            if self._shop.clock.now_ms() > end_ms:
                break
            gevent.sleep(2 * _RESULT_S * random.uniform(0.8, 1.2))
        return f"abandoned, {state}"

    def _move(self, verb: str, order: str) -> Answer:
        answer = self._insist(verb, order=order)
        self._notes.moved(order, answer)
        return answer

    def _result(self, order: str, *, once: bool = False) -> str:
        """Polls an order until its state is final. Returns its state, as last seen."""
        state = "unknown"
        for _ in range(1 if once else _RESULTS_MAX):
            before = self._notes.version(order)
            answer = self._insist("result", order=order)
            self._notes.looked(order, answer, before)
            if answer.ok:
                state = str(answer.body["state"])
            if once or state in _FINAL or not answer.ok:
                break
            gevent.sleep(_RESULT_S)
        return state

    def _insist(self, verb: str, **more: str) -> Answer:
        return insist(partial(self._way.ask, verb, **more), self._gave_up)  # type: ignore[arg-type]


def _mean(mean: float) -> float:
    return random.expovariate(1 / mean) if mean > 0 else 0.0
