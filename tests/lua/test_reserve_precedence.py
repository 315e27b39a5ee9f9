"""reserve.lua: when several refusals apply, the one named earlier in its header is the answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest

from seckill.status import Status
from tests.lua.core import Core, Wish, header_text
from tests.lua.test_fence import fenced

# The order of the header, written again. EXISTS and CONFLICT share a place.
PRECEDENCE = (
    Status.NEW_SERVER,
    Status.STALE_DEFINITION,
    Status.EXISTS,
    Status.UNKNOWN_SALE,
    Status.UPGRADE_NEEDED,
    Status.FENCED,
    Status.UNKNOWN_SKU,
    Status.PAUSED,
    Status.NOT_OPEN,
    Status.ENDED,
    Status.TOKEN_NEEDED,
    Status.TOKEN_EXPIRED,
    Status.UNKNOWN_TICKET,
    Status.NOT_ALLOWED,
    Status.TOO_LATE,
    Status.ORDER_LIMIT,
    Status.SKU_LIMIT,
    Status.BUYER_LIMIT,
    Status.SOLD_OUT,
    Status.INSUFFICIENT,
    Status.CREATED,
)

CART = "0:2,1:2"
FOREVER = 2**45


@dataclass(frozen=True)
class Condition:
    """What makes one answer apply: fields of the sale's hash, changed keys, a changed call."""

    header: dict[str, Any] = field(default_factory=dict)
    stock: dict[str, int] = field(default_factory=dict)
    keys: Callable[[Core], object] = lambda _: None
    wish: dict[str, Any] = field(default_factory=dict)
    definition_id: str = ""
    told: tuple[str, int] | None = None


def known(core: Core) -> None:
    core.client.hset(core.keys[3], "o1", f"h1------900000|{CART}|ann")


CONDITIONS = {
    Status.NEW_SERVER: Condition(told=("elsewhere", 1)),
    Status.EXISTS: Condition(keys=known),
    Status.UNKNOWN_SALE: Condition(keys=lambda core: core.client.delete(core.keys[0])),
    Status.UPGRADE_NEEDED: Condition(header={"format": 2}),
    Status.FENCED: Condition(keys=fenced),
    Status.STALE_DEFINITION: Condition(definition_id="another"),
    Status.UNKNOWN_SKU: Condition(wish={"cart": CART + ",9"}),
    Status.PAUSED: Condition(header={"state": "paused"}),
    Status.NOT_OPEN: Condition(header={"opens_ms": FOREVER}),
    Status.ENDED: Condition(header={"ends_ms": 1}),
    Status.TOKEN_NEEDED: Condition(wish={"turn": (0, 0, 0)}),
    Status.TOKEN_EXPIRED: Condition(wish={"turn": (1, 1, 7)}),
    Status.UNKNOWN_TICKET: Condition(wish={"turn": (1, FOREVER, 7)}),
    Status.NOT_ALLOWED: Condition(
        header={"max_lapsed": 3}, keys=lambda core: core.client.hset(core.keys[2], "ann", "0!3")
    ),
    Status.TOO_LATE: Condition(wish={"not_after": 1}),
    Status.ORDER_LIMIT: Condition(header={"limit_per_order": 3}),
    Status.SKU_LIMIT: Condition(stock={"0:limit": 1}),
    Status.BUYER_LIMIT: Condition(header={"limit_per_buyer": 3}),
    Status.SOLD_OUT: Condition(stock={"1:available": 0}),
    Status.INSUFFICIENT: Condition(stock={"0:available": 1}),
    Status.CREATED: Condition(),
}


def answer_when(core: Core, *statuses: Status) -> Status | str:
    """The answer to one order while all these conditions hold."""
    core.begin()
    wish = Wish("o1", cart=CART)
    # The last first: a sale that is to be deleted must not come back by a later HSET.
    for status in sorted(statuses, key=PRECEDENCE.index, reverse=True):
        condition = CONDITIONS[status]
        if condition.header:
            core.set_header(**condition.header)
        if condition.stock:
            core.client.hset(core.keys[1], mapping=condition.stock)
        condition.keys(core)
        wish = wish._replace(**condition.wish)
        core.definition_id = condition.definition_id or core.definition_id
        core.told = condition.told or core.told
    (answer,) = core.reserve(wish)
    return answer


def test_the_order_is_that_of_the_header() -> None:
    _, _, listed = header_text("reserve").rpartition("is the answer:")
    order = [Status[name] for name in re.findall(r"\b[A-Z][A-Z_]{3,}\b", listed)]
    order.remove(Status.CONFLICT)
    assert tuple(order) == PRECEDENCE


# The rest of the order is asked of an order that is not known.
UNKNOWN = tuple(status for status in PRECEDENCE if status is not Status.EXISTS)


def can_both_hold(first: Status, second: Status) -> bool:
    """A sale that is not there has no definition that could be another one. One of another format
    has no server that could be read, and a fenced one is not trusted with any."""
    return {first, second} not in (
        {Status.STALE_DEFINITION, Status.UNKNOWN_SALE},
        {Status.NEW_SERVER, Status.UPGRADE_NEEDED},
        {Status.NEW_SERVER, Status.FENCED},
    )


@pytest.mark.parametrize("status", UNKNOWN, ids=lambda status: status.name)
def test_each_condition_alone(core: Core, status: Status) -> None:
    assert answer_when(core, status) is status


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in combinations(UNKNOWN[:-1], 2) if can_both_hold(*pair)],
    ids=lambda status: status.name,
)
def test_the_earlier_of_two_wins(core: Core, first: Status, second: Status) -> None:
    assert answer_when(core, first, second) is first


@pytest.mark.parametrize("start", range(len(UNKNOWN)), ids=lambda i: UNKNOWN[i].name)
def test_the_earliest_of_all_the_rest_wins(core: Core, start: int) -> None:
    rest = [status for status in UNKNOWN[start:] if can_both_hold(UNKNOWN[start], status)]
    assert answer_when(core, *rest) is UNKNOWN[start]


@pytest.mark.parametrize(
    "status",
    [Status.EXISTS, Status.UPGRADE_NEEDED, Status.FENCED, Status.PAUSED, Status.UNKNOWN_SKU],
    ids=lambda status: status.name,
)
def test_by_another_definition_nothing_is_said_of_a_known_order(core: Core, status: Status) -> None:
    """Its record names SKUs by their place in the definition that is there now."""
    stale = answer_when(core, Status.STALE_DEFINITION, Status.EXISTS, status)
    assert stale is Status.STALE_DEFINITION


@pytest.mark.parametrize("status", UNKNOWN[2:], ids=lambda status: status.name)
def test_a_known_order_is_found_whatever_else_holds(core: Core, status: Status) -> None:
    answer = answer_when(core, Status.EXISTS, status)
    if status is Status.UNKNOWN_SKU:
        assert answer is Status.CONFLICT  # the cart is another one, that is all it says
    else:
        assert answer == core.record("o1")


def test_an_old_worker_is_told_to_upgrade_by_its_own_format_too(core: Core) -> None:
    core.begin()
    core.format = 2
    assert core.reserve(Wish("o1", cart="9")) == [Status.UPGRADE_NEEDED]


def test_sold_out_beats_insufficient_on_whichever_line_it_is(core: Core) -> None:
    core.begin((0, 0), (1, 0), (0, 0))
    assert core.reserve(Wish("o1", cart="0,1:2")) == [Status.SOLD_OUT]
    assert core.reserve(Wish("o1", cart="1:2,2")) == [Status.SOLD_OUT]
    assert core.reserve(Wish("o1", cart="1:2")) == [Status.INSUFFICIENT]
