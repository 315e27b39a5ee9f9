"""confirm.lua: money in time, late, twice, and for an order given up."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import HOLD_MS, PAY_MS, Core, Wish, header_answers
from tests.lua.test_fence import fenced


def upgrade_needed(core: Core) -> Status:
    core.begin().hold()
    core.format = 2
    return core.confirm("o1", "p1").status


def is_fenced(core: Core) -> Status:
    core.begin().hold()
    return fenced(core).confirm("o1", "p1").status


def refunded(core: Core) -> Status:
    core.refund(core.begin().paid())
    return core.confirm("o1", "p1").status


def late(core: Core) -> Status:
    core.release(core.begin().hold())
    return core.confirm("o1", "p1").status


def too_many(core: Core) -> Status:
    core.begin().paid()
    for i in range(2, 17):
        assert core.confirm("o1", f"p{i}").status is Status.DUPLICATE_PAYMENT
    return core.confirm("o1", "p17").status


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core.confirm("o1", "p1").status,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: is_fenced,
    Status.NEW_SERVER: lambda core: core.begin().elsewhere().confirm("o1", "p1").status,
    Status.UNKNOWN_ORDER: lambda core: core.begin().confirm("o1", "p1").status,
    Status.ALREADY: lambda core: core.confirm(core.begin().paid(), "p1").status,
    Status.REFUNDED: refunded,
    Status.LATE: late,
    Status.DUPLICATE_PAYMENT: lambda core: core.confirm(core.begin().paid(), "p2").status,
    Status.TOO_MANY_PAYMENTS: too_many,
    Status.DONE: lambda core: core.confirm(core.begin().hold(), "p1").status,
    Status.CONFIRMED_LATE: lambda core: core.confirm(core.begin().lapse(), "p1").status,
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("confirm")


@pytest.mark.parametrize("is_paying", [False, True])
def test_money_in_time(core: Core, is_paying: bool) -> None:
    core.begin().hold("o1", cart="0:2,1")
    if is_paying:
        core.begin_payment("o1")
    deadline = core.record("o1")[8:].split("|")[0]
    reply = core.confirm("o1", "p1")
    assert reply.status is Status.DONE
    version = 3 if is_paying else 2
    assert reply.record == core.record("o1") == f"c{version}------{deadline}|0:2,1|ann|p1"
    assert core.stock(0) == (8, 0, 2, 10)
    assert core.stock(1) == (9, 0, 1, 10)
    assert core.purse() == "0:2,1"
    event = core.events()[-1]
    assert event == (4 + is_paying, reply.now_ms, "o1", f"confirmed|p1|{reply.record}")


def test_a_deadline_alone_takes_nothing_only_the_sweep_does(core: Core) -> None:
    core.begin().hold("o1")
    core.hold("o2", "bob")
    core.begin_payment("o2")
    core.travel(PAY_MS + 1_000)
    assert core.confirm("o1", "p1").status is Status.DONE
    assert core.confirm("o2", "p1").status is Status.DONE
    assert core.expire().expired == 0
    assert core.stock() == (8, 0, 2, 10)


def test_repeating_a_payment_changes_nothing(core: Core) -> None:
    core.begin().paid()
    core.confirm("o1", "p2")
    before = core.dump()
    assert core.confirm("o1", "p1").status is Status.ALREADY
    assert core.confirm("o1", "p2").status is Status.DUPLICATE_PAYMENT
    core.refund("o1")
    assert core.confirm("o1", "p3").status is Status.DUPLICATE_PAYMENT
    before = core.dump()
    assert core.confirm("o1", "p1").status is Status.REFUNDED
    assert core.confirm("o1", "p2").status is Status.DUPLICATE_PAYMENT
    assert core.confirm("o1", "p3").status is Status.DUPLICATE_PAYMENT
    assert core.dump() == before


def test_a_second_payment_is_due_back(core: Core) -> None:
    core.begin().paid()
    reply = core.confirm("o1", "p2")
    assert reply.status is Status.DUPLICATE_PAYMENT
    assert reply.record.endswith("|0|ann|p1,p2")
    assert (reply.state, reply.version) == ("c", 3)
    assert core.stock() == (9, 0, 1, 10)
    assert core.events()[-1].text == f"refund_due|p2|{reply.record}"


def test_a_payment_whose_id_begins_like_another_is_another(core: Core) -> None:
    core.begin().hold()
    core.confirm("o1", "p11")
    assert core.confirm("o1", "p1").status is Status.DUPLICATE_PAYMENT
    assert core.confirm("o1", "11").status is Status.DUPLICATE_PAYMENT


def test_payments_are_kept_up_to_sixteen(core: Core) -> None:
    assert too_many(core) is Status.TOO_MANY_PAYMENTS
    before = core.dump()
    assert core.confirm("o1", "p17").status is Status.TOO_MANY_PAYMENTS
    # Those that are known are still recognised.
    assert core.confirm("o1", "p1").status is Status.ALREADY
    assert core.confirm("o1", "p16").status is Status.DUPLICATE_PAYMENT
    assert core.dump() == before
    assert core.kinds()[2:] == ["o1 refund_due"] * 15
    # The version is one digit of base 36: the longest life must fit.
    assert core.refund("o1").version == 18


def test_the_longest_life_of_an_order_fits_its_version(core: Core) -> None:
    core.begin((1, 0)).hold("o1")
    core.begin_payment("o1")
    core.travel(PAY_MS)
    assert core.expire().expired == 1
    core.hold("o2", "bob")
    for i in range(15):
        assert core.confirm("o1", f"late{i}").status is Status.LATE
    core.release("o2")
    assert core.confirm("o1", "p1").status is Status.CONFIRMED_LATE
    assert core.confirm("o1", "p2").status is Status.TOO_MANY_PAYMENTS
    assert core.refund("o1").version == 3 + 15 + 2


def test_late_money_buys_a_unit_that_is_still_there(core: Core) -> None:
    core.begin((2, 2), (2, 2), max_lapsed=3, limit_per_buyer=3, limit_per_order=3)
    core.lapse("o1", cart="0:2,1")
    assert (core.stock(0)[0], core.purse()) == (2, "!1")
    reply = core.confirm("o1", "p1")
    assert reply.status is Status.CONFIRMED_LATE
    assert (reply.state, reply.version) == ("c", 3)
    assert core.stock(0) == (0, 0, 2, 2)
    assert core.stock(1) == (1, 0, 1, 2)
    # It was paid after all, so it was no lapse.
    assert core.purse() == "0:2,1"
    assert core.events()[-1].text == f"confirmed|p1|{reply.record}"
    assert core.confirm("o1", "p1").status is Status.ALREADY


def test_late_money_finds_no_unit(core: Core) -> None:
    core.begin((2, 0), (1, 0)).lapse("o1", cart="0,1")
    core.hold("o2", "bob", "1")
    before = core.stock(0), core.stock(1), core.purse()
    reply = core.confirm("o1", "p1")
    assert reply.status is Status.LATE
    assert (reply.state, reply.version) == ("x", 3)
    assert reply.record.endswith("|0,1|ann|p1")
    assert (core.stock(0), core.stock(1), core.purse()) == before
    assert core.events()[-1].text == f"refund_due|p1|{reply.record}"


def test_late_money_is_not_sold_twice_when_a_unit_comes_back(core: Core) -> None:
    """The refund of p1 is on its way; only another payment can buy the unit."""
    core.begin((1, 0)).lapse("o1")
    core.hold("o2", "bob")
    assert core.confirm("o1", "p1").status is Status.LATE
    core.release("o2")
    before = core.dump()
    assert core.confirm("o1", "p1").status is Status.LATE
    assert core.dump() == before
    reply = core.confirm("o1", "p2")
    assert reply.status is Status.CONFIRMED_LATE
    assert reply.record.endswith("|0|ann|p2,p1")
    assert core.confirm("o1", "p2").status is Status.ALREADY
    # Its money is due back as before; now there is also one who has paid.
    assert core.confirm("o1", "p1").status is Status.DUPLICATE_PAYMENT


@pytest.mark.parametrize(
    ("items", "fields", "second"),
    [
        (((10, 1),), {}, "0"),
        (((10, 0),), {"limit_per_buyer": 1}, "0"),
        (((10, 0), (10, 0)), {"limit_per_buyer": 2}, "1:2"),
    ],
)
def test_late_money_of_a_buyer_who_has_bought_again(
    core: Core, items: tuple[tuple[int, int], ...], fields: dict[str, int], second: str
) -> None:
    core.begin(*items, **fields).lapse("o1")
    assert core.reserve(Wish("o2", cart=second)) == [Status.CREATED]
    assert core.confirm("o1", "p1").status is Status.LATE
    core.release("o2")
    assert core.confirm("o1", "p2").status is Status.CONFIRMED_LATE


@pytest.mark.parametrize("lapses", [1, 2])
def test_late_money_counts_even_from_a_buyer_who_may_not_order(core: Core, lapses: int) -> None:
    core.begin(max_lapsed=lapses)
    for i in range(lapses):
        core.lapse(f"o{i}")
    assert core.reserve(Wish("o9")) == [Status.NOT_ALLOWED]
    assert core.confirm("o0", "p1").status is Status.CONFIRMED_LATE
    assert core.reserve(Wish("o9")) == [Status.CREATED]


def test_late_money_in_a_paused_sale(core: Core) -> None:
    core.begin().lapse("o1")
    core.pause()
    assert core.confirm("o1", "p1").status is Status.CONFIRMED_LATE


def test_late_money_after_the_end_of_the_window(core: Core) -> None:
    """The window is for new orders. This one was made in time and the unit is there."""
    core.begin().lapse("o1")
    core.set_header(ends_ms=1)
    assert core.confirm("o1", "p1").status is Status.CONFIRMED_LATE


@pytest.mark.parametrize("others", [0, 1])
def test_late_money_in_a_closed_sale_is_due_back(core: Core, others: int) -> None:
    """A settled sale has said what stayed unsold, and a closed one sells nothing any more."""
    core.begin().lapse("o1")
    if others:
        core.hold("o2", "bob")
    core.close()
    assert core.header("state") == ("closed" if others else "settled")
    assert core.confirm("o1", "p1").status is Status.LATE
    assert core.stock() == (10 - others, others, 0, 10)


def test_money_for_a_released_order_is_due_back(core: Core) -> None:
    core.begin().release(core.hold("o1"))
    reply = core.confirm("o1", "p1")
    assert reply.status is Status.LATE
    assert reply.state == "r"
    assert core.stock() == (10, 0, 0, 10)
    assert core.kinds()[-1] == "o1 refund_due"


@pytest.mark.parametrize("stop", ["pause", "close"])
def test_a_stopped_sale_takes_the_money_of_held_orders(core: Core, stop: str) -> None:
    core.begin().hold()
    getattr(core, stop)()
    assert core.confirm("o1", "p1").status is Status.DONE


def test_the_last_payment_settles_a_closed_sale(core: Core) -> None:
    core.begin((5, 0), (0, 0), (7, 0))
    core.hold("o1")
    core.hold("o2", "bob")
    core.close()
    core.confirm("o1", "p1")
    assert core.header("state") == "closed"
    core.confirm("o2", "p2")
    assert core.header("state") == "settled"
    assert [event.text for event in core.events()[-2:]] == [
        f"confirmed|p2|{core.record('o2')}",
        "settled|0:3,2:7",
    ]


def test_a_confirmed_order_does_not_expire(core: Core) -> None:
    core.begin().paid()
    core.travel(HOLD_MS + PAY_MS)
    assert core.expire().expired == 0
    assert core.queue("holds") == []
    assert core.stock() == (9, 0, 1, 10)
