"""A slice of the benchmark `http` does not count unless the books agree with the answers."""

from __future__ import annotations

import pytest

from benchmarks.http_books import Sold
from benchmarks.http_rig import INTAKE, NOOP, Case, Slice, Way, _check_books, _check_load
from benchmarks.load import Load

TOKENS = 80_000
IN_STOCK = Way(INTAKE, Case.IN_STOCK)


def found(
    way: Way,
    requests: int,
    *,
    refused: int = 0,
    failed: int = 0,
    bytes_in: int = 0,
    took_s: float = 1.0,
) -> Slice:
    load = Load(requests, took_s, refused, failed, 1.0, 2.0)
    return Slice(load, requests * way.orders_a_request, 0, 0.0, 0.0, 0, 0, bytes_in)


@pytest.mark.parametrize(
    ("case", "requests", "refused", "before", "after"),
    [
        (Case.IN_STOCK, 1_000, 0, Sold(0, 9_000), Sold(1_000, 8_000)),
        # 128 may be under way when the load ends.
        (Case.IN_STOCK, 1_000, 0, Sold(0, 9_000), Sold(1_128, 7_872)),
        (Case.BATCHES, 5, 0, Sold(0, 9_000), Sold(1_000, 8_000)),
        (Case.SOLD_OUT, 1_000, 1_000, Sold(1, 0), Sold(1, 0)),
        (Case.SELLING_OUT, 1_000, 700, Sold(0, 300), Sold(300, 0)),
    ],
)
def test_books_that_agree(
    case: str, requests: int, refused: int, before: Sold, after: Sold
) -> None:
    way = Way(INTAKE, case)
    part = found(way, requests, refused=refused)
    _check_load(way, part, TOKENS)
    _check_books(way, part, before, after)


@pytest.mark.parametrize(
    ("case", "requests", "refused", "before", "after", "what"),
    [
        (Case.IN_STOCK, 1_000, 0, Sold(0, 9_000), Sold(999, 8_001), "999 orders for 1000 answers"),
        (Case.IN_STOCK, 1_000, 0, Sold(0, 9_000), Sold(1_129, 7_871), "1129 orders"),
        (Case.IN_STOCK, 1_000, 0, Sold(0, 9_000), Sold(1_000, 8_001), "took 999 units"),
        (Case.SOLD_OUT, 1_000, 1_000, Sold(1, 0), Sold(2, -1), "left"),
        (Case.SELLING_OUT, 1_000, 700, Sold(0, 301), Sold(300, 1), "1 units left"),
    ],
)
def test_books_that_disagree(
    case: str, requests: int, refused: int, before: Sold, after: Sold, what: str
) -> None:
    way = Way(INTAKE, case)
    with pytest.raises(AssertionError, match=what):
        _check_books(way, found(way, requests, refused=refused), before, after)


@pytest.mark.parametrize(
    ("way", "part", "what"),
    [
        (IN_STOCK, found(IN_STOCK, 0), "no request was answered"),
        (IN_STOCK, found(IN_STOCK, 9, failed=1), "1 requests got no answer"),
        (IN_STOCK, found(IN_STOCK, 9, refused=1), "1 of 9 were refused"),
        (Way(NOOP, Case.SOLD_OUT), found(IN_STOCK, 9, refused=8), "8 of 9 were refused"),
        (Way(INTAKE, Case.SELLING_OUT), found(IN_STOCK, 9), "still something left"),
        (Way(INTAKE, Case.NEW), found(IN_STOCK, TOKENS + 1), "tokens were used twice"),
        # A slice always takes a little longer than it should.
        (Way(INTAKE, Case.NEW), found(IN_STOCK, TOKENS + 1, took_s=2.05), "tokens were used twice"),
        (
            Way(INTAKE, Case.SOLD_OUT),
            found(IN_STOCK, 10_000, refused=10_000, bytes_in=300_000),
            "300000 bytes for 10000 answers",
        ),
    ],
)
def test_a_load_that_did_not_go_as_it_should(way: Way, part: Slice, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        _check_load(way, part, TOKENS)
