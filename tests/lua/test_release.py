"""release.lua."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import HOLD_MS, Core, Wish, header_answers
from tests.lua.test_fence import fenced


def upgrade_needed(core: Core) -> Status:
    core.begin().hold()
    core.format = 2
    return core.release("o1").status


def is_fenced(core: Core) -> Status:
    core.begin().hold()
    return fenced(core).release("o1").status


def refunded(core: Core) -> Status:
    core.refund(core.begin().paid())
    return core.release("o1").status


def already(core: Core) -> Status:
    core.release(core.begin().hold())
    return core.release("o1").status


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core.release("o1").status,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: is_fenced,
    Status.NEW_SERVER: lambda core: core.begin().elsewhere().release("o1").status,
    Status.UNKNOWN_ORDER: lambda core: core.begin().release("o1").status,
    Status.ALREADY: already,
    Status.CONFIRMED: lambda core: core.release(core.begin().paid()).status,
    Status.REFUNDED: refunded,
    Status.EXPIRED: lambda core: core.release(core.begin().lapse()).status,
    Status.DONE: lambda core: core.release(core.begin().hold()).status,
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status
    before = core.dump()
    again = Status.ALREADY if status is Status.DONE else status
    assert core.release("o1").status is again
    assert core.dump() == before


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("release")


@pytest.mark.parametrize("is_paying", [False, True])
def test_units_and_limits_come_back(core: Core, is_paying: bool) -> None:
    core.begin((3, 2), (1, 1), limit_per_buyer=3)
    core.hold("o1", cart="0:2,1")
    if is_paying:
        core.begin_payment("o1")
    reply = core.release("o1", "ann")
    assert reply.status is Status.DONE
    assert reply.state == "r"
    assert reply.record == core.record("o1")
    assert core.stock(0) == (3, 0, 0, 3)
    assert core.stock(1) == (1, 0, 0, 1)
    # The buyer stays known: whoever had an order is never told "sold out" from memory.
    assert core.purse() == ""
    assert core.events()[-1].text == f"released||{reply.record}"
    assert core.reserve(Wish("o2", cart="0:2,1")) == [Status.CREATED]


def test_only_this_orders_units_come_back_to_the_limit(core: Core) -> None:
    core.begin(limit_per_buyer=5, max_lapsed=3)
    core.lapse("o0")
    core.hold("o1", cart="0:2")
    core.hold("o2", cart="0,1:2")
    core.release("o1")
    assert core.purse() == "0,1:2!1"


def test_an_overdue_hold_may_still_be_given_up(core: Core) -> None:
    """Until the sweep has taken it, giving it up is no lapse."""
    core.begin(max_lapsed=1).hold()
    core.travel(HOLD_MS)
    assert core.release("o1").status is Status.DONE
    assert core.expire().expired == 0
    assert core.purse() == ""


def test_only_the_buyer_finds_the_order(core: Core) -> None:
    core.begin().hold("o1", "ann")
    before = core.dump()
    reply = core.release("o1", "bob")
    assert (reply.status, reply.record) == (Status.UNKNOWN_ORDER, "")
    assert core.dump() == before
    assert core.release("o1", "ann").status is Status.DONE
    assert core.release("o1", "bob").status is Status.UNKNOWN_ORDER


def test_the_last_release_settles_a_closed_sale(core: Core) -> None:
    core.begin((5, 0), (1, 0)).hold("o1", cart="0,1")
    core.close()
    core.release("o1")
    assert core.header("state") == "settled"
    assert core.events()[-1].text == "settled|0:5,1:1"
    # Nothing of a settled sale can be bought again.
    assert core.reserve(Wish("o2")) == [Status.ENDED]
