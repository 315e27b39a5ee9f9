"""lease.lua, and what reserve.lua makes of a lease."""

from __future__ import annotations

from typing import Any

import pytest

from seckill.status import Status
from tests.lua.core import Core, Wish, header_answers
from tests.lua.test_fence import fenced
from tests.support import HOUR_MS

LEASE_MS = 900


def lease(core: Core, lease_ms: int = LEASE_MS) -> list[Any]:
    status, opens_in_ms, buyers, _, *sold_out = core.run("lease", core.definition_id, lease_ms)
    return [Status(status), opens_in_ms, buyers, *(index.decode() for index in sold_out)]


def upgrade_needed(core: Core) -> Core:
    core.begin().format = 2
    return core


def stale(core: Core) -> Core:
    core.begin().definition_id = "fedcba9876543210"
    return core


def paused(core: Core) -> Core:
    core.begin().pause()
    return core


def created(core: Core) -> Core:
    core.create()
    return core


def ended(core: Core) -> Core:
    core.begin().travel(HOUR_MS)
    return core


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: lambda core: fenced(core.begin((0, 0))),
    Status.NEW_SERVER: lambda core: core.begin((0, 0)).elsewhere(),
    Status.STALE_DEFINITION: stale,
    Status.PAUSED: paused,
    Status.NOT_OPEN: created,
    Status.ENDED: ended,
    Status.DONE: lambda core: core.begin((0, 0)),
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    SCENARIOS[status](core)
    before = core.dump()
    assert lease(core)[0] is status
    # Only a sale that sells promises anything.
    assert (core.dump() == before) == (status is not Status.DONE)


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("lease")


def test_it_names_what_is_sold_out_and_counts_the_buyers(core: Core) -> None:
    core.begin((1, 0), (5, 0), (0, 0))
    core.hold("o1", "ann", "0")
    core.hold("o2", "bob", "1")
    assert lease(core) == [Status.DONE, 0, 2, "0", "2"]


def test_it_tells_how_long_until_the_opening(core: Core) -> None:
    core.begin(opens_ms=core.server_ms() + 5_000)
    status, opens_in_ms, *_ = lease(core)
    assert status is Status.NOT_OPEN
    assert 3_000 < opens_in_ms <= 5_000


def test_a_sale_that_was_never_opened_promises_no_time(core: Core) -> None:
    core.create()
    assert lease(core)[:2] == [Status.NOT_OPEN, 0]


def test_a_leased_sku_is_not_sold_though_a_unit_came_back(core: Core) -> None:
    core.begin((1, 0), (5, 0))
    core.hold("o1", "ann")
    assert lease(core)[3:] == ["0"]
    core.release("o1")
    assert core.stock(0) == (1, 0, 0, 1)
    wishes = (Wish("o2", "bob"), Wish("o3", "bob", "1"), Wish("o4", "bob", "0,1"))
    assert core.reserve(*wishes) == [Status.SOLD_OUT, Status.CREATED, Status.SOLD_OUT]
    # Whoever holds an order finds it, and what is left is what was left.
    assert isinstance(core.reserve(Wish("o3", "bob", "1"))[0], str)
    assert core.stock(0) == (1, 0, 0, 1)
    # A new question sees the unit, so no new lease follows.
    assert lease(core)[3:] == []


def test_it_is_sold_once_the_lease_is_over(core: Core) -> None:
    core.begin((1, 0)).hold("o1", "ann")
    lease(core)
    core.release("o1")
    core.client.hset(core.keys[1], "0:lease", core.server_ms())
    assert core.reserve(Wish("o2", "bob")) == [Status.CREATED]


def test_a_lease_beyond_any_lease_is_none(core: Core) -> None:
    """The server's clock was set back: the SKU must not be blocked until it has caught up."""
    core.begin((1, 0))
    core.client.hset(core.keys[1], "0:lease", core.server_ms() + 60_000)
    assert core.reserve(Wish("o2", "bob")) == [Status.CREATED]


def test_a_lease_ends_later_in_redis_than_in_the_process(core: Core) -> None:
    core.begin((0, 0))
    asked_ms = core.server_ms()
    lease(core)
    assert int(core.client.hget(core.keys[1], "0:lease")) > asked_ms + LEASE_MS  # type: ignore[arg-type]


def test_late_money_still_buys_a_unit_that_came_back(core: Core) -> None:
    """Its buyer has had an order, so nobody answers that buyer from memory."""
    core.begin((1, 0)).lapse("o1", "ann")
    core.hold("o2", "bob")
    lease(core)
    core.release("o2")
    assert core.confirm("o1", "p1").status is Status.CONFIRMED_LATE


def test_a_lease_never_shortens_another(core: Core) -> None:
    core.begin((0, 0))
    lease(core, 900)
    first = core.client.hget(core.keys[1], "0:lease")
    assert lease(core, 1)[3:] == ["0"]
    assert core.client.hget(core.keys[1], "0:lease") == first
    # One that an earlier clock gave is no promise any more.
    core.client.hset(core.keys[1], "0:lease", core.server_ms() + 60_000)
    lease(core, 900)
    assert int(core.client.hget(core.keys[1], "0:lease")) < core.server_ms() + 1_000  # type: ignore[arg-type]


def test_a_sale_made_anew_is_told_from_the_first(core: Core) -> None:
    core.begin((1, 0))
    first = core.run("lease", core.definition_id, 1)[3]
    assert first
    core.client.delete(*core.keys)
    while core.server_ms() == int(first.rpartition(b":")[2]):
        pass
    core.begin((1, 0))
    assert core.run("lease", core.definition_id, 1)[3] != first
