"""refund.lua."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import Core, Wish, header_answers
from tests.lua.test_fence import fenced


def upgrade_needed(core: Core) -> Status:
    core.begin().paid()
    core.format = 2
    return core.refund("o1").status


def is_fenced(core: Core) -> Status:
    core.begin().paid()
    return fenced(core).refund("o1").status


def twice(core: Core, refund: str, units: int = 1, limit: int = 1) -> Status:
    core.refund(core.begin().paid(), "r1", 1, 1)
    return core.refund("o1", refund, units, limit).status


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core.refund("o1").status,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: is_fenced,
    Status.NEW_SERVER: lambda core: core.begin().elsewhere().refund("o1").status,
    Status.UNKNOWN_ORDER: lambda core: core.begin().refund("o1").status,
    Status.ALREADY: lambda core: twice(core, "r1"),
    Status.CONFLICT: lambda core: twice(core, "r1", 0),
    Status.REFUNDED: lambda core: twice(core, "r2"),
    Status.NOT_CONFIRMED: lambda core: core.refund(core.begin().hold()).status,
    Status.DONE: lambda core: core.refund(core.begin().paid()).status,
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("refund")


@pytest.mark.parametrize(
    ("units", "limit", "stock", "purse"),
    [
        (1, 1, (10, 0, 0, 10), "1"),
        (1, 0, (10, 0, 0, 10), "0:2,1"),
        (0, 1, (8, 0, 0, 8), "1"),
        (0, 0, (8, 0, 0, 8), "0:2,1"),
    ],
)
def test_units_and_limit_are_the_merchants_choice(
    core: Core, units: int, limit: int, stock: tuple[int, ...], purse: str
) -> None:
    core.begin((10, 2)).paid("o1", cart="0:2")
    core.client.hset(core.keys[2], "ann", "0:2,1")
    reply = core.refund("o1", "r1", units, limit)
    assert reply.status is Status.DONE
    assert reply.state == "f"
    assert reply.record == core.record("o1")
    assert reply.record.endswith(f"|0:2|ann|p1|r1,{units},{limit}")
    assert core.stock() == stock
    assert core.purse() == purse
    assert core.events()[-1].text == f"refunded|r1,{units},{limit}|{reply.record}"
    before = core.dump()
    assert core.refund("o1", "r1", units, limit).status is Status.ALREADY
    for other in {(0, 0), (0, 1), (1, 0), (1, 1)} - {(units, limit)}:
        assert core.refund("o1", "r1", *other).status is Status.CONFLICT
    assert core.refund("o1", "r", units, limit).status is Status.REFUNDED
    assert core.refund("o1", "r11", units, limit).status is Status.REFUNDED
    assert core.dump() == before


@pytest.mark.parametrize("state", ["held", "paying", "released", "expired"])
def test_only_a_confirmed_order_is_refunded(core: Core, state: str) -> None:
    core.begin()
    if state == "expired":
        core.lapse()
    else:
        core.hold()
    if state == "paying":
        core.begin_payment("o1")
    elif state == "released":
        core.release("o1")
    before = core.dump()
    assert core.refund("o1").status is Status.NOT_CONFIRMED
    assert core.dump() == before


def test_a_returned_unit_is_sold_again(core: Core) -> None:
    core.begin((1, 1)).paid()
    assert core.reserve(Wish("o2", "bob")) == [Status.SOLD_OUT]
    core.refund("o1", units=1, limit=0)
    assert core.reserve(Wish("o2", "ann")) == [Status.SKU_LIMIT]
    assert core.reserve(Wish("o2", "bob")) == [Status.CREATED]


def test_a_unit_that_is_gone_is_not(core: Core) -> None:
    core.begin((1, 1)).paid()
    core.refund("o1", units=0, limit=1)
    assert core.reserve(Wish("o2", "ann")) == [Status.SOLD_OUT]
    assert core.stock() == (0, 0, 0, 0)


def test_an_order_confirmed_late_is_refunded_like_any_other(core: Core) -> None:
    core.begin((1, 1), max_lapsed=3).lapse()
    core.confirm("o1", "p1")
    assert core.refund("o1").status is Status.DONE
    assert core.stock() == (1, 0, 0, 1)
    assert core.purse() == ""


@pytest.mark.parametrize("state", ["paused", "closed", "settled"])
def test_a_stopped_sale_refunds(core: Core, state: str) -> None:
    core.begin().paid()
    if state == "paused":
        core.pause()
    else:
        if state == "closed":
            core.hold("o2", "bob")
        core.close()
    assert core.header("state") == state
    assert core.refund("o1").status is Status.DONE
    assert core.header("state") == state


def test_a_payment_after_the_refund_is_due_back(core: Core) -> None:
    core.begin().paid()
    core.refund("o1")
    reply = core.confirm("o1", "p2")
    assert reply.status is Status.DUPLICATE_PAYMENT
    assert reply.record.endswith("|0|ann|p1,p2|r1,1,1")
    assert core.events()[-1].text == f"refund_due|p2|{reply.record}"
    assert core.refund("o1").status is Status.ALREADY
