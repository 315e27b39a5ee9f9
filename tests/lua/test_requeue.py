"""requeue.lua: orders that wait in no queue are put back into theirs, in order of deadline."""

from __future__ import annotations

import msgspec
import pytest

from seckill.status import Status
from tests.lua.core import HOLD_MS, PAY_MS, Core, Wish, header_answers
from tests.lua.test_fence import fenced


def requeue(core: Core, *orders: str) -> tuple[Status, int]:
    status, count = core.run("requeue", msgspec.msgpack.encode(orders))
    return Status(status), count


def upgrade_needed(core: Core) -> Status:
    core.begin().format = 2
    return requeue(core, "o1")[0]


def too_long(core: Core) -> Status:
    core.begin()
    for _ in range(101):
        core.client.rpush(core.keys[4], *["gone"] * 1_000)
    return requeue(core, "o1")[0]


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: requeue(core, "o1")[0],
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: lambda core: requeue(fenced(core.begin()), "o1")[0],
    Status.NEW_SERVER: lambda core: requeue(core.begin().elsewhere(), "o1")[0],
    Status.CONFLICT: too_long,
    Status.DONE: lambda core: requeue(core.begin(), "o1")[0],
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status
    assert requeue(core, "o1")[0] is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("requeue")


def five(core: Core) -> list[str]:
    """Held orders, each with another deadline than the one before."""
    core.begin((100, 0), (10, 0), max_lapsed=0)
    for number in range(5, 0, -1):
        core.hold(f"o{number}", f"b{number}")
        core.travel(1_000)
    return core.queue("holds")


@pytest.mark.parametrize(
    "left", [[], ["o2", "o1"], ["o5", "o4"], ["o5", "o3", "o1"], ["o5", "gone", "o3"]]
)
def test_what_is_missing_stands_again_in_order_of_deadline(core: Core, left: list[str]) -> None:
    whole = five(core)
    core.client.delete(core.keys[4])
    if left:
        core.client.rpush(core.keys[4], *left)
    missing = [order for order in whole if order not in left]
    before = core.dump()
    assert requeue(core, *reversed(missing), missing[0]) == (Status.DONE, len(missing))
    found = core.queue("holds")
    assert [order for order in found if order != "gone"] == whole
    # Nothing else is touched, and the second time nothing at all.
    after = core.dump()
    assert before | {"holds": after["holds"]} == after
    assert requeue(core, *whole) == (Status.DONE, 0)
    assert core.dump() == after


def test_each_waits_in_the_queue_of_its_state(core: Core) -> None:
    five(core)
    core.begin_payment("o2")
    core.confirm("o3", "p1")
    core.client.delete(core.keys[4], core.keys[5])
    core.client.hset(core.keys[3], "rubbish", "what is this")
    assert requeue(core, "o1", "o2", "o3", "o4", "o5", "rubbish", "nobody") == (Status.DONE, 4)
    assert (core.queue("holds"), core.queue("paying")) == (["o5", "o4", "o1"], ["o2"])


def test_it_lapses_in_time_and_once(core: Core) -> None:
    """While the sale goes on: later orders are in the queue already."""
    core.begin((2, 0), (10, 0), max_lapsed=0).hold("o1", "b1")
    core.client.delete(core.keys[4])
    core.travel(HOLD_MS - 1_000)
    core.hold("o2", "b2")
    core.travel(1_000)
    assert core.expire().expired == 0
    assert requeue(core, "o1") == (Status.DONE, 1)
    swept = core.expire()
    assert (swept.expired, core.record("o1")[0], core.record("o2")[0]) == (1, "x", "h")
    assert core.stock() == (1, 1, 0, 2)
    core.begin_payment("o2")
    core.client.delete(core.keys[5])
    core.travel(PAY_MS)
    assert core.expire().expired == 0
    assert requeue(core, "o2") == (Status.DONE, 1)
    assert core.expire().expired == 1
    assert core.stock() == (2, 0, 0, 2)


def test_more_than_one_read_and_the_queue_keeps_its_tail(core: Core) -> None:
    core.begin((5_000, 0), (10, 0), max_lapsed=0)
    for part in range(3):
        core.reserve(*[Wish(f"o{part}-{n:03}", f"b{part}-{n}") for n in range(900)])
        core.travel(1_000)
    whole = core.queue("holds")
    gone = whole[450:1_350]
    core.client.delete(core.keys[4])
    core.client.rpush(core.keys[4], *whole[:450], *whole[1_350:])
    assert requeue(core, *gone) == (Status.DONE, 900)
    assert sorted(core.queue("holds")) == sorted(whole)
    deadlines = [core.record(order)[8:].partition("|")[0] for order in core.queue("holds")]
    assert deadlines == sorted(deadlines, key=int)
