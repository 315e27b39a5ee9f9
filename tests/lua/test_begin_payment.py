"""begin_payment.lua."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import HOLD_MS, PAY_MS, Core, header_answers
from tests.lua.test_fence import fenced


def unknown_order(core: Core) -> Status:
    return core.begin().begin_payment("o1").status


def upgrade_needed(core: Core) -> Status:
    core.begin().hold()
    core.format = 2
    return core.begin_payment("o1").status


def is_fenced(core: Core) -> Status:
    core.begin().hold()
    return fenced(core).begin_payment("o1").status


def after(core: Core, *verbs: str) -> Status:
    core.begin().hold()
    for verb in verbs:
        core.confirm("o1", "p1") if verb == "confirm" else getattr(core, verb)("o1")
    return core.begin_payment("o1").status


def expired(core: Core) -> Status:
    return core.begin_payment(core.begin().lapse()).status


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core.begin_payment("o1").status,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: is_fenced,
    Status.NEW_SERVER: lambda core: core.begin().elsewhere().begin_payment("o1").status,
    Status.UNKNOWN_ORDER: unknown_order,
    Status.ALREADY: lambda core: after(core, "begin_payment"),
    Status.CONFIRMED: lambda core: after(core, "confirm"),
    Status.REFUNDED: lambda core: after(core, "confirm", "refund"),
    Status.RELEASED: lambda core: after(core, "release"),
    Status.EXPIRED: expired,
    Status.DONE: lambda core: after(core),
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status
    before = core.dump()
    again = Status.ALREADY if status is Status.DONE else status
    assert core.begin_payment("o1").status is again
    assert core.dump() == before


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("begin_payment")


def test_the_order_gets_a_new_deadline(core: Core) -> None:
    core.begin().hold("o1", cart="0:2")
    core.travel(HOLD_MS - 10_000)
    reply = core.begin_payment("o1", "ann")
    assert reply.status is Status.DONE
    deadline = reply.now_ms + PAY_MS - int(core.header("origin_ms"))
    assert reply.record == core.record("o1") == f"p2------{deadline}|0:2|ann"
    assert core.queue("paying") == ["o1"]
    assert core.stock() == (8, 2, 0, 10)
    assert core.purse() == "0:2"
    assert core.events()[-1] == (4, reply.now_ms, "o1", f"paying||{reply.record}")
    assert core.header("last_ms") == str(reply.now_ms)


def test_an_overdue_hold_is_refused_before_the_sweep_took_it(core: Core) -> None:
    core.begin().hold()
    core.travel(HOLD_MS)
    before = core.dump()
    reply = core.begin_payment("o1")
    assert reply.status is Status.EXPIRED
    assert reply.state == "h"
    assert core.dump() == before


def test_the_deadline_itself_is_too_late(core: Core) -> None:
    core.begin().hold()
    # A last_ms ahead of the server is a clock that stands still.
    deadline_ms = int(core.record("o1")[8:].split("|")[0]) + int(core.header("origin_ms"))
    core.set_header(last_ms=deadline_ms)
    assert core.begin_payment("o1").status is Status.EXPIRED
    core.set_header(last_ms=deadline_ms - 1)
    assert core.begin_payment("o1").status is Status.DONE


def test_a_paying_order_that_is_overdue_still_pays(core: Core) -> None:
    core.begin().hold()
    core.begin_payment("o1")
    core.travel(PAY_MS + 10_000)
    assert core.begin_payment("o1").status is Status.ALREADY
    assert core.confirm("o1", "p1").status is Status.DONE


def test_only_the_buyer_finds_the_order(core: Core) -> None:
    core.begin().hold("o1", "ann")
    reply = core.begin_payment("o1", "bob")
    assert (reply.status, reply.record) == (Status.UNKNOWN_ORDER, "")
    assert core.begin_payment("o1", "ann").status is Status.DONE
    assert core.begin_payment("o1", "bob").status is Status.UNKNOWN_ORDER
    assert core.begin_payment("o1").status is Status.ALREADY


@pytest.mark.parametrize("stop", ["pause", "close"])
def test_a_stopped_sale_lets_its_buyers_pay(core: Core, stop: str) -> None:
    core.begin().hold()
    getattr(core, stop)()
    assert core.begin_payment("o1").status is Status.DONE
