"""reserve.lua, one order at a time: what an accepted order has taken, and each refusal."""

from __future__ import annotations

import pytest

from seckill.status import Status
from tests.lua.core import HOLD_MS, NEVER_MS, Core, Wish, header_answers
from tests.lua.test_fence import fenced


def exists(core: Core) -> Status:
    core.begin()
    core.hold("o1")
    (record,) = core.reserve(Wish("o1"))
    # An order that is known is answered with its record instead of a status.
    return Status.EXISTS if record == core.record("o1") else Status.CONFLICT


def conflict(core: Core) -> Status:
    core.begin().hold("o1", cart="0")
    return only(core, Wish("o1", cart="1"))


def upgrade_needed(core: Core) -> Status:
    core.begin().format = 2
    return only(core)


def stale_definition(core: Core) -> Status:
    core.begin().definition_id = "other"
    return only(core)


def paused(core: Core) -> Status:
    core.begin().pause()
    return only(core)


def not_open(core: Core) -> Status:
    core.create()
    return only(core)


def ended(core: Core) -> Status:
    core.begin().close()
    return only(core)


def not_allowed(core: Core) -> Status:
    core.begin(max_lapsed=1).lapse("o0")
    return only(core)


def sold_out(core: Core) -> Status:
    core.begin((1, 0)).hold("o0", buyer="bob")
    return only(core)


def only(core: Core, wish: Wish | None = None) -> Status:
    (answer,) = core.reserve(wish or Wish("o1"))
    assert isinstance(answer, Status)
    return answer


NO_TOKEN = Wish("o1", turn=(0, 0, 0))
LAPSED = Wish("o1", turn=(1, 1, 0))
NO_TICKET = Wish("o1", turn=(1, NEVER_MS, 0))

SCENARIOS = {
    Status.EXISTS: exists,
    Status.CONFLICT: conflict,
    Status.UNKNOWN_SALE: only,
    Status.UPGRADE_NEEDED: upgrade_needed,
    Status.FENCED: lambda core: only(fenced(core.begin())),
    Status.NEW_SERVER: lambda core: only(core.begin().elsewhere()),
    Status.STALE_DEFINITION: stale_definition,
    Status.UNKNOWN_SKU: lambda core: only(core.begin(), Wish("o1", cart="2")),
    Status.PAUSED: paused,
    Status.NOT_OPEN: not_open,
    Status.ENDED: ended,
    Status.TOKEN_NEEDED: lambda core: only(core.begin(), NO_TOKEN),
    Status.TOKEN_EXPIRED: lambda core: only(core.begin(), LAPSED),
    Status.UNKNOWN_TICKET: lambda core: only(core.begin(), NO_TICKET),
    Status.NOT_ALLOWED: not_allowed,
    Status.TOO_LATE: lambda core: only(core.begin(), Wish("o1", not_after=0)),
    Status.ORDER_LIMIT: lambda core: only(core.begin(limit_per_order=1), Wish("o1", cart="0:2")),
    Status.SKU_LIMIT: lambda core: only(core.begin((10, 1)), Wish("o1", cart="0:2")),
    Status.BUYER_LIMIT: lambda core: only(core.begin(limit_per_buyer=1), Wish("o1", cart="0:2")),
    Status.SOLD_OUT: sold_out,
    Status.INSUFFICIENT: lambda core: only(core.begin((1, 0)), Wish("o1", cart="0:2")),
    Status.CREATED: lambda core: only(core.begin()),
}


@pytest.mark.parametrize("status", SCENARIOS, ids=lambda status: status.name)
def test_every_answer(core: Core, status: Status) -> None:
    assert SCENARIOS[status](core) is status


def test_the_scenarios_are_the_answers_of_the_header() -> None:
    assert set(SCENARIOS) == header_answers("reserve")


def test_an_accepted_order_has_taken_everything_in_one_step(core: Core) -> None:
    core.begin((10, 0), (10, 0), max_lapsed=3)
    before = core.server_ms()
    now_ms, deadline_ms, answer, seq = core.reserve_raw(
        Wish("o1", "ann", "0:2,1", attrs="addr=7|room=3", print6="abcdef")
    )
    assert answer == [Status.CREATED]
    assert before <= now_ms <= core.server_ms()
    assert deadline_ms == now_ms + HOLD_MS
    assert core.stock(0) == (8, 2, 0, 10)
    assert core.stock(1) == (9, 1, 0, 10)
    assert core.purse("ann") == "0:2,1"
    record = f"h1abcdef{deadline_ms - int(core.header('origin_ms'))}|0:2,1|ann"
    assert core.record("o1") == record
    assert core.queue("holds") == ["o1"]
    assert core.queue("paying") == []
    event = core.events()[-1]
    assert event == (3, now_ms, "o1", f"held||{record}|addr=7|room=3")
    assert (core.header("seq"), core.header("last_ms")) == ("3", str(now_ms))
    assert seq == 3


def test_a_retry_finds_the_order_in_whatever_state_it_is(core: Core) -> None:
    core.begin(max_lapsed=1)
    for order, change in {
        "paying": core.begin_payment,
        "released": core.release,
        "confirmed": lambda order: core.confirm(order, "p1"),
    }.items():
        core.hold(order, buyer=order)
        change(order)
        assert core.reserve(Wish(order, buyer=order)) == [core.record(order)]
    core.refund("confirmed")
    core.lapse("expired", buyer="expired")
    core.confirm("released", "late")
    for order in ("paying", "released", "confirmed", "expired"):
        before = core.dump()
        assert core.reserve(Wish(order, buyer=order)) == [core.record(order)]
        assert core.dump() == before


@pytest.mark.parametrize(
    "other",
    [
        Wish("o1", cart="0"),
        Wish("o1", cart="0:22"),
        Wish("o1", cart="0:2,1"),
        Wish("o1", buyer="an", cart="0:2"),
        Wish("o1", buyer="anne", cart="0:2"),
        Wish("o1", cart="0:2", print6="attrib"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_paid", [False, True])
def test_another_payload_under_the_same_id_conflicts(
    core: Core, other: Wish, is_paid: bool
) -> None:
    core.begin().hold("o1", cart="0:2")
    if is_paid:
        core.confirm("o1", "p1")
    before = core.dump()
    assert core.reserve(other) == [Status.CONFLICT]
    assert core.dump() == before


@pytest.mark.parametrize("status", [s for s in SCENARIOS if s is not Status.CREATED])
def test_whatever_is_not_created_writes_nothing(core: Core, status: Status) -> None:
    SCENARIOS[status](core)
    before = core.dump()
    wish = {
        Status.CONFLICT: Wish("o1", cart="1"),
        Status.UNKNOWN_SKU: Wish("o1", cart="2"),
        Status.TOO_LATE: Wish("o1", not_after=0),
        Status.TOKEN_NEEDED: NO_TOKEN,
        Status.TOKEN_EXPIRED: LAPSED,
        Status.UNKNOWN_TICKET: NO_TICKET,
    }
    two = Wish("o1", cart="0:2")
    limits = {Status.ORDER_LIMIT, Status.SKU_LIMIT, Status.BUYER_LIMIT, Status.INSUFFICIENT}
    core.reserve(two if status in limits else wish.get(status, Wish("o1")))
    assert core.dump() == before


def test_a_refused_order_may_succeed_later(core: Core) -> None:
    core.begin((1, 0)).hold("o1", buyer="bob")
    assert core.reserve(Wish("o2")) == [Status.SOLD_OUT]
    core.release("o1")
    assert core.reserve(Wish("o2")) == [Status.CREATED]


def test_the_window_opens_and_ends_to_the_millisecond(core: Core) -> None:
    core.begin()
    # The sale's clock never runs back, so a future last_ms is a clock that stands still.
    now_ms = core.server_ms() + 3_600_000
    core.set_header(last_ms=now_ms, opens_ms=now_ms + 1, ends_ms=now_ms + 2)
    assert core.reserve(Wish("o1")) == [Status.NOT_OPEN]
    core.set_header(opens_ms=now_ms)
    assert core.reserve(Wish("o1")) == [Status.CREATED]
    core.set_header(ends_ms=now_ms + 1)
    assert core.reserve(Wish("o2")) == [Status.CREATED]
    core.set_header(ends_ms=now_ms)
    assert core.reserve(Wish("o3")) == [Status.ENDED]


def test_not_after_is_the_last_millisecond_that_counts(core: Core) -> None:
    core.begin()
    # By the server's clock, even when the sale's own time stands still ahead of it.
    now_ms = core.server_ms()
    core.set_header(last_ms=now_ms + 3_600_000, ends_ms=now_ms + 7_200_000)
    assert core.reserve(Wish("o1", not_after=now_ms - 1)) == [Status.TOO_LATE]
    assert core.reserve(Wish("o1", not_after=now_ms + 60_000)) == [Status.CREATED]
    # What is known is found even by a batch that comes too late.
    assert core.reserve(Wish("o1", not_after=0)) == [core.record("o1")]


def test_the_limit_per_order_counts_all_lines(core: Core) -> None:
    core.begin(limit_per_order=3)
    assert core.reserve(Wish("o1", cart="0:2,1:2")) == [Status.ORDER_LIMIT]
    assert core.reserve(Wish("o1", cart="0:2,1")) == [Status.CREATED]
    assert core.reserve(Wish("o2", cart="0:3")) == [Status.CREATED]


def test_the_limit_per_sku_counts_all_orders_of_a_buyer(core: Core) -> None:
    core.begin((10, 2), (10, 0))
    core.hold("o1", cart="0")
    assert core.reserve(Wish("o2", cart="0:2")) == [Status.SKU_LIMIT]
    assert core.reserve(Wish("o2", cart="0,1:9")) == [Status.CREATED]
    assert core.reserve(Wish("o3", cart="0")) == [Status.SKU_LIMIT]
    assert core.reserve(Wish("o3", buyer="bob", cart="0:2")) == [Status.CREATED]
    assert core.purse("ann") == "0:2,1:9"


def test_the_limit_per_buyer_counts_all_skus(core: Core) -> None:
    core.begin(limit_per_buyer=3)
    core.hold("o1", cart="0:2")
    assert core.reserve(Wish("o2", cart="1:2")) == [Status.BUYER_LIMIT]
    assert core.reserve(Wish("o2", cart="1")) == [Status.CREATED]
    assert core.reserve(Wish("o3", cart="0")) == [Status.BUYER_LIMIT]
    # A paid unit still counts, one given up does not.
    core.confirm("o1", "p1")
    assert core.reserve(Wish("o3", cart="0")) == [Status.BUYER_LIMIT]
    core.release("o2")
    assert core.reserve(Wish("o3", cart="0")) == [Status.CREATED]


def test_lapses_are_counted_until_nothing_is_allowed(core: Core) -> None:
    core.begin(max_lapsed=2)
    core.lapse("o1")
    core.lapse("o2")
    assert core.purse() == "!2"
    assert core.reserve(Wish("o4")) == [Status.NOT_ALLOWED]
    assert core.reserve(Wish("o3", buyer="bob")) == [Status.CREATED]
    assert core.reserve(Wish("o1")) == [core.record("o1")]
    core.set_header(max_lapsed=0)
    assert core.reserve(Wish("o4")) == [Status.CREATED]
    assert core.purse() == "0!2"


def test_two_digit_indexes_are_sorted_as_numbers(core: Core) -> None:
    core.begin(*[(10, 0)] * 11)
    core.hold("o1", cart="10")
    core.hold("o2", cart="2:3")
    core.hold("o3", cart="0,10")
    assert core.purse() == "0,2:3,10:2"


def test_the_largest_stock_is_exact(core: Core) -> None:
    core.begin((1_000_000_000, 0))
    core.hold("o1", cart="0:10000")
    assert core.stock(0) == (999_990_000, 10_000, 0, 1_000_000_000)
    core.release("o1")
    assert core.stock(0) == (1_000_000_000, 0, 0, 1_000_000_000)


def test_a_sale_closed_before_its_start_has_ended(core: Core) -> None:
    core.begin(opens_ms=core.server_ms() + 60_000)
    assert core.reserve(Wish("o1")) == [Status.NOT_OPEN]
    core.close()
    assert core.reserve(Wish("o1")) == [Status.ENDED]
