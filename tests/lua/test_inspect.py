"""inspect.lua."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import Core, header_answers


def upgrade_needed(core: Core) -> Status:
    core.begin().format = 2
    return Status(core.run("inspect")[0])


SCENARIOS = {
    Status.UNKNOWN_SALE: lambda core: Status(core.run("inspect")[0]),
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.DONE: lambda core: Status(core.begin().run("inspect")[0]),
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("inspect")


def test_one_picture_of_everything(core: Core) -> None:
    core.begin()
    core.hold("o1", "ann", "0:2")
    core.hold("o2", "ann")
    core.begin_payment("o2")
    core.paid("o3", "bob", "1")
    before = core.dump()
    status, now_ms, header, stock, orders, buyers, holds, paying, entries = core.run("inspect")
    assert core.dump() == before
    assert status == Status.DONE
    assert int(core.header("last_ms")) <= now_ms <= core.server_ms()
    assert dict(zip(header[::2], header[1::2], strict=True)) == before["sale"]
    assert dict(zip(stock[::2], stock[1::2], strict=True)) == before["stock"]
    assert (orders, buyers, holds, paying, entries) == (3, 2, 3, 1, 7)


def test_it_tells_the_time_even_when_the_clock_has_jumped(core: Core) -> None:
    core.begin().hold()
    core.rewind(700_000)
    before = core.dump()
    assert core.run("inspect")[1] == int(core.header("last_ms"))
    assert core.dump() == before
