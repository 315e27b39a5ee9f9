"""admit.lua while nothing is sold, and when the clock is wrong: nobody is called, none twice."""

from __future__ import annotations

import pytest
import redis

from seckill.status import Status
from tests.lua.core import CLOCK_JUMP_MS
from tests.lua.queue_core import LIFE_MS, QueueCore


@pytest.fixture
def sale(client: redis.Redis) -> QueueCore:
    return QueueCore(client)


def pause(sale: QueueCore) -> None:
    sale.pause()


def end(sale: QueueCore) -> None:
    sale.set_header(ends_ms=sale.now_ms)


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (pause, Status.PAUSED),
        (end, Status.ENDED),
        (lambda sale: sale.close(), Status.ENDED),
        (lambda sale: sale.set_header(state="created"), Status.NOT_OPEN),
        (lambda sale: sale.set_header(opens_ms=sale.now_ms + 1), Status.NOT_OPEN),
    ],
)
def test_nobody_is_called_while_nothing_is_sold(sale: QueueCore, stop, status: Status) -> None:  # type: ignore[no-untyped-def]
    sale.begin_queue(stock=10).crowd(100)
    head = sale.admit().head
    sale.travel(LIFE_MS)
    stop(sale)
    look = sale.admit()
    assert (look.refusal, look.head, look.waiting) == (status, head, 100 - head)
    # Turns go by all the same.
    assert (look.lapsed, look.live) == (head, 0)


def test_the_line_goes_on_after_a_pause_with_a_seconds_worth(sale: QueueCore) -> None:
    sale.begin_queue(stock=100, rate=10).crowd(100)
    sale.pause()
    sale.travel(60_000)
    assert sale.admit().head == 0
    sale.resume()
    assert sale.admit().head == 10


def test_before_the_start_nothing_is_saved_up(sale: QueueCore) -> None:
    sale.begin_queue(stock=100, rate=10, opens_in_ms=60_000).crowd(100)
    sale.travel(60_000)
    assert sale.admit().head == 0
    sale.travel(500)
    assert sale.admit().head == 5


def test_a_clock_that_jumped_calls_nobody_and_lets_nobody_lapse(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(100)
    (step,) = sale.admit().steps
    assert sale.buy("b0", step) is Status.CREATED
    sale.rewind(CLOCK_JUMP_MS + 1_000)
    look = sale.admit()
    assert (look.refusal, look.head, look.lapsed) == (Status.PAUSED, 15, 0)
    assert look.now_ms < look.raw_ms - CLOCK_JUMP_MS
    assert sale.expire().status is Status.CLOCK_JUMP
    assert sale.resume() is Status.DONE
    look = sale.admit()
    assert (look.refusal, look.lapsed) == (0, 15)
    assert look.head > 15


def test_an_idle_hour_without_holds_is_time_that_passed(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(100)
    sale.admit()
    sale.rewind(CLOCK_JUMP_MS + 1_000)
    look = sale.admit()
    assert (look.refusal, look.lapsed) == (0, 15)
    assert look.head > 15


def test_a_clock_that_was_set_back_calls_nobody_twice(sale: QueueCore) -> None:
    sale.begin_queue(stock=10, rate=100).crowd(100)
    sale.travel(1_000)
    head = sale.admit().head
    sale.set_header(last_ms=sale.now_ms - 60_000)
    look = sale.admit()
    assert (look.head, look.lapsed, look.live) == (head, 0, head)
    sale.set_header(last_ms=sale.now_ms)
    sale.travel(LIFE_MS)
    assert sale.admit().lapsed == head
