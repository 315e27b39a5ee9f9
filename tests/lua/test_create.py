"""create.lua."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import CLOCK_JUMP_MS, HOLD_MS, PAY_MS, Core, header_answers


def upgrade_needed(core: Core) -> Status:
    core.format = 2
    return core.create()


def upgrade_needed_by_the_sale(core: Core) -> Status:
    core.create()
    core.set_header(format=2)
    return core.create()


def exists(core: Core) -> Status:
    core.create()
    return core.create()


def conflict(core: Core) -> Status:
    core.create()
    core.definition_id = "another"
    return core.create()


def known_to_be_missing(core: Core) -> Status:
    """By who was told of it, and does not know yet whether it was removed or lost."""
    core.told = ("run", 1)
    status = core.create()
    assert not core.client.exists(*core.keys)
    return status


SCENARIOS = {
    Status.NEW_SERVER: known_to_be_missing,
    Status.EXISTS: exists,
    Status.CONFLICT: conflict,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.CREATED: lambda core: core.create(),
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status


def test_a_sale_of_another_format(core: Core) -> None:
    assert upgrade_needed_by_the_sale(core) is Status.UPGRADE_NEEDED


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("create")


def test_what_is_written(core: Core) -> None:
    before = core.server_ms()
    core.create((7, 1), (0, 0), opens_ms=1, ends_ms=2, limit_per_order=3, limit_per_buyer=4)
    written = core.dump()
    last_ms = int(core.header("last_ms"))
    assert before <= last_ms <= core.server_ms()
    expected = {
        "made": f"run:{last_ms}",
        "format": 1,
        "state": "created",
        "reason": "",
        "seq": 1,
        "last_ms": last_ms,
        "definition_id": core.definition_id,
        "definition": '{"title":"x"}',
        "server": "run.0",
        "origin_ms": 1,
        "opens_ms": 1,
        "ends_ms": 2,
        "hold_ms": HOLD_MS,
        "pay_ms": PAY_MS,
        "limit_per_order": 3,
        "limit_per_buyer": 4,
        "max_lapsed": 0,
        "clock_jump_ms": CLOCK_JUMP_MS,
    }
    assert written["sale"] == {name.encode(): str(v).encode() for name, v in expected.items()}
    assert core.stock(0) == (7, 0, 0, 7)
    assert core.stock(1) == (0, 0, 0, 0)
    assert (written["stock"][b"0:limit"], written["stock"][b"1:limit"]) == (b"1", b"0")
    assert core.events() == [(1, last_ms, "sale", 'created|{"title":"x"}')]
    assert [written[name] for name in ("buyers", "orders", "holds", "paying")] == [None] * 4


@pytest.mark.parametrize("verb", ["open", "pause", "close"])
def test_creating_it_again_changes_nothing_whatever_has_happened_since(
    core: Core, verb: str
) -> None:
    core.begin().hold()
    getattr(core, verb)()
    before = core.dump()
    assert core.create() is Status.EXISTS
    core.definition_id = "another"
    assert core.create() is Status.CONFLICT
    assert core.dump() == before


@pytest.mark.parametrize("key", range(1, 7))
def test_keys_left_over_from_a_lost_sale_are_not_written_over(core: Core, key: int) -> None:
    core.client.set(core.keys[key], "left over")
    before = core.dump()
    assert core.create() is Status.CONFLICT
    assert core.dump() == before


def test_a_thousand_items(core: Core) -> None:
    core.begin(*[(i, 0) for i in range(1_000)])
    assert core.stock(999) == (999, 0, 0, 999)
    assert core.close() is Status.DONE
    assert core.events()[-1].text.count(",") == 998
