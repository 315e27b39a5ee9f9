"""lua/lib/pace.lua: the arithmetic by itself, run by the server with nothing of Redis around it."""

from __future__ import annotations

from importlib import resources
from typing import Any

import msgspec
import pytest
import redis

from seckill.scripts import expand

LIFE_MS = 100_000
AGES = 10
NEW = 1 - 0.9**AGES
"""The chance of a token of which nothing is known: each of ten ages uses a tenth."""

_CALL = """
local pace, steps, name, a, b, c = unpack(cmsgpack.unpack(ARGV[1]))
local call = {
  chances_of = function() return outlook(pace, steps, a or 0).chances end,
  units_a_user = function() return units_a_user(pace) end,
  use_tokens = function() use_tokens(pace, steps[a], b) return 0 end,
  age_step = function() return age_step(pace, steps[a], b) end,
  outlook = function()
    local ahead = outlook(pace, steps, a)
    return { ahead.live, ahead.expected }
  end,
  pause_ms_of = function() return pause_ms_of(pace) end,
  credit_at = function() return credit_at(pace, a) end,
  call_count = function() return call_count(pace, outlook(pace, steps, a), a, b, c) end,
  take_step = function() take_step(pace, steps, outlook(pace, steps, a), a, b) return 0 end,
  take_and_look = function()
    local ahead = outlook(pace, steps, a)
    take_step(pace, steps, ahead, a, b)
    return { ahead.live, ahead.expected }
  end,
  reach_count = function() return reach_count(pace, outlook(pace, steps, a), b) end,
}
return cmsgpack.pack({ pace, steps, call[name]() })
"""


class Pace:
    """A pace and its live steps, as admit.lua has them while it looks."""

    def __init__(self, client: redis.Redis, **fields: Any) -> None:
        self.client = client
        self.pace: dict[str, Any] = {
            "life_ms": LIFE_MS,
            "rate_per_s": 0,
            "overbook_max": 20,
            "used": [0] * AGES,
            "risk": [0] * AGES,
            "users": 0,
            "units": 0,
            "credit": 0,
            "paced_ms": 0,
            "lapsed": False,
        } | fields
        self.steps: list[dict[str, Any]] = []
        self.source = expand("lib/pace", resources.files("seckill.lua")) + _CALL

    def __call__(self, name: str, *args: float) -> Any:
        packed = msgspec.msgpack.encode([self.pace, self.steps, name, *args])
        reply: Any = self.client.eval(self.source, 0, packed)
        self.pace, steps, answer = msgspec.msgpack.decode(reply)
        # An empty Lua table is an empty map and an empty list at once.
        self.steps = list(steps)
        return answer

    def call(self, now_ms: float, available: int, waiting: int = 1_000_000) -> int:
        """Calls as many as it wants to; how many."""
        count = int(self("call_count", now_ms, available, waiting))
        if count:
            self("take_step", now_ms, count)
        return count


@pytest.fixture
def pace(client: redis.Redis) -> Pace:
    return Pace(client)


def test_a_new_sale_expects_a_tenth_in_each_age(pace: Pace) -> None:
    chances = pace("chances_of")
    assert chances == pytest.approx([1 - 0.9 ** (AGES - age) for age in range(AGES + 1)])
    assert pace("units_a_user") == 1


def test_what_an_age_has_shown_counts_and_other_ages_keep_their_tenth(pace: Pace) -> None:
    pace.pace["risk"][0], pace.pace["used"][0] = 998, 499
    chances = pace("chances_of")
    assert chances[1] == pytest.approx(1 - 0.9**9)
    assert chances[0] == pytest.approx(1 - (1 - 499.2 / 1000) * (1 - chances[1]))


def test_nobody_is_sure_to_come(pace: Pace) -> None:
    pace.pace["risk"] = pace.pace["used"] = [10**6] * AGES
    chances = pace("chances_of")
    assert max(chances) <= 1
    assert chances[0] > 0.999_999


def test_units_a_buyer_are_those_of_first_orders(pace: Pace) -> None:
    pace.pace["users"], pace.pace["units"] = 9, 29
    assert pace("units_a_user") == 3


def test_a_step_ages_and_lapses_at_the_end_of_its_life(pace: Pace) -> None:
    pace("take_step", 5_000, 30)
    assert pace.steps == [{"at_ms": 5_000, "unused": 30, "age": 1}]
    assert pace.pace["risk"] == [30] + [0] * 9
    assert pace("age_step", 1, 5_000 + LIFE_MS // AGES - 1) is True
    assert pace.steps[0]["age"] == 1
    pace("use_tokens", 1, 10)
    assert (pace.steps[0]["unused"], pace.pace["used"][0]) == (20, 10)
    # All that it has passed since the last look counts, and with those who were left.
    assert pace("age_step", 1, 5_000 + 3 * LIFE_MS // AGES) is True
    assert (pace.steps[0]["age"], pace.pace["risk"]) == (4, [30, 20, 20, 20] + [0] * 6)
    assert pace("age_step", 1, 5_000 + LIFE_MS - 1) is True
    assert pace("age_step", 1, 5_000 + LIFE_MS) is False
    assert pace.pace["risk"] == [30] + [20] * 9


def test_a_clock_that_was_set_back_makes_no_step_younger(pace: Pace) -> None:
    pace("take_step", 50_000, 5)
    pace("age_step", 1, 75_000)
    before = pace.steps[0] | {}
    assert pace("age_step", 1, 10_000) is True
    assert pace.steps[0] == before
    live, expected = pace("outlook", 10_000)
    assert live == 5
    assert 0 < expected < 5


def test_more_uses_than_tokens_use_all_of_them(pace: Pace) -> None:
    pace("take_step", 0, 3)
    pace("use_tokens", 1, 5)
    assert (pace.steps[0]["unused"], pace.pace["used"][0]) == (0, 3)


def test_what_a_token_is_worth_falls_with_its_age(pace: Pace) -> None:
    pace("take_step", 0, 100)
    worth = []
    for now_ms in range(0, LIFE_MS, LIFE_MS // 40):
        pace("age_step", 1, now_ms)
        live, expected = pace("outlook", now_ms)
        assert live == 100
        worth.append(expected)
    assert worth[0] == pytest.approx(100 * NEW)
    assert worth == sorted(worth, reverse=True)
    assert worth[-1] < 3


# -- how many are called ------------------------------------------------------------------------


def test_the_first_call_is_for_the_stock_by_what_is_expected(pace: Pace) -> None:
    assert pace.call(0, 100) == int(100 / NEW)
    # It is for these units: nobody is taken for absent who has had no time to come.
    assert pace.call(1, 100) == 0
    pace("use_tokens", 1, 2)
    assert pace.call(1_000, 98) == 0
    # After a whole age in which hardly anybody came it looks otherwise.
    pace("age_step", 1, LIFE_MS // AGES)
    assert pace.call(LIFE_MS // AGES, 98) > 5


def test_the_part_of_an_age_that_is_still_to_come_is_not_held_against_anybody(pace: Pace) -> None:
    pace("take_step", 0, 1_000)
    for now_ms, used in ((1_000, 10), (5_000, 40), (9_999, 50)):
        pace("use_tokens", 1, used)
        # A tenth of the tokens in each whole age, as expected.
        assert pace("chances_of", now_ms)[0] == pytest.approx(NEW, rel=0.03)


@pytest.mark.parametrize(("available", "waiting"), [(0, 10), (-3, 10), (10, 0)])
def test_without_units_or_buyers_nobody_is_called(pace: Pace, available: int, waiting: int) -> None:
    assert pace("call_count", 0, available, waiting) == 0


def test_no_more_are_called_than_wait(pace: Pace) -> None:
    assert pace("call_count", 0, 100, 7) == 7


def test_buyers_of_many_units_are_called_one_by_one_at_the_end(pace: Pace) -> None:
    pace.pace["users"], pace.pace["units"] = 100, 1_000
    assert pace("call_count", 0, 2, 50) == 1
    pace("take_step", 0, 1)
    assert pace("call_count", 400, 2, 50) == 0


def test_no_shows_raise_the_number_up_to_the_bound(pace: Pace) -> None:
    pace.pace["risk"] = [10**6] * AGES
    assert pace("call_count", 0, 10, 10**6) == 200
    pace.pace["overbook_max"] = 3
    assert pace("call_count", 0, 10, 10**6) == 30


def test_those_who_would_have_come_long_since_do_not_count_against_the_bound(pace: Pace) -> None:
    """Whoever comes comes in the first age: nine in ten of the live tokens are worth nothing."""
    pace.pace["risk"] = [1_000] + [900] * 9
    pace.pace["used"] = [100] + [0] * 9
    pace.steps = [{"at_ms": 0, "unused": 200, "age": 5}]
    count = pace("call_count", 45_000, 10, 10**6)
    assert 85 <= count <= 100
    # Just called, they count in full.
    pace.steps = [{"at_ms": 45_000, "unused": 200, "age": 1}]
    assert pace("call_count", 45_000, 10, 10**6) == 0


def test_a_draw_never_calls_more_than_there_are_units(client: redis.Redis) -> None:
    pace = Pace(client, overbook_max=1)
    assert pace.call(0, 10) == 10
    pace.pace["risk"] = [10**6] * AGES
    pace.steps[0]["unused"] = 4
    for age in range(1, AGES + 1):
        pace.steps[0]["age"] = age
        # Also of tokens that nobody believes in any more each keeps its unit.
        assert pace("call_count", 1_000, 10, 99) == 6
        assert pace("call_count", 1_000, 4, 99) == 0


def test_where_few_come_the_last_unit_does_not_wait_for_luck(client: redis.Redis) -> None:
    pace = Pace(client, risk=[1_000] * AGES, used=[10] * AGES)
    chance = pace("chances_of")[0]
    assert chance < 0.12
    assert pace("call_count", 0, 10, 10**6) == int(10 / chance)
    pace.pace["lapsed"] = True
    # Three deviations of the number of those who come, or thereabouts.
    called = pace("call_count", 0, 10, 10**6)
    assert called * chance == pytest.approx(10 + 3 * (10 * (1 - 2 * chance)) ** 0.5, abs=0.2)
    assert pace("reach_count", 0, 10) == pytest.approx(called, abs=1)
    # And never more than the bound.
    assert pace("call_count", 0, 1, 10**6) == 20
    pace.pace["overbook_max"] = 1
    assert pace("call_count", 0, 10, 10**6) == 10


def test_where_half_come_nobody_is_called_for_luck(client: redis.Redis) -> None:
    pace = Pace(client, risk=[1_000] * AGES, used=[80] * AGES, lapsed=True)
    chance = pace("chances_of")[0]
    assert chance > 0.5
    assert pace("call_count", 0, 10, 10**6) == int(10 / chance)


def test_a_step_that_is_over_has_lapsed(pace: Pace) -> None:
    pace("take_step", 0, 3)
    assert pace("age_step", 1, LIFE_MS - 1) is True
    assert pace.pace["lapsed"] is False
    assert pace("age_step", 1, LIFE_MS) is False
    assert pace.pace["lapsed"] is True


def test_somebody_is_called_as_soon_as_nobody_else_could_buy(pace: Pace) -> None:
    pace.pace["users"], pace.pace["units"] = 1, 10**6
    assert pace("call_count", 0, 1, 1) == 1


def test_what_a_step_changes_needs_no_second_look(pace: Pace) -> None:
    pace.pace["used"], pace.pace["risk"] = [30, 9, 4, 1] + [0] * 6, [100, 70, 61, 57] + [0] * 6
    for age, unused in ((4, 20), (2, 30), (1, 5)):
        pace.steps.append({"at_ms": 40_000 - age * 9_000, "unused": unused, "age": age})
    told = pace("take_and_look", 40_000, 12)
    assert told == pytest.approx(pace("outlook", 40_000))
    assert told[0] == 67


# -- the rate -----------------------------------------------------------------------------------


def test_the_rate_bounds_every_call_and_saves_up_a_second(client: redis.Redis) -> None:
    pace = Pace(client, rate_per_s=10)
    assert pace.call(50, 10**6) == 0
    assert pace.call(1_000, 10**6) == 10
    assert pace.call(1_250, 10**6) == 2
    # What was left over, half a token, is not lost.
    assert pace.call(1_300, 10**6) == 1
    assert pace.call(60_000, 10**6) == 10


def test_a_rate_of_one_in_a_second(client: redis.Redis) -> None:
    pace = Pace(client, rate_per_s=1)
    called = [pace.call(at_ms, 10**6) for at_ms in range(0, 10_001, 200)]
    assert sum(called) == 10
    assert set(called) == {0, 1}


@pytest.mark.parametrize("life_ms", [1_000, 60_000, 600_000, 86_400_000])
def test_the_rate_is_met_whatever_the_life(client: redis.Redis, life_ms: int) -> None:
    """Long lives have few steps, so more are called in each: the rate is the same."""
    pace = Pace(client, rate_per_s=100, life_ms=life_ms)
    pause_ms = pace("pause_ms_of")
    assert pause_ms >= 200
    assert life_ms / pause_ms <= 256
    called = sum(pace.call(pause_ms * look, 10**9) for look in range(1, 21))
    assert called == pytest.approx(100 * 20 * pause_ms / 1_000, abs=1)


def test_a_clock_that_was_set_back_takes_no_credit(client: redis.Redis) -> None:
    pace = Pace(client, rate_per_s=10, paced_ms=50_000, credit=3)
    assert pace("credit_at", 10_000) == 3


def test_without_a_rate_all_are_called_at_once(pace: Pace) -> None:
    assert pace.call(0, 10**6, 10**7) == int(10**6 / NEW)
    assert pace.pace["credit"] == 0


# -- who is told that it is unlikely ------------------------------------------------------------


def test_reach_is_at_best_until_a_life_was_seen(pace: Pace) -> None:
    pace("take_step", 0, 15)
    assert pace("reach_count", 0, 10) == 10 * 20 - 15
    pace.pace["risk"] = [100] * AGES
    pace.pace["used"] = [5] * AGES
    chance = pace("chances_of")[0]
    expected = pace("outlook", 0)[1]
    assert pace("reach_count", 0, 10) == pytest.approx((10 - expected) / chance, abs=1)
    assert pace("reach_count", 0, 0) == 0


def test_the_reach_of_a_draw_is_its_units(client: redis.Redis) -> None:
    pace = Pace(client, overbook_max=1)
    pace.pace["risk"] = [100] * AGES
    pace("take_step", 0, 4)
    assert pace("reach_count", 0, 10) == 6
    assert pace("reach_count", 0, 3) == 0
