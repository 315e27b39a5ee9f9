"""add_stock.lua."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import Core, Wish, header_answers
from tests.lua.test_fence import fenced


def upgrade_needed(core: Core) -> Status:
    core.begin().format = 2
    return core.add_stock(0, 1)[0]


def stale_definition(core: Core) -> Status:
    core.begin().definition_id = "another"
    return core.add_stock(0, 1)[0]


def again(core: Core, index: int, units: int) -> Status:
    core.begin().add_stock(0, 1)
    return core.add_stock(index, units)[0]


def closed(core: Core) -> Status:
    core.begin().close()
    return core.add_stock(0, 1)[0]


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: core.add_stock(0, 1)[0],
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: lambda core: fenced(core.begin()).add_stock(0, 1)[0],
    Status.NEW_SERVER: lambda core: core.begin().elsewhere().add_stock(0, 1)[0],
    Status.STALE_DEFINITION: stale_definition,
    Status.ALREADY: lambda core: again(core, 0, 1),
    Status.CONFLICT: lambda core: again(core, 0, 2),
    Status.UNKNOWN_SKU: lambda core: core.begin().add_stock(2, 1)[0],
    Status.CLOSED: closed,
    Status.BELOW_COMMITTED: lambda core: core.begin().add_stock(0, -11)[0],
    Status.TOO_MANY_UNITS: lambda core: core.begin().add_stock(0, 999_999_991)[0],
    Status.DONE: lambda core: core.begin().add_stock(0, 1)[0],
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("add_stock")


@pytest.mark.parametrize("status", [s for s in SCENARIOS if s is not Status.DONE])
def test_a_refusal_writes_nothing(core: Core, status: Status) -> None:
    SCENARIOS[status](core)
    if status in {Status.BELOW_COMMITTED, Status.TOO_MANY_UNITS, Status.UNKNOWN_SKU}:
        assert core.kinds() == []
        assert core.stock() == (10, 0, 0, 10)
        assert core.client.hget(core.keys[0], "stock:k") is None


def test_units_are_added_and_taken_away_while_it_sells(core: Core) -> None:
    core.begin((2, 0)).hold("o1", cart="0:2")
    assert core.reserve(Wish("o2")) == [Status.SOLD_OUT]
    assert core.add_stock(0, 3, "more") == (Status.DONE, 3, 5)
    assert core.reserve(Wish("o2")) == [Status.CREATED]
    assert core.add_stock(0, -2, "less") == (Status.DONE, 0, 3)
    assert core.stock() == (0, 3, 0, 3)
    assert core.reserve(Wish("o3")) == [Status.SOLD_OUT]
    texts = [event.text for event in core.events() if event.kind == "stock"]
    assert texts == ["stock|more|0|3|5", "stock|less|0|-2|3"]


def test_what_is_held_or_sold_stays(core: Core) -> None:
    core.begin((5, 0))
    core.hold("o1", "ann", "0:2")
    core.paid("o2", "bob", "0:2")
    assert core.add_stock(0, -2, "k1") == (Status.BELOW_COMMITTED, 1, 5)
    assert core.add_stock(0, -1, "k1") == (Status.DONE, 0, 4)
    assert core.add_stock(0, -1, "k2") == (Status.BELOW_COMMITTED, 0, 4)
    assert core.stock() == (0, 2, 2, 4)
    # The refused key was not used up: what comes back can be taken with it.
    core.release("o1")
    assert core.add_stock(0, -1, "k2") == (Status.DONE, 1, 3)


def test_repeating_a_key_changes_nothing(core: Core) -> None:
    core.begin((5, 0), (5, 0)).add_stock(0, 3, "k1")
    before = core.dump()
    assert core.add_stock(0, 3, "k1") == (Status.ALREADY, 8, 8)
    assert core.add_stock(0, -3, "k1") == (Status.CONFLICT, 8, 8)
    assert core.add_stock(1, 3, "k1") == (Status.CONFLICT, 5, 5)
    assert core.dump() == before
    core.close()
    assert core.add_stock(0, 3, "k1") == (Status.ALREADY, 8, 8)


@pytest.mark.parametrize("state", ["created", "paused"])
def test_stock_may_change_while_nothing_is_sold(core: Core, state: str) -> None:
    core.create((5, 0))
    if state == "paused":
        core.open()
        core.pause()
    assert core.add_stock(0, 5) == (Status.DONE, 10, 10)


@pytest.mark.parametrize("is_settled", [False, True])
def test_a_closed_sale_keeps_its_stock(core: Core, is_settled: bool) -> None:
    core.begin((5, 0))
    if not is_settled:
        core.hold()
    core.close()
    before = core.dump()
    assert core.add_stock(0, 5)[0] is Status.CLOSED
    assert core.dump() == before


def test_the_largest_stock(core: Core) -> None:
    core.begin((0, 0))
    assert core.add_stock(0, 1_000_000_000, "k1") == (Status.DONE, 10**9, 10**9)
    assert core.add_stock(0, 1, "k2") == (Status.TOO_MANY_UNITS, 10**9, 10**9)
    assert core.add_stock(0, -1_000_000_000, "k3") == (Status.DONE, 0, 0)


def test_an_operation_key_is_no_field_of_the_sale(core: Core) -> None:
    core.begin()
    assert core.add_stock(0, 1, "state")[0] is Status.DONE
    assert core.header("state") == "open"
