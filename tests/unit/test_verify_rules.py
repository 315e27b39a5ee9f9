"""Each promise that seckill.verify checks, broken once and alone, by a history made by hand."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from msgspec.structs import asdict, replace

from seckill import replay as replay_module
from seckill import verify as verify_module
from seckill.draw import commitment_of
from seckill.order import Order, State
from seckill.sale import Item, Sale
from seckill.stream import Event, EventKind
from seckill.verify import Replay, Violation

OPENS_AT = datetime(2026, 11, 28, 20, tzinfo=UTC)
SALE = Sale(
    id="evening",
    title="晚8点秒杀",
    opens_at=OPENS_AT,
    ends_at=OPENS_AT + timedelta(hours=1),
    items=(
        Item(sku="mug", title="马克杯", price_fen=9_900, total=3, limit_per_buyer=2),
        Item(sku="tea", title="绿茶", price_fen=4_900, total=9, limit_per_buyer=0),
    ),
    limit_per_order=4,
    limit_per_buyer=5,
    max_lapsed=1,
)


def of_sale(*steps: str) -> list[Event]:
    """Events of the sale, each written as its kind and, after a space, its detail."""
    pairs = [step.partition(" ")[::2] for step in steps]
    return [Event(SALE.id, 0, 0, EventKind(kind), None, detail) for kind, detail in pairs]


def of_order(name: str, buyer: str, items: dict[str, int], *steps: str) -> list[Event]:
    """Events of an order from its acceptance on. Its deadline has always passed."""
    order = Order(name, SALE.id, buyer, State.HELD, 0, items, 0, SALE.opens_ms)
    events = []
    for step in ("order_held", *steps):
        kind, detail = step.partition(" ")[::2]
        state, payments, refund = order.state, order.payments, order.refund
        if kind == EventKind.REFUND_DUE:
            payments = (*payments, detail)
        else:
            state = State(kind.removeprefix("order_"))
        if kind == EventKind.CONFIRMED:
            payments = (detail, *payments)
        elif kind == EventKind.REFUNDED:
            refund = detail.partition(",")[0]
        version = order.version + 1
        order = replace(order, state=state, version=version, payments=payments, refund=refund)
        events.append(Event(SALE.id, 0, 0, EventKind(kind), order, detail))
    return events


def but(events: list[Event], **changes: Any) -> list[Event]:
    """The same, with the last event or the order in it changed."""
    last = events[-1]
    for name, value in changes.items():
        if name in Order.__struct_fields__:
            name, value = "order", replace(last.order, **{name: value})
        last = replace(last, **{name: value})
    return [*events[:-1], last]


def replayed(events: list[Event]) -> Replay:
    replay = Replay(SALE)
    for event in numbered(events):
        replay.feed(event)
    return replay


def numbered(events: list[Event]) -> list[Event]:
    """Events with seq and time, one a millisecond, where none is given."""
    return [
        replace(event, seq=event.seq or seq, at_ms=event.at_ms or SALE.opens_ms + seq)
        for seq, event in enumerate(events, 1)
    ]


OPEN = of_sale(f"sale_created {SALE.definition().decode()}", "sale_opened")
EARLY = [replace(event, at_ms=SALE.opens_ms - 2) for event in OPEN]


def after(*steps: str, **items: int) -> list[Event]:
    """An open sale in which li has ordered, one mug where nothing else is said."""
    return OPEN + of_order("o1", "li", items or {"mug": 1}, *steps)


def rebuilt(
    events: list[Event],
    *,
    seq: int = 1_000_100,
    last: int = 0,
    orders: int = 1,
    seen: int = 0,
    state: str = "paused",
) -> list[Event]:
    """The same, rebuilt after its last event; holds are spared for ten milliseconds."""
    count = len(events)
    at_ms = SALE.opens_ms + count
    spared_ms = at_ms + 11
    detail = f"{last or count}|{at_ms}|{orders}|{seen or count}|{state}|{spared_ms}"
    [event] = of_sale(f"sale_rebuilt {detail}")
    return [*events, replace(event, seq=seq, at_ms=at_ms + 1)]


def then(events: list[Event], *more: Event) -> list[Event]:
    """The same, and what follows a rebuilding, one event a millisecond."""
    last = events[-1]
    return events + [
        replace(event, seq=event.seq or last.seq + i, at_ms=event.at_ms or last.at_ms + i)
        for i, event in enumerate(more, 1)
    ]


LATE = ("order_expired", "order_confirmed p1")
HELD, EXPIRED = after(), after("order_expired")


# A draw with a public value, step by step.
SEED = bytes(range(32))
DRAWN = f"queue_drawn 2|{'d' * 64}|{SEED.hex()}|19 03 22"
DRAW = [
    f"queue_opened {commitment_of(SEED)}",
    "queue_closed 3",
    f"queue_listed 2|{'d' * 64}",
    "queue_valued 19 03 22",
    DRAWN,
]


def drawn_with(old: str, new: str) -> list[Event]:
    """An open sale whose draw says this in place of that."""
    return OPEN + of_sale(*DRAW[:-1], DRAWN.replace(old, new))


CLOSED = OPEN + of_sale("sale_closed")
[CHANGED] = of_sale("stock_changed k|0|1|4")
OTHER = of_order("o2", "wu", {"mug": 1}, "order_expired")
TWO_MUGS = of_order("o2", "wu", {"mug": 2})
RESUMED = of_sale("sale_resumed")
PAUSED_AGAIN = of_sale("sale_resumed", "sale_paused")
# Orders that only Redis knew come in: one that had expired, one that had been released, one that is
# held. Who had let one order lapse already may have another that had.
ADMITTED = [
    *but(of_order("o2", "wu", {"mug": 3}, "order_expired"), version=1)[1:],
    *but(of_order("o3", "wu", {"mug": 1}, "order_expired"), version=1)[1:],
    *but(of_order("o4", "he", {"mug": 3}, "order_released"), version=1)[1:],
    *of_order("o5", "su", {"mug": 2}, "order_paying"),
]

# What is drawn once more after a loss goes by another seed.
LOST_DRAW = rebuilt(OPEN + of_sale(*DRAW), orders=0)
OTHER_DRAW = [f"queue_opened {'0' * 64}", *DRAW[1:]]

# Each history breaks the rule by its last event, which is seen from the words of the violation.
HISTORIES: list[tuple[str, str, list[Event]]] = [
    ("seq", "event 4 follows event 2", but(HELD, seq=4)),
    ("seq", "event 2 follows event 2", but(HELD, seq=2)),
    ("clock", "ms follows", but(OPEN, at_ms=SALE.opens_ms)),
    ("oversold", "mug: -1 available, 4 held", after(mug=2) + of_order("o2", "wu", {"mug": 2})),
    ("oversold", "SKU mug: -1 available", OPEN + of_sale("stock_changed k|0|-4|-1")),
    ("stock", "SKU mug: 4 available, -1 held", after(mug=-1)),
    ("conservation", "total 6 where 5 follows", OPEN + of_sale("stock_changed k|0|2|6")),
    ("accepted twice", "order o1 was accepted before", HELD + HELD[2:]),
    ("window", "outside the sale's time", but(EARLY + HELD[2:], at_ms=SALE.opens_ms - 1)),
    ("window", "outside the sale's time", but(HELD, at_ms=SALE.ends_ms)),
    ("sale state", "sale_opened in a sale that is 'open'", OPEN + of_sale("sale_opened")),
    ("sale state", "while the sale is paused", OPEN + of_sale("sale_paused") + HELD[2:]),
    (
        "sale state",
        "sold late while settled",
        EXPIRED + of_sale("sale_closed", "sale_settled 0:3,1:9") + after(*LATE)[4:],
    ),
    ("version", "begins as version 2", but(HELD, version=2)),
    ("version", "begins as version 1", but(HELD, state=State.PAYING)),
    ("version", "order o1: 3 after 1", but(after("order_paying"), version=3)),
    ("limit", "li has 3 of SKU mug, allowed 2", after(mug=3)),
    ("limit", "li has 6 units, allowed 5", after(tea=3) + of_order("o2", "li", {"tea": 3})),
    ("limit", "order o1 has 5 units, allowed 4", after(tea=5)),
    ("limit", "li let 1 lapse", EXPIRED + of_order("o2", "li", {"mug": 1})),
    ("outcome", "never accepted", OPEN + after("order_paying")[3:]),
    ("outcome", "changed buyer or items", but(after("order_paying"), buyer="wu")),
    ("outcome", "changed buyer or items", but(after("order_paying"), items={"tea": 1})),
    ("outcome", "p1 has two outcomes", after("order_confirmed p1", "refund_due p1")),
    ("outcome", "two outcomes", after("order_expired", "refund_due p1", "order_confirmed p1")),
    ("outcome", "not ('p1',)", but(after("order_confirmed p1"), payments=("p2", "p1"))),
    ("outcome", "paid by ()", but(after("order_expired", "refund_due p1"), payments=())),
    (
        "outcome",
        "refund r2, r1",
        but(after("order_confirmed p", "order_refunded r1,1,1"), refund="r2"),
    ),
    ("state", "refund_due of order o1, which is held", after("refund_due p1")),
    ("state", "which is released", but(after("order_released", "refund_due p"), state=State.HELD)),
    ("state", "released → paying by order_paying", after("order_released", "order_paying")),
    ("state", "held → released by order_paying", but(after("order_paying"), state=State.RELEASED)),
    ("deadline", "1 ms early", but(HELD, deadline_ms=SALE.opens_ms + 5) + EXPIRED[3:]),
    ("deadline", "9 ms early", then(rebuilt(HELD), after("order_expired")[3])),
    ("seq", "event 1000100 follows event 3", but(rebuilt(HELD), kind=EventKind.SALE_PAUSED)),
    ("seq", "event 3 follows event 3", rebuilt(HELD, seq=3, seen=2)),
    ("seq", "rebuilt as of event 2, and event 3 is the last", rebuilt(HELD, last=2)),
    ("seq", "begins anew at 1000100, and 1000100 was seen", rebuilt(HELD, seen=1_000_100)),
    ("seq", "follows event 1000100", then(rebuilt(HELD), replace(CHANGED, seq=1_000_102))),
    ("rebuilt", "with 2 orders, where there were 1", rebuilt(HELD, orders=2)),
    ("sale state", "'open' was rebuilt as 'closed'", rebuilt(HELD, state="closed")),
    ("sale state", "sale is closed", then(rebuilt(CLOSED, orders=0, state="closed"), OTHER[0])),
    ("sale state", "while the sale is paused", then(rebuilt(HELD), *PAUSED_AGAIN, OTHER[0])),
    ("oversold", "SKU mug: -1 available", then(rebuilt(after(mug=2)), *TWO_MUGS)),
    ("limit", "li has 3 of SKU mug", then(rebuilt(after(mug=2)), *but(HELD, id="o2")[2:])),
    ("version", "begins as version 2", then(rebuilt(HELD), *RESUMED, *but(OTHER[:1], version=2))),
    ("outcome", "never accepted", then(rebuilt(HELD), *RESUMED, OTHER[1])),
    ("outcome", "never accepted", then(rebuilt(HELD), replace(OTHER[1], kind=EventKind.PAYING))),
    ("draw", "the seed is not the one", drawn_with("000102", "000103")),
    ("draw", "the list is not the one", drawn_with("queue_drawn 2", "queue_drawn 3")),
    ("draw", "the list is not the one", drawn_with("dd|", "de|")),
    ("draw", "the public value is not the one", drawn_with("19 03 22", "19 03 23")),
    ("draw", "the public value is not the one", drawn_with("19 03 22", "")),
    ("draw", "the seed is not the one", then(LOST_DRAW, *of_sale(*OTHER_DRAW))),
    ("draw", "queue_opened a second time", OPEN + of_sale(*DRAW, DRAW[0])),
    ("draw", "queue_closed a second time", OPEN + of_sale(*DRAW[:2], DRAW[1])),
    ("draw", "queue_listed a second time", OPEN + of_sale(*DRAW[:3], DRAW[2])),
    ("draw", "queue_valued a second time", OPEN + of_sale(*DRAW[:4], DRAW[3])),
    ("draw", "queue_drawn a second time", OPEN + of_sale(*DRAW, DRAWN)),
    ("settled", "while 1 units", HELD + of_sale("sale_closed", "sale_settled 0:2,1:9")),
    ("settled", "not '0:3,1:9'", OPEN + of_sale("sale_closed", "sale_settled 0:3")),
]

# Every kind of event: a late payment that finds a unit and one that doesn't, refunds that give
# back the units or the limit. At the end 2 mugs and 4 teas are left, of 5 and of 8.
SOUND = [
    *OPEN,
    *of_sale(*DRAW),
    *of_sale("sale_paused 库存核对", "sale_resumed", "stock_changed k|0|2|5"),
    *of_order("o1", "li", {"mug": 1}, "order_paying", "order_confirmed p1", "refund_due p2"),
    *of_order("o2", "wu", {"mug": 2, "tea": 1}, "order_expired", "order_confirmed p3"),
    *of_order("o3", "he", {"tea": 4}, "order_released", "refund_due p4"),
    *of_order("o4", "he", {"tea": 1}, "order_confirmed p5", "order_refunded r1,0,1"),
    *of_order("o5", "he", {"tea": 3}, "order_paying", "order_confirmed p6"),
    *of_order("o6", "yu", {"mug": 2}, "order_confirmed p7", "order_refunded r2,1,0"),
    *of_order("o7", "su", {"mug": 2}, "order_paying", "order_expired"),
    *of_sale("sale_closed", "sale_settled 0:2,1:4"),
]
SOUND = rebuilt(SOUND, orders=7, state="settled")


def redis_after_sound() -> dict[str, Any]:
    """What Redis must hold after SOUND: the arguments of Replay.compare."""
    return {
        "stock": {
            "mug": {"available": 2, "held": 0, "confirmed": 3, "total": 5},
            "tea": {"available": 4, "held": 0, "confirmed": 4, "total": 8},
        },
        "orders": {event.order.id: event.order for event in SOUND if event.order},
        "purses": {
            "li": ({"mug": 1}, 0),
            "wu": ({"mug": 2, "tea": 1}, 0),
            "he": ({"tea": 3}, 0),
            "yu": ({"mug": 2}, 0),
            "su": ({}, 1),
        },
        "state": "settled",
    }


def lose_a_unit(replay: Replay, redis: dict[str, Any]) -> None:
    # No history does this, because the replay moves units in pairs: the check guards the replay.
    replay.units["mug"].available -= 1
    redis["stock"]["mug"] = asdict(replay.units["mug"])


ENDS: list[tuple[str, str, Callable[[Replay, dict[str, Any]], Any]]] = [
    ("drift", "the sale is open in Redis", lambda _, redis: redis.update(state="open")),
    ("drift", "SKU tea: {", lambda _, redis: redis["stock"]["tea"].update(held=1)),
    ("drift", "order o1: None in Redis", lambda _, redis: redis["orders"].pop("o1")),
    ("drift", "buyer su: ({}, 0)", lambda _, redis: redis["purses"].update(su=({}, 0))),
    ("drift", "buyer xu: ({}, 1)", lambda _, redis: redis["purses"].update(xu=({}, 1))),
    ("conservation", "SKU mug: ", lose_a_unit),
]


# At which seq it shows; the last seq and the definition in the sale's hash. This hash forbids what
# SOUND does, but the replay must go by the definition that the first event published.
HEADERS: list[tuple[str, str, int, int, Sale]] = [
    ("seq", "the sale at 99", 0, 99, SALE),
    ("definition", "holds another", 1, SOUND[-1].seq, replace(SALE, limit_per_order=1)),
]


async def sound_history(*_: object, **__: object) -> AsyncIterator[Event]:
    for event in numbered(SOUND):
        yield event


def assert_only(found: Sequence[Violation], seq: int, rule: str, words: str) -> None:
    assert [(violation.seq, violation.rule) for violation in found] == [(seq, rule)], found
    assert words in found[0].text


def test_a_sound_history_of_every_kind_of_event_breaks_no_rule() -> None:
    assert {event.kind for event in SOUND} == set(EventKind)
    replay = replayed(SOUND)
    replay.compare(**redis_after_sound())
    assert replay.violations == []


@pytest.mark.parametrize(("rule", "words", "events"), HISTORIES)
def test_a_history_breaks_its_rule_and_no_other(rule: str, words: str, events: list[Event]) -> None:
    assert replayed(events[:-1]).violations == []
    assert_only(replayed(events).violations, numbered(events)[-1].seq, rule, words)


@pytest.mark.parametrize(("rule", "words", "spoil"), ENDS)
def test_an_end_that_differs_breaks_its_rule_and_no_other(
    rule: str, words: str, spoil: Callable[[Replay, dict[str, Any]], Any]
) -> None:
    replay, redis = replayed(SOUND), redis_after_sound()
    spoil(replay, redis)
    replay.compare(**redis)
    assert_only(replay.violations, 0, rule, words)


@pytest.mark.parametrize(("rule", "words", "at", "seq", "sale"), HEADERS)
async def test_a_header_that_differs_breaks_its_rule_and_no_other(
    rule: str, words: str, at: int, seq: int, sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = verify_module._State(seq=seq, **redis_after_sound())
    monkeypatch.setattr(verify_module, "_read_state", AsyncMock(return_value=state))
    calls = SimpleNamespace(client_of=lambda key: None, attempt=AsyncMock(return_value=None))
    engine: Any = SimpleNamespace(
        sale=AsyncMock(return_value=sale), history=sound_history, _calls=calls
    )
    assert_only((await verify_module.verify(engine, SALE.id)).violations, at, rule, words)


def test_a_rebuilt_sale_goes_on() -> None:
    """What was held is spared, what only Redis knew comes in, and it sells to the end."""
    events = then(rebuilt(HELD), *ADMITTED, *RESUMED, CHANGED, *of_order("o6", "ho", {"mug": 1}))
    ended = then(events, replace(after("order_expired")[3], at_ms=SALE.opens_ms + 14))
    replay = replayed(ended)
    assert replay.violations == []
    assert replay.units["mug"].available == 1
    assert {name: order.state for name, order in replay.orders.items()} == {
        "o1": State.EXPIRED,
        "o2": State.EXPIRED,
        "o3": State.EXPIRED,
        "o4": State.RELEASED,
        "o5": State.PAYING,
        "o6": State.HELD,
    }
    assert {buyer: n for buyer, n in replay.lapsed.items() if n} == {"wu": 2, "li": 1}
    assert set(replay.owned) == {"li", "wu", "he", "su", "ho"}


def test_a_queue_that_was_lost_is_opened_and_drawn_anew() -> None:
    assert replayed(then(LOST_DRAW, *of_sale(*DRAW))).violations == []


def test_every_rule_in_the_source_has_a_case() -> None:
    modules = (replay_module, verify_module)
    trees = [ast.parse(Path(module.__file__).read_text(encoding="utf-8")) for module in modules]
    reports = [
        node.args[1]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".broken")
    ]
    names = [node for report in reports for node in ast.walk(report)]
    rules = {node.value for node in names if isinstance(node, ast.Constant) and node.value != 0}
    # The last two are broken on a real server, in tests/ledger/test_verify.py.
    there = {case[0] for case in (*HISTORIES, *ENDS, *HEADERS)}
    assert rules == there | {"fenced", "ledger"}
