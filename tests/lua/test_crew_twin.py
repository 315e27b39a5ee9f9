"""Engines, restarts and losses in any order, beside a twin that knows what everybody was told.

No order is accepted on a server that misses an order which a live engine was told of, as long as
that engine answers within the wait. It answers at least every BEAT_MS here, as engines do. Who is
cut off for longer is not waited for; but when it comes back and misses something, the sale is
fenced, however much was sold since.

Two things stay out. A server that has lost an engine's very first call, and since then no call of
anybody else's, can't know whom it misses: it goes on without it, and is fenced when it comes. And
one that is given an earlier state of its own, without a restart, from a copy that nobody was
trusted with in between, has the name under which it lost what it lost.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from seckill.fencing import name_of, run_id_of
from seckill.status import Status
from tests.lua.crew import LAPSE_MS, WAIT_MS, Crew, Engine, Picture

BEAT_MS = WAIT_MS // 2
ENGINES_MAX = 4
STEPS = (50, 250, 500)


class Past(NamedTuple):
    """A picture of the sale, who was of its crew then, its beat, and the run_id of the server."""

    picture: Picture
    members: frozenset[str]
    beat: int
    run_id: str


class Restarts(RuleBasedStateMachine):
    """``told``: the orders that each live engine was told are accepted; ``silent_ms``: since when
    each has not answered."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.sale = Crew(self.client).started()
        self.live: list[Engine] = []
        self.away: list[Engine] = []
        self.told: dict[str, set[str]] = {}
        self.silent_ms: dict[str, int] = {}
        self.pasts: list[Past] = []
        self.servers = self.engines = 0
        self.run_ids = [self.sale.run_id]
        self.is_fenced = False

    def teardown(self) -> None:
        self.client.delete(*self.sale.keys, self.sale.key, self.sale.clock)

    # -- what engines do ----------------------------------------------------------------------

    def answer(self, engine: Engine) -> None:
        behind = engine.seq > self.sale.seq
        called = engine.call()
        self.silent_ms[engine.name] = 0
        if called.status is Status.FENCED:
            assert self.is_fenced or behind
            self.is_fenced = True
        else:
            assert not behind
            assert called.status in (Status.DONE, Status.NEW_SERVER)

    @initialize()
    def first_engine(self) -> None:
        self.start_engine()

    @precondition(lambda self: len(self.live) < ENGINES_MAX)
    @rule()
    def start_engine(self) -> None:
        """It answers before it takes orders."""
        self.engines += 1
        engine = Engine(self.sale, f"{self.engines:016x}")
        self.live.append(engine)
        self.told[engine.name] = set()
        self.answer(engine)

    @precondition(lambda self: len(self.live) > 1)
    @rule(which=st.integers(0, ENGINES_MAX))
    def kill_engine(self, which: int) -> None:
        engine = self.live.pop(which % len(self.live))
        del self.told[engine.name], self.silent_ms[engine.name]

    @precondition(lambda self: len(self.live) > 1)
    @rule(which=st.integers(0, ENGINES_MAX))
    def cut_off(self, which: int) -> None:
        engine = self.live.pop(which % len(self.live))
        self.away.append(engine)
        del self.silent_ms[engine.name]

    @precondition(lambda self: self.away)
    @rule(which=st.integers(0, ENGINES_MAX), orders=st.booleans())
    def come_back(self, which: int, *, orders: bool) -> None:
        engine = self.away.pop(which % len(self.away))
        misses = self.told[engine.name] - self.kept()
        self.live.append(engine)
        if orders:
            status = engine.order()
            assert status is not Status.CREATED or not (misses or self.is_fenced)
            if status is Status.CREATED:
                self.told[engine.name].add(f"{engine.name}-{engine.orders}")
        called = engine.call()
        self.silent_ms[engine.name] = 0
        if called.status is Status.FENCED:
            assert self.is_fenced or misses
            self.is_fenced = True
        else:
            assert not (misses and called.status is Status.DONE)

    @rule(which=st.integers(0, ENGINES_MAX))
    def call(self, which: int) -> None:
        self.answer(self.live[which % len(self.live)])

    @rule(which=st.integers(0, ENGINES_MAX))
    def order(self, which: int) -> None:
        engine = self.live[which % len(self.live)]
        missed = {
            other.name: self.told[other.name] - self.kept()
            for other in self.live
            if self.told[other.name] - self.kept()
        }
        before = self.sale.dump()
        status = engine.order()
        if status is Status.CREATED:
            assert not self.is_fenced
            assert not missed
            self.told[engine.name].add(f"{engine.name}-{engine.orders}")
        else:
            assert status is (Status.FENCED if self.is_fenced else Status.NEW_SERVER)
            assert self.sale.dump() == before

    def kept(self) -> set[str]:
        """The orders that the server has."""
        names: list[bytes] = self.client.hkeys(self.sale.keys[3])  # type: ignore[assignment]
        return {name.decode() for name in names}

    # -- what happens to servers ----------------------------------------------------------------

    @rule(ms=st.sampled_from(STEPS), order=st.randoms(use_true_random=False))
    def wait(self, ms: int, order) -> None:  # type: ignore[no-untyped-def]
        self.sale.wait(ms)
        engines = list(self.live)
        order.shuffle(engines)
        for engine in engines:
            self.silent_ms[engine.name] += ms
            if self.silent_ms[engine.name] > BEAT_MS - max(STEPS):
                self.answer(engine)

    @rule(ms=st.sampled_from((-3_600_000, -LAPSE_MS, -WAIT_MS, -1)))
    def set_back_the_clock(self, ms: int) -> None:
        self.sale.wait(ms)

    @precondition(lambda self: not self.is_fenced)
    @rule()
    def keep_a_picture(self) -> None:
        found = self.sale.members()
        seen = {name: int(ms) for name, ms in found.items() if "_" not in name and ":" not in name}
        newest = max(seen.values(), default=0)
        members = frozenset(name for name, ms in seen.items() if newest - ms <= LAPSE_MS)
        beat, run_id = int(found.get("last_beat", 0)), run_id_of(self.sale.header("server"))
        self.pasts.append(Past(self.sale.picture(), members, beat, run_id))

    def another(self, but: str) -> str:
        """The run_id of a server that was just started, or by turns of one that was the master
        before and was not restarted since; not ``but``, for what it has now was its own once."""
        self.servers += 1
        before = [run_id for run_id in self.run_ids if run_id not in (self.sale.run_id, but)]
        if self.servers % 2 and before:
            return before[self.servers // 2 % len(before)]
        self.run_ids.append(f"server{self.servers}")
        return self.run_ids[-1]

    @rule()
    def restart(self) -> None:
        self.sale.restart(self.another(run_id_of(self.sale.header("server"))))

    @precondition(lambda self: self.pasts)
    @rule(which=st.integers(0, 9))
    def restart_with_a_loss(self, which: int) -> None:
        past = self.pasts[-1 - which % len(self.pasts)]
        if not self.is_known(past):
            return
        self.sale.restart(self.another(past.run_id), past.picture)
        self.is_fenced = False

    @precondition(lambda self: len(self.live) > 1 and not self.is_fenced)
    @rule(which=st.integers(0, ENGINES_MAX), other=st.integers(0, ENGINES_MAX))
    def lose_an_order(self, which: int, other: int) -> None:
        """What the other rules seldom come to in this order."""
        for engine in list(self.live):
            self.answer(engine)
        if self.is_fenced:
            return
        self.keep_a_picture()
        self.order(which)
        self.restart_with_a_loss(0)
        self.call(other)
        self.order(other)

    @precondition(lambda self: len(self.live) < ENGINES_MAX and not self.is_fenced)
    @rule(which=st.integers(0, ENGINES_MAX))
    def lose_a_newcomer(self, which: int) -> None:
        self.keep_a_picture()
        before = list(self.live)
        self.start_engine()
        self.order(len(self.live) - 1)
        seqs = [engine.seq for engine in before]
        for engine, seq in zip(before, seqs, strict=True):
            self.answer(engine)
            engine.seq = seq  # It was told that the other is there, and of nothing that it did.
        self.restart_with_a_loss(0)
        for engine in before:
            self.answer(engine)
        self.order(which % len(before))

    @precondition(lambda self: len(self.live) > 1 and not self.is_fenced)
    @rule(which=st.integers(0, ENGINES_MAX), orders=st.booleans())
    def lose_an_order_of_one_that_is_cut_off(self, which: int, *, orders: bool) -> None:
        """And sell past it before it is back."""
        for engine in list(self.live):
            self.answer(engine)
        if self.is_fenced:
            return
        self.keep_a_picture()
        lost = len(self.away)
        self.order(which)
        self.cut_off(which)
        self.restart_with_a_loss(0)
        self.in_the_end_it_sells_or_is_fenced()
        if not self.is_fenced:
            self.in_the_end_it_sells_or_is_fenced()
        self.come_back(lost, orders=orders)

    def is_known(self, past: Past) -> bool:
        """Whether somebody will know that there were engines which that server knows nothing of."""
        newcomers = [engine for engine in self.live if engine.name not in past.members]
        names = {engine.name for engine in self.live}
        if not any(self.told[engine.name] for engine in newcomers):
            return True
        if not past.members <= names or not past.members:
            return True  # Somebody will be waited for.
        return any(e.beat > past.beat for e in self.live if e.name in past.members)

    @precondition(lambda self: self.is_fenced)
    @rule()
    def rebuild(self) -> None:
        """Whatever is lost stays lost here; the seq is past all that anybody was told."""
        self.is_fenced = False
        seq = max(engine.seq for engine in (*self.live, *self.away)) + 1_000_000
        # Later than the one before, by whichever clock.
        made_ms = max(self.sale.now_ms, int(self.sale.made.rpartition(":")[2]) + 1)
        made = f"{self.sale.run_id}:{made_ms}"
        self.sale.set_header(made=made, server=name_of(self.sale.run_id), servers="")
        self.sale.set_header(state="open", seq=seq, founded_seq=seq)
        self.client.delete(self.sale.keys[6])
        self.pasts.clear()
        for orders in self.told.values():
            orders &= self.kept()  # Of what is gone everybody learns in some other way.

    @rule()
    def in_the_end_it_sells_or_is_fenced(self) -> None:
        for _ in range(2 * WAIT_MS // BEAT_MS + 2):
            for engine in list(self.live):
                self.answer(engine)
            self.sale.wait(BEAT_MS // 2)
        for engine in self.live:
            assert self.is_fenced or engine.order() is Status.CREATED
            if not self.is_fenced:
                self.told[engine.name].add(f"{engine.name}-{engine.orders}")


@pytest.mark.slow
def test_no_order_where_something_is_missing(client: redis.Redis) -> None:
    Restarts.client = client
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Restarts, settings=settings(max_examples=40, stateful_step_count=40, deadline=None)
    )
