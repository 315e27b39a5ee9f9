"""A script that meets a damaged key raises before its first write, and so keeps nothing half done.

Redis does not undo what a script has written before it raised. Each key is replaced by one of
another type, each script is called where it would do all of its work, and nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from seckill.keys import NAMES as KEY_NAMES
from tests.lua.core import CLOCK_JUMP_MS, HOLD_MS, Core, Wish


def overdue(core: Core) -> None:
    """Held, paying, confirmed and expired orders, the first two overdue, in a sale being closed."""
    core.begin((10, 0), (10, 0), max_lapsed=3)
    core.lapse("expired", "eve")
    core.paid("paid", "pat")
    core.hold("held", "ann")
    core.hold("paying", "bob")
    core.begin_payment("paying")


def jumped(core: Core) -> None:
    overdue(core)
    core.rewind(CLOCK_JUMP_MS + 1_000)


def closing(core: Core) -> None:
    core.begin((10, 0)).hold("held", "ann")
    core.close()


def due(core: Core) -> None:
    closing(core)
    core.travel(HOLD_MS)


Step = Callable[[Core], object]

# What was before, and the call.
SCENARIOS: dict[str, tuple[Step, Step]] = {
    "reserve": (overdue, lambda c: c.reserve(Wish("o1", "zoe"))),
    "reserve 40": (
        overdue,
        lambda c: c.reserve(*[Wish(f"o{i}", f"b{i}", "0,1") for i in range(40)]),
    ),
    "reserve after a jump": (jumped, lambda c: c.reserve(Wish("o1", "zoe"))),
    "begin_payment": (overdue, lambda c: c.begin_payment("held")),
    "confirm": (overdue, lambda c: c.confirm("held", "p9")),
    "confirm late": (overdue, lambda c: c.confirm("expired", "p9")),
    "confirm twice": (overdue, lambda c: c.confirm("paid", "p9")),
    "confirm and settle": (closing, lambda c: c.confirm("held", "p9")),
    "release": (overdue, lambda c: c.release("held")),
    "release and settle": (closing, lambda c: c.release("held")),
    "refund": (overdue, lambda c: c.refund("paid")),
    "refund of money only": (overdue, lambda c: c.refund("paid", units=0, limit=0)),
    "expire": (due, lambda c: c.expire()),
    "expire after a jump": (jumped, lambda c: c.expire()),
    "add_stock": (overdue, lambda c: c.add_stock(0, 1)),
    "open": (lambda c: c.create(), lambda c: c.open()),
    "pause": (overdue, lambda c: c.pause()),
    "resume": (lambda c: c.begin().pause(), lambda c: c.resume()),
    "resume after a jump": (lambda c: (jumped(c), c.expire()), lambda c: c.resume()),
    "close": (overdue, lambda c: c.close()),
    "close and settle": (lambda c: c.begin(), lambda c: c.close()),
    "inspect": (overdue, lambda c: c.run("inspect")),
}


@pytest.mark.parametrize("key", KEY_NAMES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_damaged_key_changes_nothing(core: Core, name: str, key: str) -> None:
    prepare, call = SCENARIOS[name]
    prepare(core)
    at = core.keys[KEY_NAMES.index(key)]
    core.client.delete(at)
    core.client.set(at, "damaged")
    before = core.dump()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        call(core)
    assert core.dump() == before


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "inspect"])
def test_a_stream_that_is_ahead_of_its_sale_changes_nothing(core: Core, name: str) -> None:
    """A stream refuses an entry whose id is not above its last one: only the first write may be
    the one that is refused."""
    prepare, call = SCENARIOS[name]
    prepare(core)
    core.client.xadd(core.keys[6], {"sale": "paused|from the future"}, id=f"{2**50}-1")
    before = core.dump()
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        call(core)
    assert core.dump() == before


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_of_these_calls_does_its_work_on_sound_keys(core: Core, name: str) -> None:
    """Or else the damage would prove nothing."""
    prepare, call = SCENARIOS[name]
    prepare(core)
    before = core.dump()
    call(core)
    assert (core.dump() == before) == (name == "inspect")


def test_create_meets_no_keys_at_all_or_writes_nothing(core: Core) -> None:
    """What create finds instead of nothing is refused, see test_create; so is a damaged header."""
    core.client.set(core.keys[0], "damaged")
    before = core.dump()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        core.create()
    assert core.dump() == before
