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


STOPS = [
    (pause, Status.PAUSED),
    (end, Status.ENDED),
    (lambda sale: sale.close(), Status.ENDED),
    (lambda sale: sale.set_header(state="created"), Status.NOT_OPEN),
    (lambda sale: sale.set_header(opens_ms=sale.now_ms + 10**9), Status.NOT_OPEN),
]


@pytest.mark.parametrize(("stop", "status"), STOPS)
def test_nobody_is_called_while_nothing_is_sold(sale: QueueCore, stop, status: Status) -> None:  # type: ignore[no-untyped-def]
    sale.begin_queue(stock=10).crowd(100)
    head = sale.admit().head
    stop(sale)
    for _ in range(3):
        look = sale.admit()
        sale.travel(LIFE_MS)
        assert (look.refusal, look.head, look.waiting) == (status, head, 100 - head)
        # Nor does anybody's turn go by.
        assert (look.lapsed, look.live) == (0, head)


def test_after_a_pause_a_turn_is_as_long_as_it_was(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(100)
    (step,) = sale.admit().steps
    sale.travel(LIFE_MS - 1_000)
    sale.admit()
    sale.pause()
    sale.admit()
    sale.travel(5 * LIFE_MS)
    assert sale.admit().turn_ms == step.at_ms + LIFE_MS - 1_000
    sale.resume()
    assert sale.buy("b0", step) is Status.CREATED
    assert sale.admit().lapsed == 0
    sale.travel(999)
    assert sale.buy("b1", step) is Status.CREATED
    sale.travel(1)
    assert sale.buy("b2", step) is Status.TOKEN_EXPIRED
    assert sale.admit().lapsed == step.stop


def test_in_a_pause_nothing_is_saved_up(sale: QueueCore) -> None:
    sale.begin_queue(stock=100, rate=10).crowd(100)
    sale.travel(300)
    assert sale.admit().head == 3
    sale.pause()
    sale.admit()
    sale.travel(60_000)
    assert sale.admit().head == 3
    sale.resume()
    assert sale.admit().head == 3
    sale.travel(500)
    assert sale.admit().head == 8


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
    sale.jump(CLOCK_JUMP_MS + 1_000)
    look = sale.admit()
    assert (look.refusal, look.head, look.lapsed) == (Status.PAUSED, 15, 0)
    assert look.now_ms < look.raw_ms - CLOCK_JUMP_MS
    assert sale.expire().status is Status.CLOCK_JUMP
    assert sale.resume() is Status.DONE
    assert sale.buy("b1", step) is Status.CREATED
    look = sale.admit()
    assert (look.refusal, look.lapsed) == (0, 0)
    sale.travel(LIFE_MS)
    assert sale.admit().lapsed == 15


@pytest.mark.parametrize("away_ms", [60_000, CLOCK_JUMP_MS, CLOCK_JUMP_MS + 1_000])
def test_an_outage_takes_nobodys_turn(sale: QueueCore, away_ms: int) -> None:
    """No order is held, so the sale takes the clock's word for it. A turn does not."""
    sale.begin_queue(stock=10).crowd(100)
    (step,) = sale.admit().steps
    sale.jump(away_ms)
    assert sale.buy("b0", step) is Status.CREATED
    look = sale.admit()
    # Ten seconds in which somebody may have looked, and written nothing.
    assert (look.refusal, look.lapsed, look.turn_ms) == (0, 0, step.at_ms + 10_000)
    sale.travel(LIFE_MS - 10_001)
    assert sale.admit().lapsed == 0
    sale.travel(1)
    assert sale.admit().lapsed == 15


def test_a_quiet_queue_goes_on_when_the_clock_is_set_back(sale: QueueCore) -> None:
    sale.begin_queue(rate=1)
    sale.jump(-3_600_000)
    turn_ms = sale.admit().turn_ms
    sale.jump(500)
    assert sale.admit().turn_ms == turn_ms + 500


@pytest.mark.parametrize("back_ms", [500, 60_000, 10**9])
def test_a_clock_that_was_set_back_stops_nobody(sale: QueueCore, back_ms: int) -> None:
    sale.begin_queue(stock=10, rate=4).crowd(100)
    sale.travel(1_000)
    (step,) = sale.admit().steps
    assert step.stop == 4
    sale.jump(-back_ms)
    assert sale.buy("b0", step) is Status.CREATED
    look = sale.admit()
    assert (look.head, look.lapsed, look.live, look.turn_ms) == (4, 0, 3, step.at_ms)
    sale.travel(500)
    look = sale.admit()
    assert (look.head, look.turn_ms) == (6, step.at_ms + 500)
    sale.travel(LIFE_MS - 500)
    assert sale.admit().lapsed == 4


def test_a_quiet_hour_does_not_stop_the_clock(sale: QueueCore) -> None:
    """Nobody waits and nobody is called: the looks go on, and so does the time."""
    sale.begin_queue(stock=10, rate=1)
    began_ms = sale.admit().turn_ms
    for _ in range(100):
        sale.jump(900)
        sale.admit()
    assert sale.admit().turn_ms == began_ms + 90_000
