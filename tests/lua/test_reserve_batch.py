"""reserve.lua: a batch is decided as if each order had come alone, one after the other."""

from __future__ import annotations

import random

import pytest
import redis

from seckill.status import Status
from tests.lua.core import Core, Wish

CREATED = Status.CREATED


def test_orders_of_one_buyer_see_each_other(core: Core) -> None:
    core.begin((10, 2), (10, 1), limit_per_buyer=3)
    assert core.reserve(
        Wish("o1", cart="0"),
        Wish("o2", "bob", cart="0:2"),
        Wish("o3", cart="0:2"),
        Wish("o4", cart="0"),
        Wish("o5", cart="1"),
        Wish("o6", cart="1"),
        Wish("o7", "bob", cart="1"),
        Wish("o8", "bob", cart="1"),
    ) == [
        CREATED,
        CREATED,
        Status.SKU_LIMIT,
        CREATED,
        CREATED,
        Status.SKU_LIMIT,
        CREATED,
        Status.SKU_LIMIT,
    ]
    assert core.purse("ann") == "0:2,1"
    assert core.purse("bob") == "0:2,1"


def test_stock_runs_out_within_the_batch(core: Core) -> None:
    core.begin((3, 0))
    wishes = [Wish(f"o{i}", f"b{i}", cart) for i, cart in enumerate(["0", "0:3", "0:2", "0", "0"])]
    assert core.reserve(*wishes) == [
        CREATED,
        Status.INSUFFICIENT,
        CREATED,
        Status.SOLD_OUT,
        Status.SOLD_OUT,
    ]
    assert core.stock() == (0, 3, 0, 3)


def test_a_cart_is_taken_whole_or_not_at_all(core: Core) -> None:
    core.begin((5, 0), (1, 0), (5, 0))
    assert core.reserve(
        Wish("o1", "b1", "0,1,2"),
        Wish("o2", "b2", "0:2,1,2:2"),
        Wish("o3", "b3", "0:4,2:4"),
        Wish("o4", "b4", "0,2:4"),
    ) == [CREATED, Status.SOLD_OUT, CREATED, Status.SOLD_OUT]
    assert [core.stock(i)[:2] for i in range(3)] == [(0, 5), (0, 1), (0, 5)]
    assert core.purse("b2") is None
    assert core.kinds() == ["o1 held", "o3 held"]


def test_an_id_twice_in_one_batch_is_one_order(core: Core) -> None:
    core.begin()
    first, second, third = core.reserve(Wish("o1"), Wish("o1"), Wish("o1"))
    assert first is CREATED
    assert second == third == core.record("o1")
    assert core.stock() == (9, 1, 0, 10)
    assert core.queue("holds") == ["o1"]
    assert core.kinds() == ["o1 held"]


def test_an_id_with_two_payloads_in_one_batch_conflicts(core: Core) -> None:
    core.begin()
    assert core.reserve(Wish("o1"), Wish("o1", cart="1"), Wish("o1", "bob")) == [
        CREATED,
        Status.CONFLICT,
        Status.CONFLICT,
    ]
    assert core.stock(0)[1] == 1
    assert core.stock(1)[1] == 0
    assert core.purse("bob") is None


def test_an_id_refused_first_may_be_taken_later_in_the_batch(core: Core) -> None:
    core.begin((2, 0))
    assert core.reserve(
        Wish("o1", cart="0:3"), Wish("o1", cart="0:3"), Wish("o1", cart="0:2"), Wish("o1")
    ) == [Status.INSUFFICIENT, Status.INSUFFICIENT, CREATED, Status.CONFLICT]


def test_a_lapsed_buyer_does_not_stop_the_others(core: Core) -> None:
    core.begin(max_lapsed=1).lapse("o0", "ann")
    assert core.reserve(Wish("o1", "ann"), Wish("o2", "bob"), Wish("o3", "ann")) == [
        Status.NOT_ALLOWED,
        CREATED,
        Status.NOT_ALLOWED,
    ]


def test_known_new_and_refused_in_one_batch(core: Core) -> None:
    core.begin((2, 0)).hold("o1")
    answers = core.reserve(
        Wish("o9", cart="7"),
        Wish("o1"),
        Wish("o2", "bob", not_after=0),
        Wish("o3", "eve"),
        Wish("o4", "bob"),
    )
    assert answers == [
        Status.UNKNOWN_SKU,
        core.record("o1"),
        Status.TOO_LATE,
        CREATED,
        Status.SOLD_OUT,
    ]


def test_a_thousand_orders_in_one_call(core: Core) -> None:
    core.begin((1_000, 0))
    attrs = "x" * 512
    wishes = [Wish(f"o{i:04}", f"b{i:04}", "0", attrs) for i in range(1_000)]
    assert core.reserve(*wishes) == [CREATED] * 1_000
    assert core.stock() == (0, 1_000, 0, 1_000)
    assert core.queue("holds") == [wish.id for wish in wishes]
    held = core.events()[2:]
    assert [event.subject for event in held] == [wish.id for wish in wishes]
    assert all(event.text.endswith("|" + attrs) for event in held)
    assert core.client.xlen(core.keys[6]) == 2 + 32
    assert core.reserve(*wishes) == [core.record(wish.id) for wish in wishes]
    swept = core.expire(1_000)
    assert (swept.expired, swept.more) == (0, 0)
    core.travel(100_000)
    assert core.expire(1_000).expired == 1_000
    assert core.stock() == (1_000, 0, 0, 1_000)


def test_a_thousand_carts_of_many_lines(core: Core) -> None:
    core.begin(*[(1_000, 0)] * 50)
    cart = ",".join(map(str, range(50)))
    assert core.reserve(*[Wish(f"o{i}", f"b{i}", cart) for i in range(1_000)]) == [CREATED] * 1_000
    assert {core.stock(i) for i in range(50)} == {(0, 1_000, 0, 1_000)}


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65])
def test_up_to_32_orders_share_an_entry(core: Core, count: int) -> None:
    core.begin((100, 0))
    core.reserve(*[Wish(f"o{i}", f"b{i}") for i in range(count)])
    assert core.client.xlen(core.keys[6]) == 2 + (count + 31) // 32
    # events() numbers backwards from the seq in the entry's id and asserts that it is dense.
    assert [event.subject for event in core.events()[2:]] == [f"o{i}" for i in range(count)]
    assert core.header("seq") == str(2 + count)


def test_a_batch_of_refusals_writes_nothing(core: Core) -> None:
    core.begin((2, 1), limit_per_order=5, limit_per_buyer=4, max_lapsed=1)
    core.lapse("o0", "lou")
    core.hold("o1", "ann")
    core.hold("o2", "bob")
    before = core.dump()
    assert core.reserve(
        Wish("o1", "ann"),
        Wish("o1", "bob"),
        Wish("o3", "ann"),
        Wish("o4", "eve"),
        Wish("o5", "lou"),
        Wish("o6", "eve", not_after=0),
        Wish("o7", "eve", cart="0:6"),
        Wish("o8", "eve", cart="8"),
    ) == [
        core.record("o1"),
        Status.CONFLICT,
        Status.SKU_LIMIT,
        Status.SOLD_OUT,
        Status.NOT_ALLOWED,
        Status.TOO_LATE,
        Status.ORDER_LIMIT,
        Status.UNKNOWN_SKU,
    ]
    assert core.dump() == before


def timeless(core: Core) -> object:
    """What Redis holds of a sale but for its times and the grouping of events into entries."""
    picture = core.dump()
    orders = {name: (r[:8], *r.split(b"|")[1:]) for name, r in (picture["orders"] or {}).items()}
    return picture["stock"], picture["buyers"], orders, picture["holds"], core.kinds()


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_equals_its_orders_one_by_one(client: redis.Redis, seed: int) -> None:
    rng = random.Random(seed)
    limits = {"limit_per_order": 3, "limit_per_buyer": 4, "max_lapsed": 1}
    together, one_by_one = (Core(client).begin((6, 2), (5, 0), (0, 0), **limits) for _ in range(2))
    for core in (together, one_by_one):
        core.lapse("o-lapsed", "b0")
    carts = ["0", "0", "1", "0,1", "1:2", "0:3", "2", "1,2", "9", "0:2,1:2"]
    wishes = [
        Wish(
            f"o{rng.randrange(25)}",
            f"b{rng.randrange(5)}",
            rng.choice(carts),
            not_after=rng.choice([0, *[2**52] * 9]),
        )
        for _ in range(40)
    ]

    def plain(answer: Status | str) -> Status | str:
        return answer if isinstance(answer, Status) else answer[:8]

    expected = [plain(one_by_one.reserve(wish)[0]) for wish in wishes]
    assert [plain(answer) for answer in together.reserve(*wishes)] == expected
    assert timeless(together) == timeless(one_by_one)
