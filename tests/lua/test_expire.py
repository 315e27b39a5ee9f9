"""expire.lua: the sweep over the two deadline queues."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import CLOCK_JUMP_MS, HOLD_MS, PAY_MS, Core, Wish, header_answers
from tests.lua.test_fence import fenced


def upgrade_needed(core: Core) -> Status:
    core.begin().format = 2
    return core.expire().status


def clock_jump(core: Core) -> Status:
    core.begin().hold()
    core.rewind(CLOCK_JUMP_MS + 1_000)
    return core.expire().status


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core.expire().status,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: lambda core: fenced(core.begin()).expire().status,
    Status.NEW_SERVER: lambda core: core.begin().elsewhere().expire().status,
    Status.CLOCK_JUMP: clock_jump,
    Status.DONE: lambda core: core.begin().expire().status,
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status
    assert core.expire().status is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("expire")


def deadline_ms(core: Core, order: str) -> int:
    return int(core.record(order)[8:].split("|")[0]) + int(core.header("origin_ms"))


def states(core: Core) -> str:
    """The states of orders o1, o2, … as letters."""
    count = core.client.hlen(core.keys[3])
    return "".join(core.record(f"o{i + 1}")[0] for i in range(count))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_paying", [False, True])
def test_an_overdue_order_gives_its_units_back(core: Core, is_paying: bool) -> None:
    core.begin((3, 2), (1, 1), max_lapsed=2)
    core.hold("o1", cart="0:2,1")
    if is_paying:
        core.begin_payment("o1")
    core.travel(PAY_MS if is_paying else HOLD_MS)
    swept = core.expire()
    assert (swept.status, swept.expired, swept.more, swept.next_ms) == (Status.DONE, 1, 0, 0)
    assert core.stock(0) == (3, 0, 0, 3)
    assert core.stock(1) == (1, 0, 0, 1)
    assert core.purse() == "!1"
    record = core.record("o1")
    assert record[:2] == ("x3" if is_paying else "x2")
    assert core.events()[-1].text == f"expired||{record}"
    assert core.events()[-1].at_ms == swept.now_ms
    assert core.queue("holds") == core.queue("paying") == []
    before = core.dump()
    assert core.expire().expired == 0
    assert core.dump() == before


def test_an_order_that_stands_twice_in_its_queue_lapses_once(core: Core) -> None:
    core.begin().hold()
    core.client.rpush(core.keys[4], "o1")
    core.rewind(HOLD_MS)
    assert core.expire().expired == 1
    assert core.stock(0) == (10, 0, 0, 10)
    assert core.queue("holds") == []


def test_the_deadline_is_the_first_millisecond_that_is_too_late(core: Core) -> None:
    core.begin().hold()
    due_ms = deadline_ms(core, "o1")
    core.set_header(last_ms=due_ms - 1)  # a clock that stands still
    assert core.expire()[2:] == (0, 0, due_ms)
    core.set_header(last_ms=due_ms)
    assert core.expire()[2:] == (1, 0, 0)


def test_nothing_expires_before_its_time(core: Core) -> None:
    core.begin().hold("o1")
    core.hold("o2", "bob")
    core.begin_payment("o2")
    core.travel(HOLD_MS - 10_000)
    before = core.dump()
    swept = core.expire()
    assert (swept.expired, swept.next_ms) == (0, deadline_ms(core, "o1"))
    # o2 has left the holds queue for the paying one; its entry is behind o1's, so it stays.
    assert core.dump() == before


def test_the_sweep_says_when_the_next_one_is_due(core: Core) -> None:
    core.begin().hold("o1")
    core.travel(10_000)
    core.hold("o2", "bob")
    assert core.expire().next_ms == deadline_ms(core, "o1")
    core.begin_payment("o1")
    assert core.expire().next_ms == deadline_ms(core, "o2")
    core.release("o2")
    assert core.expire().next_ms == deadline_ms(core, "o1")
    core.confirm("o1", "p1")
    assert core.expire().next_ms == 0


def test_orders_expire_first_in_first_out(core: Core) -> None:
    core.begin()
    for i in range(1, 5):
        core.hold(f"o{i}", f"b{i}")
        core.travel(10_000)
    core.travel(HOLD_MS - 40_000 + 5_000)
    assert core.expire().expired == 1
    assert states(core) == "xhhh"
    core.travel(20_000)
    assert core.expire().expired == 2
    assert states(core) == "xxxh"
    assert core.queue("holds") == ["o4"]
    assert core.kinds()[-3:] == ["o1 expired", "o2 expired", "o3 expired"]


@pytest.mark.parametrize("look_at", [1, 2, 3, 7, 100])
def test_a_sweep_is_bounded_by_its_look_at(core: Core, look_at: int) -> None:
    core.begin((100, 0))
    for i in range(1, 8):
        core.hold(f"o{i}", f"b{i}")
    core.travel(HOLD_MS)
    left, sweeps = 7, 0
    while True:
        swept = core.expire(look_at)
        sweeps += 1
        assert swept.expired == min(look_at, left)
        left -= swept.expired
        assert core.stock() == (100 - left, left, 0, 100)
        # As many as were looked at have gone, so there may be more: nobody has looked.
        assert swept.more == (swept.expired == look_at)
        if not swept.more:
            break
    assert sweeps == 7 // look_at + 1
    assert states(core) == "x" * 7


def test_look_at_counts_for_each_queue(core: Core) -> None:
    core.begin((100, 0))
    for i in range(1, 7):
        core.hold(f"o{i}", f"b{i}")
    for i in range(1, 4):
        core.begin_payment(f"o{i}")
    core.travel(PAY_MS)
    # The heads of the holds queue are o1 and o2, which are paying: dropped, not expired.
    assert core.expire(2)[2:4] == (2, 1)
    assert states(core) == "xxphhh"
    assert core.kinds()[-2:] == ["o1 expired", "o2 expired"]
    assert core.expire(2)[2:4] == (2, 1)
    assert states(core) == "xxxxhh"
    assert core.kinds()[-2:] == ["o4 expired", "o3 expired"]
    assert core.expire(2)[2:4] == (2, 1)
    assert core.expire(2)[2:4] == (0, 0)
    assert states(core) == "xxxxxx"


def test_entries_whose_order_has_moved_on_are_dropped(core: Core) -> None:
    core.begin()
    for i in range(1, 6):
        core.hold(f"o{i}", f"b{i}")
    core.release("o1")
    core.confirm("o2", "p1")
    core.begin_payment("o3")
    core.release("o5")
    before = core.header("seq")
    swept = core.expire()
    assert (swept.expired, swept.next_ms) == (0, deadline_ms(core, "o4"))
    assert core.queue("holds") == ["o4", "o5"]
    assert core.queue("paying") == ["o3"]
    assert core.header("seq") == before
    core.travel(HOLD_MS)
    assert core.expire().expired == 1
    assert core.queue("holds") == []
    assert states(core) == "rcpxr"


def test_stale_entries_alone_are_cleared_in_bounded_steps(core: Core) -> None:
    core.begin((100, 0))
    for i in range(1, 6):
        core.release(core.hold(f"o{i}", f"b{i}"))
    assert [core.expire(2)[2:4] for _ in range(3)] == [(0, 1), (0, 1), (0, 0)]
    assert core.queue("holds") == []


def test_an_entry_without_an_order_is_dropped(core: Core) -> None:
    core.begin().hold()
    core.client.lpush(core.keys[4], "nobody")
    core.travel(HOLD_MS)
    assert core.expire().expired == 1


def test_a_lapse_is_counted_for_each_order(core: Core) -> None:
    core.begin(max_lapsed=2)
    core.hold("o1")
    core.hold("o2")
    core.hold("o3")
    core.travel(HOLD_MS)
    assert core.expire().expired == 3
    assert core.purse() == "!3"
    assert core.reserve(Wish("o4")) == [Status.NOT_ALLOWED]


@pytest.mark.parametrize("look_at", [1, 10])
def test_the_last_lapse_settles_a_closed_sale(core: Core, look_at: int) -> None:
    core.begin((5, 0))
    core.hold("o1")
    core.hold("o2", "bob", "0:3")
    core.close()
    core.travel(HOLD_MS)
    while core.expire(look_at).more:
        pass
    assert core.header("state") == "settled"
    assert [event.kind for event in core.events()[-3:]] == ["expired", "expired", "settled"]
    assert core.events()[-1].text == "settled|0:5"


def test_a_paused_sale_still_expires(core: Core) -> None:
    core.begin().hold()
    core.pause()
    core.travel(HOLD_MS)
    assert core.expire().expired == 1


def test_an_idle_hour_with_units_held_is_no_jump(core: Core) -> None:
    """Somebody sweeps all the while, and each sweep that finds a hold keeps the clock going."""
    core.begin(hold_ms=7_200_000).hold()
    for _ in range(10):
        core.rewind(CLOCK_JUMP_MS - 60_000)
        behind = int(core.header("last_ms"))
        assert core.expire().status is Status.DONE
        assert int(core.header("last_ms")) >= behind + CLOCK_JUMP_MS - 60_000
    assert core.header("state") == "open"


def test_the_clock_is_kept_going_at_most_once_a_second(core: Core) -> None:
    core.begin().hold()
    before = core.dump()
    core.expire()
    assert core.dump() == before
