"""admit.lua: who is called, when, and what is told of the queue. The clock is the test's own."""

from __future__ import annotations

import pytest
import redis

from seckill.status import Status
from tests.lua.core import HOLD_MS
from tests.lua.queue_core import LIFE_MS, PAUSE_MS, QueueCore, Step


@pytest.fixture
def sale(client: redis.Redis) -> QueueCore:
    return QueueCore(client)


def pass_lives(sale: QueueCore, lives: int = 1) -> None:
    """Time in which every age of every token is looked at, as engines do."""
    for _ in range(lives * 10):
        sale.travel(LIFE_MS // 10)
        sale.admit()


def test_the_first_look_calls_the_first_in_line(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(100)
    look = sale.admit()
    assert look.steps == [Step(1, 0, 15, sale.now_ms)]
    assert (look.status, look.refusal, look.now_ms) == (Status.DONE, 0, sale.now_ms)
    assert (look.head, look.tail, look.lapsed, look.waiting) == (15, 100, 0, 85)
    assert (look.available, look.held, look.live, look.lapses) == (10, 0, 15, 0)
    assert (look.next, look.closed, look.ranked, look.keys) == (100, -1, -1, "k1,k2")


def test_looking_again_at_the_same_moment_changes_nothing(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(100)
    first = sale.admit()
    before = sale.dump()
    assert sale.admit()._replace(raw_ms=0, reach=0) == first._replace(raw_ms=0, reach=0)
    assert sale.dump() == before


def test_only_news_are_told(sale: QueueCore) -> None:
    sale.begin_queue(stock=10, rate=10).crowd(100)
    for _ in range(3):
        sale.travel(PAUSE_MS)
        sale.admit()
    assert [step.number for step in sale.admit(0).steps] == [1, 2, 3]
    assert [step.number for step in sale.admit(2).steps] == [3]
    assert sale.admit(3).steps == []


def test_steps_follow_each_other_without_a_gap(sale: QueueCore) -> None:
    sale.begin_queue(stock=20, rate=5).crowd(60)
    seen: dict[int, Step] = {}
    for _ in range(100):
        sale.travel(PAUSE_MS)
        for step in sale.admit(len(seen)).steps:
            seen[step.number] = step
    steps = list(seen.values())
    assert [step.start for step in steps] == [0, *(step.stop for step in steps[:-1])]
    assert all(step.start < step.stop for step in steps)


def test_between_two_steps_time_passes(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(100)
    (step,) = sale.admit().steps
    for i in range(10):
        assert sale.buy(f"b{i}", step) is Status.CREATED
        sale.release(f"o-b{i}")
    sale.leave("b10")
    sale.travel(LIFE_MS // 256)
    assert sale.admit().head == 15
    sale.travel(1)
    assert sale.admit().head > 15


@pytest.mark.parametrize("life_ms", [1_000, LIFE_MS, 86_400_000])
def test_the_work_of_a_look_is_bounded(sale: QueueCore, life_ms: int) -> None:
    """However long tokens live, there are at most 257 steps to look at."""
    sale.begin_queue(stock=5_000, rate=1_000_000, life_ms=life_ms, overbook=100)
    sale.set_header(ends_ms=2**50)
    sale.crowd(600)
    for _ in range(300):
        sale.join(*[f"n{sale.now_ms}-{i}" for i in range(3)])
        sale.travel(max(200, life_ms // 256 + 1))
        sale.admit()
    assert int(sale.client.hlen(sale.queue_keys[2])) <= 257  # type: ignore[arg-type]


# -- a token's life -----------------------------------------------------------------------------


def test_life_counts_from_the_step_and_looking_does_not_renew_it(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(12)
    (step,) = sale.admit().steps
    for _ in range(99):
        sale.travel(LIFE_MS // 100)
        assert sale.admit().steps[0] == step
    assert sale.buy("b3", step) is Status.CREATED
    sale.travel(LIFE_MS // 100 - 1)
    assert sale.admit().lapsed == 0
    assert sale.buy("b4", step) is Status.CREATED
    sale.travel(1)
    assert sale.buy("b5", step) is Status.TOKEN_EXPIRED
    look = sale.admit()
    assert (look.lapsed, look.lapses, look.live, look.steps) == (12, 10, 0, [])


def test_a_token_that_lapsed_before_anybody_looked_is_no_better(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(12)
    (step,) = sale.admit().steps
    sale.travel(LIFE_MS)
    assert sale.buy("b0", step) is Status.TOKEN_EXPIRED
    assert sale.buy("b0", step._replace(at_ms=-LIFE_MS)) is Status.TOKEN_NEEDED


def test_uses_count_once_a_buyer(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(12)
    (step,) = sale.admit().steps
    for order, cart in (("o1", "0:2"), ("o2", "0"), ("o1", "0:2")):
        sale.buy("b0", step, order=order, cart=cart)
    assert sale.step_text("1:u") == "1"
    assert (sale.queue_field("users"), sale.queue_field("units")) == ("1", "2")
    # An order that ends as it may: the buyer has come.
    sale.release("o1")
    assert sale.admit().live == 11
    assert sale.step_text("1:u") is None
    sale.buy("b0", step, order="o3")
    assert sale.admit().live == 11


def test_what_was_refused_is_no_use(sale: QueueCore) -> None:
    sale.begin_queue(stock=1).crowd(3)
    (step,) = sale.admit().steps
    assert sale.buy("b0", step, cart="0:2") is Status.INSUFFICIENT
    assert (sale.queue_field("users"), sale.step_text("1:u")) == ("0", None)


def test_a_use_after_the_step_was_counted_leaves_nothing_behind(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(12)
    (step,) = sale.admit().steps
    sale.travel(LIFE_MS)
    sale.admit()
    assert sale.buy("b0", step._replace(at_ms=sale.now_ms)) is Status.CREATED
    assert sale.dump()["steps"] is None
    assert sale.queue_field("users") == "1"


# -- the line moves on --------------------------------------------------------------------------


def test_lapsed_turns_go_to_the_next(sale: QueueCore) -> None:
    sale.begin_queue(stock=2).crowd(300)
    heads = [sale.admit().head]
    for _ in range(4):
        sale.travel(LIFE_MS)
        heads.append(sale.admit().head)
    assert heads == sorted(set(heads))
    # Nobody comes, so more are called for the same two units.
    assert heads[4] - heads[3] > heads[1] - heads[0]


def test_sold_out_calls_nobody_and_a_returned_unit_calls_the_next_in_line(sale: QueueCore) -> None:
    sale.begin_queue(stock=2).crowd(10)
    (step,) = sale.admit().steps
    assert sale.buy("b0", step) is sale.buy("b1", step) is Status.CREATED
    sale.travel(LIFE_MS)
    look = sale.admit()
    assert (look.available, look.held, look.head) == (0, 2, step.stop)
    # Somebody new joins, and then a unit comes back: it is not for them.
    sale.join("newcomer")
    sale.release("o-b0")
    sale.travel(PAUSE_MS)
    look = sale.admit(step.number)
    assert look.steps[0].start == step.stop
    assert look.head < look.tail


def test_expired_holds_and_added_stock_call_the_next_too(sale: QueueCore) -> None:
    sale.begin_queue(stock=1).crowd(50)
    (step,) = sale.admit().steps
    assert sale.buy("b0", step) is Status.CREATED
    sale.travel(max(LIFE_MS, HOLD_MS))
    assert sale.admit().head == step.stop
    assert sale.expire().expired == 1
    head = sale.admit().head
    assert head > step.stop
    sale.travel(PAUSE_MS)
    assert sale.admit().head == head
    sale.add_stock(0, 10)
    assert sale.admit().head > head


def test_all_skus_count_together(sale: QueueCore) -> None:
    sale.begin_queue(stock=(0, 4, 6)).crowd(40)
    look = sale.admit()
    assert (look.available, look.head) == (10, 15)


def test_stock_that_went_below_zero_is_no_stock(sale: QueueCore) -> None:
    sale.begin_queue(stock=(5, 5)).crowd(40)
    sale.client.hset(sale.keys[1], "0:available", -3)
    assert sale.admit().available == 5


def test_the_rate_is_kept_and_a_second_is_saved_up(sale: QueueCore) -> None:
    sale.begin_queue(stock=1_000, rate=10).crowd(200)
    assert sale.admit().head == 0
    heads = []
    for _ in range(20):
        sale.travel(500)
        heads.append(sale.admit().head)
    assert heads == list(range(5, 101, 5))
    sale.travel(60_000)
    assert sale.admit().head == 110


def test_a_token_a_second(sale: QueueCore) -> None:
    sale.begin_queue(stock=100, rate=1).crowd(20)
    for second in range(1, 11):
        sale.travel(600)
        sale.admit()
        sale.travel(400)
        assert sale.admit().head == second


def test_no_shows_are_made_up_for_within_the_bound(sale: QueueCore) -> None:
    sale.begin_queue(stock=10, overbook=3).crowd(1_000)
    sale.admit()
    pass_lives(sale, 4)
    look = sale.admit()
    assert look.live > 15
    # By the end nobody believes that anybody comes, and still there are not more for each unit.
    assert max(step.stop - step.start for step in look.steps) <= 30


def test_a_draw_calls_one_a_unit_and_the_next_when_they_lapse(sale: QueueCore) -> None:
    sale.begin_queue("draw", stock=5, overbook=1, draw_in_ms=1_000).crowd(30)
    sale.travel(1_000)
    assert sale.admit().head == 0
    sale.rank(range(30), closed=30)
    (step,) = sale.admit().steps
    assert (step.start, step.stop) == (0, 5)
    for _ in range(9):
        sale.travel(LIFE_MS // 10)
        assert sale.admit().head == 5
    assert sale.buy("b0", step) is Status.CREATED
    sale.travel(LIFE_MS // 10)
    look = sale.admit()
    assert (look.lapsed, look.lapses, look.head, look.live) == (5, 4, 9, 4)


# -- given up places ----------------------------------------------------------------------------


def test_left_places_are_passed_over_and_not_counted(sale: QueueCore) -> None:
    sale.begin_queue(stock=10).crowd(40)
    for i in (0, 1, 5, 14, 15, 16, 39):
        sale.leave(f"b{i}")
    look = sale.admit()
    # Fifteen are called, of 0 … 20: six of those are gone.
    assert (look.live, look.head, look.waiting) == (15, 21, 18)
    assert sale.left() == [39]


def test_all_have_left(sale: QueueCore) -> None:
    sale.begin_queue(stock=10)
    for buyer in sale.crowd(5):
        sale.leave(buyer)
    look = sale.admit()
    assert (look.head, look.waiting, look.live) == (0, 0, 0)
    sale.join("new")
    look = sale.admit()
    assert (look.head, look.waiting, look.live, look.steps[0].start) == (6, 0, 1, 0)


def leave_at_once(sale: QueueCore, positions: range) -> None:
    sale.client.zadd(sale.queue_keys[3], {str(at): at for at in positions})


def test_thousands_of_left_places_are_passed_over_look_by_look(sale: QueueCore) -> None:
    sale.begin_queue(stock=2).crowd(5_000)
    leave_at_once(sale, range(4_500))
    looks = [sale.admit() for _ in range(5)]
    # No step is made of places where nobody stands, so nobody waits for the next one.
    assert [look.head for look in looks] == [1_000, 2_000, 3_000, 4_000, 4_503]
    assert [look.live for look in looks] == [0, 0, 0, 0, 3]
    assert {look.waiting for look in looks[:4]} == {500}
    assert (looks[4].waiting, sale.left()) == (497, [])
    assert looks[4].steps == [Step(1, 4_000, 4_503, sale.now_ms)]


def test_a_thousand_left_places_between_those_who_wait(sale: QueueCore) -> None:
    sale.begin_queue(stock=1_000).crowd(5_000)
    leave_at_once(sale, range(1, 5_000, 2))
    called = 0
    for _ in range(3):
        look = sale.admit()
        called += look.steps[-1].stop - look.steps[-1].start
        assert look.head - len(range(1, look.head, 2)) == look.live
        sale.travel(PAUSE_MS)
    assert look.live >= 1_500


# -- what is told -------------------------------------------------------------------------------


def test_reach_says_whom_the_stock_can_still_serve(sale: QueueCore) -> None:
    sale.begin_queue(stock=2, overbook=5).crowd(100)
    assert sale.admit().reach == 2 * 5 - 3
    pass_lives(sale, 3)
    far = sale.admit().reach
    assert far > 10
    (step, *_) = reversed(sale.admit().steps)
    for i in range(step.start, step.start + 2):
        assert sale.buy(f"b{i}", step) is Status.CREATED
        sale.confirm(f"o-b{i}", "p")
    look = sale.admit()
    assert (look.available, look.held, look.reach) == (0, 0, 0)


@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        (lambda _: None, Status.UNKNOWN_SALE),
        (lambda sale: setattr(sale.begin_queue(), "format", 2), Status.UPGRADE_NEEDED),
        (lambda sale: setattr(sale.begin_queue(), "definition_id", "x"), Status.STALE_DEFINITION),
        (lambda sale: sale.begin(), Status.NO_QUEUE),
    ],
)
def test_refusals_write_nothing(sale: QueueCore, prepare, status: Status) -> None:  # type: ignore[no-untyped-def]
    prepare(sale)
    before = sale.dump()
    assert sale.admit_raw() == [status]
    assert sale.dump() == before
