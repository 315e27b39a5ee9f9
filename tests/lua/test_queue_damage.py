"""The queue's scripts raise before their first write, or not at all; see test_damage.py. What gives
turns to others works on a full server, what takes memory is refused whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from seckill.keys import NAMES, QUEUE_NAMES
from seckill.status import Status
from tests.lua.core import NEVER_MS, Wish
from tests.lua.queue_core import LIFE_MS, PAUSE_MS, QueueCore

DRAW_MS = 1_000
Act = Callable[[QueueCore], object]


@pytest.fixture
def sale(client: redis.Redis) -> QueueCore:
    return QueueCore(client)


def waiting(sale: QueueCore) -> None:
    """Called, used, given up and waiting places, and time enough for the next step."""
    sale.begin_queue(stock=5).crowd(30)
    (step,) = sale.admit().steps
    sale.buy("b0", step)
    sale.leave("b1")
    sale.leave("b20")
    sale.travel(PAUSE_MS)


def ranked(sale: QueueCore) -> None:
    sale.begin_queue("shuffle", stock=1, draw_in_ms=DRAW_MS).crowd(4)
    sale.travel(DRAW_MS)
    sale.admit()
    sale.rank([3, 2, 1, 0], closed=4)
    sale.admit()
    sale.travel(LIFE_MS)
    sale.admit()


def due(sale: QueueCore) -> None:
    sale.begin_queue("shuffle", stock=1, draw_in_ms=DRAW_MS).crowd(4)
    sale.travel(DRAW_MS)


def closed(sale: QueueCore) -> None:
    due(sale)
    sale.admit()


def listed(sale: QueueCore) -> None:
    closed(sale)
    sale.list_tickets(count=4)
    sale.put_ranks([0, 1, 2, 3])


def buy(sale: QueueCore) -> object:
    return sale.reserve(Wish("o9", "b2", turn=(1, NEVER_MS, 2)))


SCENARIOS: dict[str, tuple[Act, Act]] = {
    "queue": (lambda s: s.begin((5, 0)), lambda s: s.open_queue("queue", 0, "", LIFE_MS, 0, 20)),
    "join": (waiting, lambda s: s.join("new")),
    "join and close": (due, lambda s: s.join("new")),
    "join again": (ranked, lambda s: s.join("b3")),
    "leave": (waiting, lambda s: s.leave("b25")),
    "leave when called": (waiting, lambda s: s.leave("b2")),
    "leave a rank": (ranked, lambda s: s.leave("b0")),
    "admit": (waiting, lambda s: s.admit()),
    "admit and close": (due, lambda s: s.admit()),
    "list": (closed, lambda s: s.list_tickets(count=4)),
    "name_value": (listed, lambda s: s.name_value("v")),
    "draw": (listed, lambda s: s.draw(ranked=4)),
    "reserve": (waiting, buy),
}
# What a verb neither reads nor writes, whatever it is, harms nobody.
UNTOUCHED = {
    "queue": {"queue", "tickets", "steps", "left", "ranks", "gone"},
    "reserve": {"left", "ranks", "gone"},
}


def pairs() -> list[tuple[str, str]]:
    every = [(name, key) for name in SCENARIOS for key in (*NAMES, *QUEUE_NAMES)]
    return [(name, key) for name, key in every if key not in UNTOUCHED.get(name, set())]


@pytest.mark.parametrize(("name", "key"), pairs())
def test_a_damaged_key_changes_nothing(sale: QueueCore, name: str, key: str) -> None:
    prepare, call = SCENARIOS[name]
    prepare(sale)
    at = dict(zip((*NAMES, *QUEUE_NAMES), (*sale.keys, *sale.queue_keys), strict=True))[key]
    sale.client.delete(at)
    if key == "ranks":
        sale.client.hset(at, "damaged", "1")
    else:
        sale.client.set(at, "damaged")
    before = sale.dump()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        call(sale)
    assert sale.dump() == before


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_of_these_calls_does_its_work_on_sound_keys(sale: QueueCore, name: str) -> None:
    prepare, call = SCENARIOS[name]
    prepare(sale)
    before = sale.dump()
    call(sale)
    assert sale.dump() != before


WITH_AN_EVENT = [
    "queue", "join and close", "admit and close", "list", "name_value", "draw", "reserve",
]  # fmt: skip


@pytest.mark.parametrize("name", WITH_AN_EVENT)
def test_a_stream_that_is_ahead_of_its_sale_changes_nothing(sale: QueueCore, name: str) -> None:
    prepare, call = SCENARIOS[name]
    prepare(sale)
    sale.client.xadd(sale.keys[6], {"sale": "paused|from the future"}, id=f"{2**50}-1")
    before = sale.dump()
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        call(sale)
    assert sale.dump() == before


ON_A_FULL_SERVER = {"leave", "leave when called", "leave a rank", "admit", "admit and close"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_on_a_full_server(sale: QueueCore, name: str) -> None:
    """Whoever gives up a place, and whoever is called, costs nothing that others need."""
    prepare, call = SCENARIOS[name]
    prepare(sale)
    before = sale.dump()
    sale.client.config_set("maxmemory", 1)
    try:
        if name in ON_A_FULL_SERVER:
            call(sale)
        else:
            with pytest.raises(redis.ResponseError, match="maxmemory"):
                call(sale)
    finally:
        sale.client.config_set("maxmemory", 0)
    assert (sale.dump() != before) == (name in ON_A_FULL_SERVER)


def test_a_known_ticket_is_found_on_a_full_server(sale: QueueCore) -> None:
    waiting(sale)
    sale.client.config_set("maxmemory", 1)
    try:
        assert sale.join("b2")[0] == (2, True)
        assert sale.leave("nobody") is Status.UNKNOWN_TICKET
    finally:
        sale.client.config_set("maxmemory", 0)
