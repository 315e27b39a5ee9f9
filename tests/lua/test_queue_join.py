"""join.lua and leave.lua: one place a buyer in order of arrival, and what giving it up does."""

from __future__ import annotations

import msgspec
import pytest
import redis

from seckill.status import Status
from tests.lua.core import CLOCK_JUMP_MS, Core, Wish
from tests.lua.queue_core import LIFE_MS, PAUSE_MS, QueueCore, Ticket

COLUMNS = ("not_after", "id", "buyer", "cart", "print6", "attrs")
"""Of a batch of orders, before there were queues."""


@pytest.fixture
def sale(client: redis.Redis) -> QueueCore:
    return QueueCore(client)


def called(sale: QueueCore, buyers: int = 40, stock: int = 2) -> QueueCore:
    """Some of the buyers b0, b1 … are called."""
    sale.begin_queue(stock=stock).crowd(buyers)
    assert 0 < sale.admit().head < buyers
    return sale


def test_tickets_are_numbered_in_the_order_of_joining(sale: QueueCore) -> None:
    sale.begin_queue()
    assert sale.join("ann", "bob") == [Ticket(0, False), Ticket(1, False)]
    assert sale.join("eve") == [Ticket(2, False)]
    server_ms, nothing, _, seq = sale.join_raw(["zoe"])
    assert abs(server_ms - sale.server_ms()) < 10_000
    assert (nothing, str(seq)) == (0, sale.header("seq"))
    assert sale.queue_field("next") == "4"


def test_joining_again_finds_the_same_ticket_and_writes_nothing(sale: QueueCore) -> None:
    sale.begin_queue().join("ann", "bob")
    before = sale.dump()
    assert sale.join("bob", "ann", "bob") == [Ticket(1, True), Ticket(0, True), Ticket(1, True)]
    assert sale.dump() == before


def test_a_buyer_who_joins_twice_in_one_batch_has_one_ticket(sale: QueueCore) -> None:
    sale.begin_queue()
    assert sale.join("ann", "ann", "bob") == [Ticket(0, False), Ticket(0, True), Ticket(1, False)]
    assert sale.queue_field("next") == "2"


def test_a_thousand_in_one_batch(sale: QueueCore) -> None:
    sale.begin_queue().crowd(1_000)
    assert sale.join("b999", "b0", "new") == [
        Ticket(999, True),
        Ticket(0, True),
        Ticket(1_000, False),
    ]


def test_a_weight_of_one_is_not_written_down(sale: QueueCore) -> None:
    sale.begin_queue("draw", draw_in_ms=1_000).join("ann", "bob", weights=[1, 7])
    assert sale.dump()["tickets"] == {b"ann": b"0", b"bob": b"1:7"}
    assert sale.join("bob", weights=[3]) == [Ticket(1, True)]


def test_a_called_buyer_keeps_the_ticket_until_its_turn_is_over(sale: QueueCore) -> None:
    called(sale)
    sale.travel(LIFE_MS - 1)
    sale.admit()
    assert sale.join("b0") == [Ticket(0, True)]
    sale.travel(1)
    sale.admit()
    assert sale.join("b0", "b0", "b39") == [Ticket(40, False), Ticket(40, True), Ticket(39, True)]


def test_whoever_joins_again_stands_behind_all_others(sale: QueueCore) -> None:
    called(sale, 10, stock=5)
    first = sale.admit().head
    sale.travel(LIFE_MS)
    assert sale.admit().lapsed == first
    assert sale.join("b0") == [Ticket(10, False)]
    while (look := sale.admit()).head <= 10:
        assert look.head <= 11
        sale.travel(LIFE_MS)
    assert look.steps[-1].stop == 11


# -- who can't join -----------------------------------------------------------------------------


def no_queue(sale: QueueCore) -> None:
    sale.begin((10, 0))


def upgrade_needed(sale: QueueCore) -> None:
    sale.begin_queue().format = 2


def stale(sale: QueueCore) -> None:
    sale.begin_queue().definition_id = "another"


def closed(sale: QueueCore) -> None:
    sale.begin_queue().close()


def ended(sale: QueueCore) -> None:
    sale.begin_queue().set_header(ends_ms=sale.now_ms)


@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        (lambda _: None, Status.UNKNOWN_SALE),
        (upgrade_needed, Status.UPGRADE_NEEDED),
        (stale, Status.STALE_DEFINITION),
        (no_queue, Status.NO_QUEUE),
        (closed, Status.ENDED),
        (ended, Status.ENDED),
        (lambda sale: sale.begin_queue(joins_in_ms=1), Status.NOT_OPEN),
        (lambda sale: sale.begin_queue("draw"), Status.JOINS_CLOSED),
    ],
)
def test_refusals_write_nothing(sale: QueueCore, prepare, status: Status) -> None:  # type: ignore[no-untyped-def]
    prepare(sale)
    before = sale.dump()
    reply = sale.join_raw(["ann", "bob"])
    assert reply[2] == [-status, -status]
    # 0 tells a lane that there is no such sale.
    assert (reply[0] == 0) == (status is Status.UNKNOWN_SALE)
    assert sale.dump() == before


def test_too_late_is_by_the_servers_own_clock(sale: QueueCore) -> None:
    sale.begin_queue()
    assert sale.join("ann", not_after=sale.server_ms() - 1) == [Status.TOO_LATE]
    assert sale.join("ann", not_after=sale.server_ms() + 60_000) == [Ticket(0, False)]
    assert sale.join("ann", not_after=0) == [Ticket(0, True)]


def test_a_known_ticket_is_found_whatever_else_holds(sale: QueueCore) -> None:
    sale.begin_queue("draw", draw_in_ms=1_000).join("ann")
    sale.travel(1_000)
    assert sale.join("ann", "bob", not_after=0) == [Ticket(0, True), Status.JOINS_CLOSED]
    sale.close()
    assert sale.join("ann", "bob") == [Ticket(0, True), Status.ENDED]


def test_a_turn_that_is_over_is_found_once_nobody_can_join(sale: QueueCore) -> None:
    called(sale)
    sale.travel(LIFE_MS)
    sale.admit()
    sale.close()
    assert sale.join("b0") == [Ticket(0, True)]


@pytest.mark.parametrize("moment", ["created", "paused", "jumped"])
def test_buyers_join_while_nothing_is_sold(sale: QueueCore, moment: str) -> None:
    sale.begin_queue(stock=5)
    sold_before_the_queue(sale, "o1", "zoe")
    if moment == "created":
        sale.set_header(state="created")
    elif moment == "paused":
        sale.pause()
    else:
        sale.rewind(CLOCK_JUMP_MS + 1_000)
    assert sale.join("ann") == [Ticket(0, False)]
    assert sale.admit().head == 0


def test_opening_a_queue_twice_changes_nothing(sale: QueueCore) -> None:
    sale.begin_queue().join("ann")
    before = sale.dump()
    assert sale.open_queue("draw", 1, 1, 1_000, 1, 1) is Status.ALREADY
    assert sale.dump() == before
    assert sale.events()[-1].text == "queue_opened|c0ffee"


def test_a_new_queue_has_nothing_of_a_lost_one(sale: QueueCore) -> None:
    for key in sale.queue_keys[1:]:
        sale.client.set(key, "left over")
    sale.begin_queue()
    assert sale.client.exists(*sale.queue_keys) == 1
    assert sale.join("ann") == [Ticket(0, False)]


@pytest.mark.parametrize("mode", ["queue", "shuffle"])
def test_the_queue_of_a_sale_that_was_deleted_by_hand_is_nobodys(
    sale: QueueCore, mode: str
) -> None:
    sale.begin_queue(mode, draw_in_ms=10).crowd(3)
    sale.travel(10)
    assert sale.admit().tail == (3 if mode == "queue" else 0)
    sale.client.delete(*sale.keys)
    assert sale.create(opens_ms=sale.now_ms) is Status.CREATED
    assert sale.open() is Status.DONE
    # Until it opens one of its own it has none.
    assert (sale.admit_raw(), sale.leave("b0")) == ([Status.NO_QUEUE], Status.NO_QUEUE)
    assert sale.join("b0") == [Status.NO_QUEUE]
    assert sale.open_queue("shuffle", 0, sale.now_ms + 10, LIFE_MS, 0, 20) is Status.CREATED
    look = sale.admit()
    assert (look.next, look.closed, look.ranked, look.head) == (0, -1, -1, 0)
    assert sale.join("b0") == [Ticket(0, False)]


# -- an engine of a build that knows no queues --------------------------------------------------


def sold_before_the_queue(sale: QueueCore, order: str, buyer: str) -> None:
    """An order without a turn, as of a moment when the sale had no queue yet."""
    sale.client.hdel(sale.keys[0], "queue")
    sale.hold(order, buyer)
    sale.set_header(queue=1)


def asked_without_turns(sale: QueueCore, *wishes: Wish, columns: int) -> list[Status | str]:
    """The answers to such an engine, which knows no keys of a queue."""
    batch = [[getattr(wish, name) for wish in wishes] for name in COLUMNS[:columns]]
    packed = msgspec.msgpack.encode(batch)
    reply = Core.run(sale, "reserve", sale.definition_id, packed)
    return [answer.decode() if isinstance(answer, bytes) else Status(answer) for answer in reply[2]]


@pytest.mark.parametrize("columns", [4, 6])
@pytest.mark.parametrize("mode", ["queue", "draw"])
def test_it_sells_nothing_past_a_queue(sale: QueueCore, mode: str, columns: int) -> None:
    sale.begin_queue(mode, draw_in_ms=1_000)
    before = sale.dump()
    wishes = [Wish("o1"), Wish("o2", "bob", "9")]
    answers = asked_without_turns(sale, *wishes, columns=columns)
    assert answers == [Status.UPGRADE_NEEDED] * 2
    assert sale.dump() == before


def test_it_sells_nothing_with_the_queues_keys_either(sale: QueueCore) -> None:
    sale.begin_queue()
    assert sale.reserve(Wish("o1")) == [Status.UPGRADE_NEEDED]


def test_it_finds_what_it_has_sold(sale: QueueCore) -> None:
    sale.begin_queue()
    sold_before_the_queue(sale, "o1", "ann")
    found = asked_without_turns(sale, Wish("o1"), Wish("o1", "bob"), columns=4)
    assert found == [sale.record("o1"), Status.CONFLICT]


def test_it_reads_the_definition_again_first(sale: QueueCore) -> None:
    sale.begin_queue().definition_id = "another"
    assert asked_without_turns(sale, Wish("o1"), columns=4) == [Status.STALE_DEFINITION]


def test_it_sells_in_a_sale_without_a_queue(sale: QueueCore) -> None:
    sale.begin()
    assert asked_without_turns(sale, Wish("o1"), columns=4) == [Status.CREATED]


# -- leaving ------------------------------------------------------------------------------------


def test_who_waits_leaves_a_place_that_is_passed_over(sale: QueueCore) -> None:
    sale.begin_queue(stock=2).crowd(10)
    before = sale.admit()
    assert sale.leave("b5") is Status.DONE
    assert sale.left() == [5]
    after = sale.admit()
    assert (after.waiting, after.tail) == (before.waiting - 1, before.tail)
    assert sale.leave("b5") is Status.UNKNOWN_TICKET
    # A new ticket stands at the end.
    assert sale.join("b5") == [Ticket(10, False)]


def test_who_was_called_frees_the_turn(sale: QueueCore) -> None:
    called(sale)
    before = sale.admit()
    assert sale.leave("b1") is Status.DONE
    assert sale.left() == []
    assert sale.step_text("1:l") == "1"
    sale.travel(PAUSE_MS)
    after = sale.admit(before.steps[-1].number)
    assert after.live == before.live - 1 + sum(step.stop - step.start for step in after.steps)
    assert after.head > before.head


def test_who_gave_the_ticket_up_can_not_buy_with_its_token(sale: QueueCore) -> None:
    called(sale)
    (step,) = sale.admit().steps
    turn = sale.turn("b1", step)
    sale.leave("b1")
    assert sale.buy("b1", step) is Status.UNKNOWN_TICKET
    sale.join("b1")
    # Nor with the old token and a new ticket.
    sale.turn = lambda *_: turn  # type: ignore[method-assign]
    assert sale.buy("b1", step) is Status.UNKNOWN_TICKET


def test_who_has_bought_frees_nothing(sale: QueueCore) -> None:
    called(sale)
    (step,) = sale.admit().steps
    assert sale.buy("b0", step) is Status.CREATED
    assert sale.leave("b0") is Status.DONE
    assert sale.step_text("1:l") is None
    assert sale.step_text("1:u") == "1"


def test_whose_turn_is_over_frees_nothing(sale: QueueCore) -> None:
    called(sale)
    sale.travel(LIFE_MS)
    look = sale.admit()
    assert sale.leave("b0") is Status.DONE
    again = sale.admit()
    assert (again.live, again.lapses, sale.left()) == (look.live, look.lapses, [])


def test_leaving_before_the_draw_leaves_no_place(sale: QueueCore) -> None:
    sale.begin_queue("shuffle", draw_in_ms=1_000).join("ann", "bob", "eve")
    assert sale.leave("bob") is Status.DONE
    assert sale.left() == []
    assert sale.dump()["tickets"] == {b"ann": b"0", b"eve": b"2"}


def test_nobody_leaves_while_the_list_is_put_in_order(sale: QueueCore) -> None:
    """Also not who came after it was closed: only the ranks tell where that place is."""
    sale.begin_queue("shuffle", draw_in_ms=1_000).join("ann")
    sale.travel(1_000)
    sale.join("late")
    before = sale.dump()
    assert sale.leave("ann") is sale.leave("late") is Status.DRAWING
    assert sale.dump() == before


def test_a_ranked_ticket_leaves_its_rank_and_stays_in_the_published_list(sale: QueueCore) -> None:
    sale.begin_queue("shuffle", stock=1, draw_in_ms=1_000).join("ann", "bob", "eve")
    sale.travel(1_000)
    sale.join("late")
    sale.admit()
    sale.rank([2, 0, 1], closed=3)
    assert sale.leave("bob") is sale.leave("late") is Status.DONE
    assert sale.left() == [2, 3]
    assert sale.dump()["gone"] == {b"bob|1": b"1"}


@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        (lambda _: None, Status.UNKNOWN_SALE),
        (upgrade_needed, Status.UPGRADE_NEEDED),
        (stale, Status.STALE_DEFINITION),
        (no_queue, Status.NO_QUEUE),
        (lambda sale: sale.begin_queue(), Status.UNKNOWN_TICKET),
    ],
)
def test_refusals_of_leave_write_nothing(sale: QueueCore, prepare, status: Status) -> None:  # type: ignore[no-untyped-def]
    prepare(sale)
    before = sale.dump()
    assert sale.leave("ann") is status
    assert sale.dump() == before


@pytest.mark.parametrize("prepare", [closed, ended])
def test_whoever_wants_to_leaves_after_the_end(sale: QueueCore, prepare) -> None:  # type: ignore[no-untyped-def]
    sale.begin_queue().join("ann")
    if prepare is closed:
        sale.close()
    else:
        sale.set_header(ends_ms=sale.now_ms)
    assert sale.leave("ann") is Status.DONE
