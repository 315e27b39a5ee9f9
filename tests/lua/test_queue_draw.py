"""list.lua, name_value.lua and draw.lua: a list that closes by itself, and ranks that are final."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from seckill.status import Status
from tests.lua.queue_core import LIFE_MS, NO_RANK, PAUSE_MS, QueueCore, Ticket

DRAW_MS = 1_000


@pytest.fixture
def sale(client: redis.Redis) -> QueueCore:
    return QueueCore(client)


def due(sale: QueueCore, mode: str = "shuffle", *buyers: str, stock: int = 2) -> QueueCore:
    """It is the moment at which the list closes, and nobody has noticed."""
    overbook = 1 if mode == "draw" else 20
    sale.begin_queue(mode, stock=stock, draw_in_ms=DRAW_MS, overbook=overbook)
    sale.join(*(buyers or ("ann", "bob", "eve", "zoe")))
    sale.travel(DRAW_MS)
    return sale


def listed(sale: QueueCore, mode: str = "shuffle") -> QueueCore:
    due(sale, mode).admit()
    assert sale.list_tickets(count=4) is Status.DONE
    return sale


def test_the_list_is_open_until_its_time_has_come(sale: QueueCore) -> None:
    sale.begin_queue("draw", draw_in_ms=DRAW_MS).join("ann")
    sale.travel(DRAW_MS - 1)
    look = sale.admit()
    assert (look.closed, look.tail, look.waiting, look.next) == (-1, 0, 0, 1)
    assert sale.join("bob") == [Ticket(1, False)]
    sale.travel(1)
    look = sale.admit()
    assert (look.closed, look.ranked, look.tail, look.waiting, look.head) == (2, -1, 0, 0, 0)
    assert sale.events()[-1].text == "queue_closed|2"
    assert sale.queue_field("closed_ms") == str(sale.now_ms)


@pytest.mark.parametrize("mode", ["shuffle", "draw"])
def test_whoever_comes_first_after_its_time_finds_it_closed(sale: QueueCore, mode: str) -> None:
    """Nobody has looked at that moment; it counts all the same."""
    due(sale, mode)
    assert sale.join("late") == [Status.JOINS_CLOSED if mode == "draw" else Ticket(4, False)]
    sale.travel(60_000)
    assert sale.admit().closed == 4
    assert [event.text for event in sale.events()].count("queue_closed|4") == 1


def test_a_late_joiner_of_a_shuffle_closes_the_list_in_the_same_step(sale: QueueCore) -> None:
    due(sale)
    sale.join("late")
    assert sale.queue_field("closed") == "4"
    assert sale.events()[-1].text == "queue_closed|4"


def test_a_list_of_nobody_is_closed_and_ranked_too(sale: QueueCore) -> None:
    sale.begin_queue("shuffle", stock=5)
    assert sale.admit().closed == 0
    sale.rank([], closed=0)
    sale.join("late")
    look = sale.admit()
    assert (look.ranked, look.tail, look.head) == (0, 1, 1)


def test_a_queue_closes_nothing(sale: QueueCore) -> None:
    sale.begin_queue().join("ann")
    sale.travel(10**9)
    assert sale.admit().closed == -1
    assert sale.list_tickets() is Status.NOT_OPEN


def test_nobody_is_called_before_the_ranks_are_there(sale: QueueCore) -> None:
    listed(sale)
    sale.travel(LIFE_MS)
    assert sale.admit().head == 0
    sale.put_ranks([1, 0, 3, 2])
    assert sale.admit().head == 0
    assert sale.draw(ranked=4) is Status.DONE
    assert sale.admit().head == 3


def test_positions_are_the_ranks_and_late_joiners_stand_behind(sale: QueueCore) -> None:
    due(sale, "shuffle", "ann", "bob", "eve", "zoe", stock=1)
    sale.join("late")
    sale.admit()
    sale.rank([3, 1, 0, 2], closed=4)
    sale.join("later")
    look = sale.admit()
    assert (look.tail, look.head, look.ranked) == (6, 1, 4)
    # zoe has been called, and nobody else: she alone is in the line again when she joins again.
    sale.travel(LIFE_MS)
    assert sale.admit().lapsed == 1
    assert sale.join("zoe", "bob", "late", "later") == [
        Ticket(6, False),
        Ticket(1, True),
        Ticket(4, True),
        Ticket(5, True),
    ]
    assert sale.dump()["gone"] == {b"zoe|3": b"3"}


def test_a_ticket_that_was_given_up_before_has_no_position(sale: QueueCore) -> None:
    sale.begin_queue("shuffle", stock=1, draw_in_ms=DRAW_MS).join("ann", "bob", "eve")
    sale.leave("bob")
    sale.travel(DRAW_MS)
    sale.admit()
    sale.join("late")
    sale.rank([2, 0], closed=3)
    look = sale.admit()
    assert (look.closed, look.ranked, look.tail) == (3, 2, 3)
    # late is at position 2, right behind the two who are ranked.
    assert sale.leave("late") is Status.DONE
    assert sale.left() == [2]


def test_what_late_joiners_leave_is_passed_over(sale: QueueCore) -> None:
    due(sale, "shuffle", "ann", stock=100)
    sale.join("late", "later")
    sale.admit()
    sale.rank([0], closed=1)
    sale.leave("late")
    look = sale.admit()
    assert (look.head, look.live, look.waiting) == (3, 2, 0)


def test_a_draw_gives_no_second_ticket(sale: QueueCore) -> None:
    listed(sale, "draw").put_ranks([0, 1, 2, 3])
    sale.draw(ranked=4)
    sale.admit()
    sale.travel(LIFE_MS)
    assert sale.admit().lapsed == 2
    assert sale.join("ann") == [Ticket(0, True)]
    sale.leave("ann")
    assert sale.join("ann") == [Status.JOINS_CLOSED]


def test_the_winners_are_the_first_ranks(sale: QueueCore) -> None:
    listed(sale, "draw").put_ranks([3, 0, 2, 1])
    sale.draw(ranked=4)
    (step,) = sale.admit().steps
    assert (step.start, step.stop) == (0, 2)
    # bob and zoe; whoever else leaves now leaves a waiting place.
    sale.leave("eve")
    assert sale.left() == [2]
    sale.leave("zoe")
    sale.travel(PAUSE_MS)
    # zoe's turn is free, eve's place is gone: ann is next.
    look = sale.admit()
    assert (look.head, look.live) == (4, 2)


# -- once and for all ---------------------------------------------------------------------------


def test_a_list_is_written_down_once(sale: QueueCore) -> None:
    listed(sale)
    assert sale.events()[-1].text == "queue_listed|4|d16e57"
    before = sale.dump()
    assert sale.list_tickets(count=4) is Status.ALREADY
    assert sale.list_tickets("another", 4) is Status.CONFLICT
    assert sale.dump() == before


def test_a_value_is_named_once_and_after_the_list(sale: QueueCore) -> None:
    due(sale, "draw").admit()
    assert sale.name_value("v") is Status.NOT_OPEN
    sale.list_tickets(count=4)
    assert sale.name_value("v") is Status.DONE
    assert sale.events()[-1].text == "queue_valued|v"
    before = sale.dump()
    assert sale.name_value("v") is Status.ALREADY
    assert sale.name_value("w") is Status.CONFLICT
    assert sale.dump() == before


def test_ranks_must_be_made_of_what_was_written_down(sale: QueueCore) -> None:
    listed(sale, "draw").name_value("v")
    sale.put_ranks([0, 1, 2, 3])
    before = sale.dump()
    assert sale.draw("another", "v", 4) is Status.CONFLICT
    assert sale.draw(value="", ranked=4) is Status.CONFLICT
    assert sale.draw(value="w", ranked=4) is Status.CONFLICT
    assert sale.draw(value="v", ranked=3) is Status.CONFLICT
    assert sale.dump() == before
    sale.put_ranks([0, 1, 2])
    assert sale.draw(value="v", ranked=4) is Status.CONFLICT
    sale.put_ranks([0, 1, 2, NO_RANK])
    assert sale.draw(value="v", ranked=4) is Status.DONE
    assert sale.events()[-1].text == "queue_drawn|4|d16e57|5eed|v"
    before = sale.dump()
    assert sale.draw(value="v", ranked=4) is Status.ALREADY
    assert sale.draw("another", "", 0) is Status.ALREADY
    assert sale.dump() == before


def test_before_the_list_is_closed_nothing_can_be_drawn(sale: QueueCore) -> None:
    sale.begin_queue("draw", draw_in_ms=DRAW_MS).join("ann")
    before = sale.dump()
    assert sale.list_tickets(count=1) is Status.NOT_OPEN
    assert sale.draw(ranked=1) is Status.CONFLICT
    sale.travel(DRAW_MS)
    # Its time has come, but what was closed has to be seen before it is listed.
    assert sale.list_tickets(count=1) is Status.NOT_OPEN
    sale.travel(-DRAW_MS)
    assert sale.dump() == before


VERBS: dict[str, Callable[[QueueCore], Status]] = {
    "list": lambda sale: sale.list_tickets(),
    "name_value": lambda sale: sale.name_value("v"),
    "draw": lambda sale: sale.draw(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_refusals_that_all_verbs_share(sale: QueueCore, verb: str) -> None:
    assert VERBS[verb](sale) is Status.UNKNOWN_SALE
    sale.begin()
    assert VERBS[verb](sale) is Status.NO_QUEUE
    sale.definition_id = "another"
    assert VERBS[verb](sale) is Status.STALE_DEFINITION
    sale.format = 2
    assert VERBS[verb](sale) is Status.UPGRADE_NEEDED
