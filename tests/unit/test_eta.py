"""How long it takes: the arithmetic that queues and rehearsals share."""

from __future__ import annotations

import pytest

from seckill.eta import eta_ms, pace_per_s


def test_the_rate_is_the_pace_until_there_is_one() -> None:
    assert pace_per_s([], 0, 1_999, 20) == 20
    assert pace_per_s([(500, 10)], 0, 2_000, 20) == 5
    # Never faster than the merchant allows, as after a second that was saved up.
    assert pace_per_s([(500, 100)], 0, 2_000, 20) == 20


def test_what_was_before_people_waited_says_nothing() -> None:
    calls = [(1_000, 5), (601_000, 40)]
    assert pace_per_s(calls, 0, 602_000, 20) == pytest.approx(40 / 30)
    assert pace_per_s(calls, 600_000, 602_000, 20) == 20


def test_a_wait_is_the_turns_before_and_the_own_one() -> None:
    assert eta_ms(19, 20, 0, 0) == 1_000
    assert eta_ms(19, 20, 5_000, 0) == 6_000
    assert eta_ms(19, 0, 0, 0) is None
