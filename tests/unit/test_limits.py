"""The limiter against a naive twin that never forgets, and its memory."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seckill.errors import InvalidInput
from seckill.server.limits import Limiter

# Powers of two, so that floats are exact and the twin must agree to the last bit.
RATES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0])
TICK_S = 1 / 16


class Buckets:
    """Token buckets as the textbook has them, one for each key there ever was."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.per_s = Fraction(per_s)
        self.burst = burst
        self.tokens: dict[str, Fraction] = {}
        self.seen_s: dict[str, Fraction] = {}

    def take(self, key: str, now_s: float) -> float:
        now = Fraction(now_s)
        grown = (now - self.seen_s.get(key, now)) * self.per_s
        tokens = min(Fraction(self.burst), self.tokens.get(key, Fraction(self.burst)) + grown)
        self.seen_s[key] = now
        if tokens >= 1:
            self.tokens[key] = tokens - 1
            return 0.0
        self.tokens[key] = tokens
        return float((1 - tokens) / self.per_s)


# Steps in eighths of the time that one request takes up. The short ones keep a bucket empty until
# its generation ends, the long ones let several end.
STEPS = st.lists(
    st.tuples(st.integers(0, 12) | st.integers(0, 120), st.sampled_from("aaab")),
    min_size=20,
    max_size=200,
)


@settings(max_examples=400, deadline=None)
@given(RATES, st.integers(1, 6), st.integers(0, 1 << 20), STEPS)
def test_it_answers_like_token_buckets_that_are_never_forgotten(
    per_s: float, burst: int, start_s: int, steps: list[tuple[int, str]]
) -> None:
    limiter, twin = Limiter(per_s, burst), Buckets(per_s, burst)
    now_s = float(start_s)
    for eighths, key in steps:
        now_s += eighths / 8 / per_s
        assert limiter.take(key, now_s) == twin.take(key, now_s)


def test_a_burst_is_remembered_whenever_it_falls_into_a_generation() -> None:
    burst = 4
    for at in range(4 * burst):
        for later in range(1, 4 * burst):
            limiter, twin = Limiter(1.0, burst), Buckets(1.0, burst)
            # Somebody else asks all the time, so that generations end as early as they can.
            for quarter in range(at + later):
                limiter.take("b", quarter / 4)
                if quarter == at:
                    for _ in range(burst):
                        assert limiter.take("a", at / 4) == twin.take("a", at / 4) == 0.0
            now_s = (at + later) / 4
            for _ in range(burst):
                assert limiter.take("a", now_s) == twin.take("a", now_s)


@given(RATES, st.integers(1, 6), st.lists(st.integers(0, 40), max_size=60))
def test_who_waits_as_told_is_let_through(per_s: float, burst: int, steps: list[int]) -> None:
    limiter, now_s = Limiter(per_s, burst), 0.0
    for ticks in steps:
        now_s += ticks * TICK_S
        if wait_s := limiter.take("a", now_s):
            # A moment earlier is too early.
            assert limiter.take("a", now_s + wait_s - TICK_S / 64)
            now_s += wait_s
            assert limiter.take("a", now_s) == 0.0


def test_a_refusal_costs_nothing() -> None:
    limiter = Limiter(1.0, 1)
    served = sum(limiter.take("a", n / 100) == 0.0 for n in range(1_001))
    assert served == 11


def test_the_first_request_is_let_through_at_any_time() -> None:
    for now_s in (0.0, 1e-9, 1e9):
        assert Limiter(5.0, 1).take("a", now_s) == 0.0


def test_a_million_keys_at_once_stay_within_keys_max() -> None:
    limiter = Limiter(0.001, 1, keys_max=20_000)
    most = 0
    for n in range(1_000_000):
        if n == 950_000:
            # What is held in the end was made after this; to trace it all takes ten times as long.
            tracemalloc.start()
        limiter.take(f"{n:024}", n * 1e-6)
        most = max(most, len(limiter))
    bytes_held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most == 20_000
    # Two generations with their keys, numbers and tables.
    assert bytes_held < 20_000 * 300
    # The latest are remembered, the others are as good as new, and nobody was refused.
    assert limiter.take(f"{999_999:024}", 1.0) > 0
    assert limiter.take(f"{990_001:024}", 1.0) > 0
    assert limiter.take(f"{900_000:024}", 1.0) == 0.0


def test_a_million_keys_one_after_the_other_leave_nothing_behind() -> None:
    limiter = Limiter(10.0, 2)
    most = 0
    # A thousand keys a second, and a key is worth something for 0.2 s.
    for n in range(1_000_000):
        assert limiter.take(str(n), n / 1_000) == 0.0
        most = max(most, len(limiter))
    assert most <= 2 * 200 + 2


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("per_s", (0.0, 1)),
        ("per_s", (-1.0, 1)),
        ("per_s", (inf, 1)),
        ("per_s", (nan, 1)),
        ("burst", (1.0, 0)),
        ("keys_max", (1.0, 1, 1)),
    ],
)
def test_what_is_no_limit_is_refused(field: str, arguments: tuple[float, int, int]) -> None:
    per_s, burst, *rest = arguments
    with pytest.raises(InvalidInput) as caught:
        Limiter(per_s, burst, **({"keys_max": rest[0]} if rest else {}))
    assert caught.value.field == field
