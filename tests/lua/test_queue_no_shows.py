"""Nine in ten of those who are called never show up: the sale sells out all the same, within three
token lives of the ideal. The real scripts, on a clock that the test moves."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
import redis

from seckill.status import Status
from tests.lua.core import Wish
from tests.lua.queue_core import LIFE_MS, QueueCore, Step

# What the pace makes of chance is arithmetic of the scripts, the same in every Redis.
pytestmark = pytest.mark.once

SHOW = 0.1
LOOK_MS = 1_000

Arrival = Callable[[random.Random], float]
"""How long after the call somebody orders, in ms; whoever takes longer than a life has lapsed."""


def uniform(chance: random.Random) -> float:
    return chance.uniform(0, LIFE_MS)


def early(chance: random.Random) -> float:
    """One in twenty of those who come is still to come after fifteen hundredths of a life."""
    return chance.expovariate(20 / LIFE_MS)


def late(chance: random.Random) -> float:
    return chance.uniform(0.9 * LIFE_MS, LIFE_MS)


class Evening:
    """A sale of which some of the called buy one unit each, and pay at once."""

    def __init__(self, sale: QueueCore, units: int, rate: int, arrival: Arrival, seed: int) -> None:
        self.sale, self.units, self.arrival = sale, units, arrival
        self.chance = random.Random(seed)
        self.coming: list[tuple[float, int, Step]] = []
        self.known = self.sold = 0
        sale.begin_queue(stock=units, rate=rate)
        sale.crowd(units * 14 + 400)

    def sell_out(self, most_ms: float) -> float:
        """Token lives until the last unit is sold; infinite when that takes too long."""
        began_ms = self.sale.now_ms
        while self.sold < self.units:
            if self.sale.now_ms - began_ms > most_ms:
                return float("inf")
            self._look()
            self.sale.travel(LOOK_MS)
            self._buy()
        return (self.sale.now_ms - began_ms) / LIFE_MS

    def _look(self) -> None:
        for step in self.sale.admit(self.known).steps:
            self.known = step.number
            for position in range(step.start, step.stop):
                after_ms = self.arrival(self.chance)
                if self.chance.random() < SHOW and after_ms < LIFE_MS:
                    heapq.heappush(self.coming, (step.at_ms + after_ms, position, step))

    def _buy(self) -> None:
        wishes = []
        while self.coming and self.coming[0][0] <= self.sale.now_ms:
            _, position, step = heapq.heappop(self.coming)
            # They came in time, the test's clock just has not stood still for each of them.
            until_ms = step.at_ms + LIFE_MS + LOOK_MS
            turn = (step.number, until_ms, position)
            wishes.append(Wish(f"o{position}", f"b{position}", turn=turn))
        if wishes:
            answers = self.sale.reserve(*wishes)
            assert set(answers) <= {Status.CREATED, Status.SOLD_OUT}
            self.sold += answers.count(Status.CREATED)


CASES = [
    (10, 1), (10, 1_000), (30, 1_000), (100, 10), (100, 1_000), (1_000, 100), (1_000, 1_000)
]  # fmt: skip


# Without the margin of lib/pace the last of 10 units takes until 3.8 and 5 lives with these seeds.
UNLUCKY = [(10, 1_000, uniform, seed) for seed in (15, 42, 53)]


@pytest.mark.parametrize(("units", "rate", "arrival", "seed"), UNLUCKY)
def test_the_last_unit_does_not_wait_for_luck(
    client: redis.Redis, units: int, rate: int, arrival: Arrival, seed: int
) -> None:
    evening = Evening(QueueCore(client), units, rate, arrival, seed)
    assert evening.sell_out(9 * LIFE_MS) <= 3


@pytest.mark.parametrize("arrival", [uniform, early, late])
@pytest.mark.parametrize(("units", "rate"), CASES)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_it_sells_out_within_three_lives_of_the_ideal(
    client: redis.Redis, units: int, rate: int, arrival: Arrival, seed: int
) -> None:
    ideal = units / (SHOW * rate) * 1_000 / LIFE_MS
    evening = Evening(QueueCore(client), units, rate, arrival, seed)
    lives = evening.sell_out((ideal + 4) * LIFE_MS)
    print(f"{units} units, {rate}/s, {arrival.__name__}: {lives:.2f} lives, ideal {ideal:.2f}")
    assert lives <= ideal + 3
    assert evening.sale.stock()[0] == 0
