"""lua/lib/sale.lua: a sale's clock never runs back, and a jump forward expires nobody."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import CLOCK_JUMP_MS, HOLD_MS, Core, Wish

AHEAD_MS = 3_600_000
JUMP_MS = CLOCK_JUMP_MS + 1_000


def test_a_sale_from_the_future_stays_monotonic(core: Core) -> None:
    """The server's clock was put back by an hour: the sale waits for it."""
    core.begin(max_lapsed=3)
    core.hold("o1")
    ahead_ms = core.server_ms() + AHEAD_MS
    core.set_header(last_ms=ahead_ms, ends_ms=ahead_ms + 1)
    server_ms, deadline_ms, *_ = core.reserve_raw(Wish("o2", "bob"))
    assert deadline_ms == ahead_ms + HOLD_MS
    # What the lane learns the clock from is the server's own.
    assert abs(server_ms - core.server_ms()) < 10_000
    assert core.begin_payment("o2").now_ms == ahead_ms
    assert core.confirm("o2", "p1").now_ms == ahead_ms
    assert core.refund("o2").now_ms == ahead_ms
    assert core.pause() is core.resume() is Status.DONE
    assert core.add_stock(0, 5)[0] is Status.DONE
    swept = core.expire()
    assert (swept.now_ms, swept.expired) == (ahead_ms, 1)
    core.close()
    assert core.header("last_ms") == str(ahead_ms)
    times = [event.at_ms for event in core.events()]
    assert times == sorted(times)
    assert set(times[3:]) == {ahead_ms}


VERBS = {
    "reserve": lambda core: core.reserve(Wish("o2", "bob")),
    "begin_payment": lambda core: core.begin_payment("o1"),
    "confirm": lambda core: core.confirm("o1", "p1"),
    "release": lambda core: core.release("o1"),
    "expire": lambda core: core.expire(),
    "add_stock": lambda core: core.add_stock(0, 1),
    "pause": lambda core: core.pause(),
    "close": lambda core: core.close(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_clock_runs_on_once_nothing_is_held(core: Core, verb: str) -> None:
    """A jump matters to whoever holds units; a sale without holds just has been idle."""
    core.begin().paid("o1")
    core.rewind(JUMP_MS)
    before = core.server_ms()
    VERBS[verb](core)
    if verb in {"reserve", "add_stock", "pause", "close"}:
        assert int(core.header("last_ms")) >= before
        assert core.events()[-1].at_ms >= before
    assert core.header("reason") == ""


def test_reserve_pauses_when_the_clock_has_jumped(core: Core) -> None:
    core.begin().hold("o1")
    core.rewind(JUMP_MS)
    then_ms = int(core.header("last_ms"))
    answers = core.reserve(Wish("o1"), Wish("o2", "bob"), Wish("o3", "eve", cart="9"))
    assert answers == [core.record("o1"), Status.PAUSED, Status.UNKNOWN_SKU]
    assert (core.header("state"), core.header("reason")) == ("paused", "clock_jump")
    assert core.events()[-1][1:] == (then_ms, "sale", "paused|clock_jump")
    assert core.header("last_ms") == str(then_ms)
    before = core.dump()
    assert core.reserve(Wish("o2", "bob")) == [Status.PAUSED]
    assert core.dump() == before


def test_expire_pauses_when_the_clock_has_jumped(core: Core) -> None:
    core.begin().hold("o1")
    core.rewind(JUMP_MS)
    assert core.expire()[:4:2] == (Status.CLOCK_JUMP, 0)
    assert (core.header("state"), core.header("reason")) == ("paused", "clock_jump")
    assert core.record("o1")[0] == "h"
    before = core.dump()
    assert core.expire().status is Status.CLOCK_JUMP
    assert core.dump() == before


def test_resume_accepts_the_time(core: Core) -> None:
    core.begin(max_lapsed=3).hold("o1")
    core.rewind(JUMP_MS)
    core.expire()
    before = core.server_ms()
    assert core.resume() is Status.DONE
    assert (core.header("state"), core.header("reason")) == ("open", "")
    assert int(core.header("last_ms")) >= before
    # What is overdue by the new time expires with the next sweep.
    assert core.record("o1")[0] == "h"
    assert core.expire()[:4:2] == (Status.DONE, 1)
    assert core.reserve(Wish("o2", "bob")) == [Status.CREATED]


def test_resume_of_a_sale_that_has_not_noticed_its_jump(core: Core) -> None:
    core.begin().hold("o1")
    core.rewind(JUMP_MS)
    assert core.resume() is Status.ALREADY
    assert core.expire().status is Status.CLOCK_JUMP
    assert core.resume() is Status.DONE
    assert core.expire().status is Status.DONE


@pytest.mark.parametrize("verb", ["confirm", "release", "begin_payment"])
def test_orders_go_on_while_the_clock_is_in_doubt(core: Core, verb: str) -> None:
    core.begin().hold("o1")
    core.rewind(JUMP_MS)
    then_ms = int(core.header("last_ms"))
    core.expire()
    reply = VERBS[verb](core)
    assert (reply.status, reply.now_ms) == (Status.DONE, then_ms)
    assert core.events()[-1].at_ms == then_ms
    if verb != "begin_payment":
        # Nobody can be harmed by the jump any more, but new orders wait for a person all the same.
        assert core.expire().status is Status.DONE
        assert core.reserve(Wish("o2", "bob")) == [Status.PAUSED]


def test_a_pause_by_a_person_keeps_its_reason(core: Core) -> None:
    core.begin().hold("o1")
    core.pause("stocktaking")
    core.rewind(JUMP_MS)
    assert core.expire().status is Status.CLOCK_JUMP
    assert core.header("reason") == "stocktaking"
    assert core.resume() is Status.DONE
    assert core.expire().status is Status.DONE


def test_a_step_within_the_bound_is_time_that_passed(core: Core) -> None:
    core.begin(hold_ms=100_000).hold("o1")
    core.rewind(CLOCK_JUMP_MS - 10_000)
    swept = core.expire()
    assert (swept.status, swept.expired) == (Status.DONE, 1)


@pytest.mark.parametrize("was_noticed", [False, True])
def test_a_closed_sale_gets_over_a_jump(core: Core, was_noticed: bool) -> None:
    """An outage of eleven minutes after the close must not keep the units for ever: resume accepts
    the time, and the sale stays closed."""
    core.begin().hold("o1")
    core.close()
    core.rewind(JUMP_MS)
    if was_noticed:
        assert core.expire().status is Status.CLOCK_JUMP
    before = core.kinds()
    assert core.resume() is Status.DONE
    assert core.header("state") == "closed"
    assert core.kinds() == before
    assert core.resume() is Status.CLOSED
    assert core.expire()[:4:2] == (Status.DONE, 1)
    assert core.record("o1")[0] == "x"
    assert core.header("state") == "settled"


def test_a_sale_closed_in_the_middle_of_a_jump(core: Core) -> None:
    core.begin().hold("o1")
    core.rewind(JUMP_MS)
    core.expire()
    assert core.close() is Status.DONE
    assert core.expire().status is Status.CLOCK_JUMP
    assert core.resume() is Status.DONE
    assert core.expire().expired == 1
    assert core.header("state") == "settled"
