"""The histogram against the naive one, and its price's reason: nothing is kept but the counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.tally import Histogram

VALUES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.99, 4.0, 4.01, 1e9]))


@given(VALUES)
def test_it_counts_as_prometheus_does(values: list[float]) -> None:
    """A value on a bound belongs below it, as Prometheus's ``le`` says."""
    histogram = Histogram((1, 2, 4))
    for value in values:
        histogram.add(value)
    for index, bound in enumerate(histogram.bounds):
        up_to = sum(histogram.counts[: index + 1])
        assert up_to == sum(value <= bound for value in values)
    assert histogram.total == len(values)
    assert histogram.sum == sum(values)


@given(VALUES, VALUES)
def test_what_was_counted_elsewhere_is_added(here: list[float], there: list[float]) -> None:
    one, other, both = (Histogram((1, 2, 4)) for _ in range(3))
    for value in here:
        one.add(value)
    for value in there:
        other.add(value)
    for value in here + there:
        both.add(value)
    one.grow(other.counts, other.sum)
    assert one.counts == both.counts
    assert one.sum == pytest.approx(both.sum)


@pytest.mark.parametrize("bounds", [(), (1, 1), (2, 1), (1, 2, 2)])
def test_bounds_ascend(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Histogram(bounds)
