"""The state machine that drives a sale's queue and its twin side by side, script by script.

The sale's clock is the machine's own (tests/lua/queue_core.py), so every time is compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from seckill.status import Status
from tests.lua.core import Wish
from tests.lua.queue_core import QueueCore, Step
from tests.properties.queue_twin import QueueTwin, Rules

BUYERS = [f"b{i}" for i in range(12)]
LIFE_MS = 20_000
HOLD_MS = 25_000
DRAW_MS = 5_000
TIMES_MS = (1_000, 200, 199, 5_000, LIFE_MS // 10, LIFE_MS - 1, 1, LIFE_MS, HOLD_MS, 90_000)

buyers = st.sampled_from(BUYERS)
first = st.integers(0, 2**16)


class QueueMachine(RuleBasedStateMachine):
    """Every rule asks both, and they must say the same; every invariant looks at both."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.core = QueueCore(self.client)
        self.known = self.count = 0
        # Every token that anybody ever had: buyer, step, when it called, the ticket's number.
        self.tokens: list[tuple[str, int, int, int]] = []

    @initialize(
        mode=st.sampled_from(["queue", "shuffle", "draw"]),
        stock=st.sampled_from([3, 1, 2, 5, 8, 0]),
        rate=st.sampled_from([0, 0, 1, 4, 100]),
        overbook=st.sampled_from([20, 1, 2, 5]),
        cart=st.sampled_from([1, 1, 3]),
    )
    def begin(self, mode: str, stock: int, rate: int, overbook: int, cart: int) -> None:
        self.cart = cart
        if mode == "draw":
            rate, overbook = 0, 1
        rules = Rules(mode, stock, rate, overbook, LIFE_MS, HOLD_MS, DRAW_MS)  # type: ignore[arg-type]
        self.core.begin_queue(
            mode, stock, rate=rate, overbook=overbook, life_ms=LIFE_MS, draw_in_ms=DRAW_MS,
            hold_ms=HOLD_MS, max_lapsed=0, clock_jump_ms=10**12,
        )  # fmt: skip
        self.twin, self.began_ms = QueueTwin(rules), self.core.now_ms

    def teardown(self) -> None:
        self.client.delete(*self.core.keys, *self.core.queue_keys, self.core.clock)

    # -- tickets ------------------------------------------------------------------------------

    @rule(names=st.lists(buyers, min_size=1, max_size=8))
    def join(self, names: list[str]) -> None:
        assert self.core.join(*names) == [self.twin.join(name) for name in names]

    @rule(count=st.sampled_from([3, 10, 40]))
    def crowd(self, count: int) -> None:
        names = [f"n{self.count + i}" for i in range(count)]
        self.count += count
        self.join(names)

    @rule(name=buyers)
    def leave(self, name: str) -> None:
        assert self.core.leave(name) is self.twin.leave(name)

    @precondition(lambda self: self.twin.line)
    @rule(which=first)
    def leave_a_place(self, which: int) -> None:
        self.leave(self.twin.line[which % len(self.twin.line)] or BUYERS[0])

    @precondition(lambda self: self.twin.live)
    @rule()
    def leave_when_called(self) -> None:
        """Nobody who was called last wants to buy any more."""
        for name, step, _, number in self.tokens[-20:]:
            if step == self.known and self.twin.tickets.get(name) == number:
                self.leave(name)

    @precondition(lambda self: self.twin.late)
    @rule(which=first)
    def leave_late(self, which: int) -> None:
        self.leave(self.twin.late[which % len(self.twin.late)][0])

    @precondition(lambda self: self.twin.closed is not None and self.twin.ranked is None)
    @rule(random=st.randoms(use_true_random=False))
    def draw(self, random) -> None:  # type: ignore[no-untyped-def]
        self.look()  # somebody has to see that the list is closed
        order = self.twin.listed
        random.shuffle(order)
        numbers = [self.twin.tickets[name] for name in order]
        self.core.rank(numbers, closed=self.twin.closed or 0)
        self.twin.rank(order)

    # -- turns --------------------------------------------------------------------------------

    @rule()
    def look(self) -> None:
        twin = self.twin
        twin.let_lapse()
        look = self.core.admit(self.known)
        must_call = twin.must_call
        assert len(look.steps) <= 1
        for step in look.steps:
            used, risk = (
                [int(count) for count in self.core.queue_field(name).split(",")]
                for name in ("used", "risk")
            )
            # As it was before this step.
            risk[0] -= sum(name is not None for name in twin.line[step.start : step.stop])
            assert step.at_ms == look.turn_ms
            twin.call(step.number, step.start, step.stop, twin.worth(used, risk))
            self.known = step.number
            self._hand_out(step)
        # No stall: nobody waits for longer than the last token lives.
        assert look.steps or not must_call
        self._compare(look)

    def _hand_out(self, step: Step) -> None:
        for name in self.twin.line[step.start : step.stop]:
            if name is not None:
                self.tokens.append((name, step.number, self.twin.turn_ms, self.twin.tickets[name]))

    def _compare(self, look) -> None:  # type: ignore[no-untyped-def]
        twin = self.twin
        assert look.turn_ms == self.began_ms + twin.turn_ms
        assert (look.head, look.lapsed, look.lapses) == (twin.head, twin.lapsed, twin.lapses)
        assert (look.tail, look.waiting) == (len(twin.line), len(twin.waiting))
        assert (look.live, look.next) == (twin.live, twin.next)
        assert (look.available, look.held) == (twin.available, twin.held)
        assert look.closed == (-1 if twin.closed is None else twin.closed)
        assert look.ranked == (-1 if twin.ranked is None else twin.ranked)
        assert look.refusal == (Status.PAUSED if twin.paused else 0)
        assert look.reach >= 0
        assert int(self.core.queue_field("risk").partition(",")[0]) == twin.called
        assert int(self.core.queue_field("users")) == twin.uses
        assert sum(map(int, self.core.queue_field("used").split(","))) <= twin.uses

    @rule(ms=st.sampled_from(TIMES_MS))
    def wait(self, ms: int) -> None:
        self.core.travel(ms)
        self.twin.pass_time(ms)

    @rule(ms=st.sampled_from(TIMES_MS))
    def wait_and_look(self, ms: int) -> None:
        self.wait(ms)
        self.look()

    # -- orders -------------------------------------------------------------------------------

    @precondition(lambda self: self.tokens)
    @rule(which=first, units=st.sampled_from([0, 0, 1, 2]))
    def buy(self, which: int, units: int) -> None:
        self._buy(self.tokens[-1 - which % min(len(self.tokens), 60)], units)

    @precondition(lambda self: self.tokens)
    @rule(units=st.sampled_from([0, 0, 1]))
    def buy_all(self, units: int) -> None:
        for token in self.tokens[-5:]:
            self._buy(token, units)

    def _buy(self, token: tuple[str, int, int, int], units: int) -> None:
        """``units``: 0 for what most buyers of this sale take."""
        units = units or self.cart
        name, step, at_ms, number = token
        order = f"o{len(self.twin.holds)}"
        turn = (step, self.began_ms + at_ms + LIFE_MS, number)
        (answer,) = self.core.reserve(
            Wish(order, name, f"0:{units}" if units > 1 else "0", turn=turn)
        )
        assert answer is self.twin.buy(order, name, (step, at_ms), number, units)

    @rule(name=buyers)
    def buy_without_a_token(self, name: str) -> None:
        answer = self.core.reserve(Wish("none", name, turn=(0, 0, 0)))
        assert answer == [Status.PAUSED if self.twin.paused else Status.TOKEN_NEEDED]

    @precondition(lambda self: self.twin.open)
    @rule(which=first, end=st.sampled_from(["release", "confirm"]))
    def end(self, which: int, end: str) -> None:
        order = self.twin.open[which % len(self.twin.open)]
        tell: Callable[[str], None] = getattr(self.twin, end)
        reply = self.core.release(order) if end == "release" else self.core.confirm(order, "p")
        assert reply.status is Status.DONE
        tell(order)

    @rule()
    def sweep(self) -> None:
        assert self.core.expire().expired == self.twin.expire()

    # -- the merchant -------------------------------------------------------------------------

    @rule(units=st.sampled_from([1, 2, 5, 30]))
    def add_stock(self, units: int) -> None:
        self.count += 1
        assert self.core.add_stock(0, units, f"k{self.count}")[0] is Status.DONE
        self.twin.available += units

    @rule()
    def pause_or_resume(self) -> None:
        assert (self.core.resume() if self.twin.paused else self.core.pause()) is Status.DONE
        self.twin.paused = not self.twin.paused

    @precondition(lambda self: self.twin.paused)
    @rule(ms=st.sampled_from([LIFE_MS, 90_000]))
    def wait_and_resume(self, ms: int) -> None:
        """However long a pause, seen by a look at its beginning, takes nobody's turn."""
        self.look()
        turn_ms = self.twin.turn_ms
        self.wait_and_look(ms)
        self.pause_or_resume()
        self.look()
        assert self.twin.turn_ms == turn_ms

    @invariant()
    def stock_agrees(self) -> None:
        assert self.core.stock()[:2] == (self.twin.available, self.twin.held)
        assert int(self.core.queue_field("next")) == self.twin.next
