"""lua/find.lua and patience's clock: what a caller has given up is never executed afterwards, not
even when the server's clock is set back."""

from __future__ import annotations

from seckill.status import Status
from tests.lua.core import DEFINITION_ID, HOLD_MS, Core, Wish

BACK_MS = 60_000


def find(core: Core, order: str, passed_ms: int = 0) -> tuple[Status, str]:
    status, record, definition_id = core.run("find", order, passed_ms)
    assert definition_id.decode() in (DEFINITION_ID, "")
    return Status(status), record.decode()


def test_an_order_that_is_there_and_one_that_is_not(core: Core) -> None:
    core.begin().hold("o1")
    before = core.dump()
    assert find(core, "o1", core.server_ms()) == (Status.DONE, core.record("o1"))
    assert core.dump() == before
    now_ms = core.server_ms()
    assert find(core, "o2") == (Status.DONE, "")
    # Kept, because a clock that is set back from here must not let it be made after all.
    assert int(core.header("passed_ms")) >= now_ms
    assert find(Core(core.client), "o1") == (Status.UNKNOWN_SALE, "")


def test_what_was_given_up_stays_so_when_the_clock_was_set_back(core: Core) -> None:
    """The caller's clock, which the server had shown, is a minute ahead of the server's now."""
    core.begin()
    passed_ms = core.server_ms() + BACK_MS
    stuck = Wish("o1", not_after=passed_ms - 1)
    assert find(core, "o1", passed_ms) == (Status.DONE, "")
    answer_ms, _, answers, _ = core.reserve_raw(stuck)
    assert answers == [Status.TOO_LATE]
    # From the answer the lane learns what the clock shows, and what it sends by that is executed.
    assert answer_ms == passed_ms
    assert core.reserve(Wish("o2", not_after=answer_ms + BACK_MS)) == [Status.CREATED]
    # Whoever has seen less changes nothing.
    assert find(core, "o3", core.server_ms()) == (Status.DONE, "")
    assert core.header("passed_ms") == str(passed_ms)
    assert core.reserve(stuck) == [Status.TOO_LATE]
    # A buyer with orders is asked for the clock elsewhere in the script.
    assert core.reserve(Wish("o4", not_after=passed_ms - 1)) == [Status.TOO_LATE]


def test_the_sale_s_own_time_stays_the_server_s(core: Core) -> None:
    core.begin()
    assert find(core, "o1", core.server_ms() + BACK_MS)[0] is Status.DONE
    _, deadline_ms, *_ = core.reserve_raw(Wish("o2"))
    assert deadline_ms <= core.server_ms() + HOLD_MS
    assert core.reserve(Wish("o2")) == [core.record("o2")]
