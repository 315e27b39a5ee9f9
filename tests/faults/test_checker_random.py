"""Random evenings: the checker calls every sound one valid, and no damaged one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.faults.checker import Verdict
from tests.faults.evening import Case, Evening

pytestmark = pytest.mark.once

# Every time the same ones: they prove the checker and not the engine.
FEW = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

FATES = ("told", "told", "told", "told", "lost", "open", "stuck", "unsent")
BUYERS, KEYS, SKUS = ("ann", "bob", "cid"), ("k", "l", "m"), ("plenty", "some", "one")
# By the clock of the evening, a hold lapses after 20 s.
PAUSES_S = (0.0, 0.0, 0.0, 2.0, 15.0, 25.0)

CARTS = st.dictionaries(st.sampled_from(SKUS), st.integers(1, 2), min_size=1, max_size=2)
STEPS = st.tuples(
    st.sampled_from(("reserve", "again", "pay", "pay", "act", "refund", "look", "stock", "sweep")),
    st.sampled_from(BUYERS),
    st.sampled_from(KEYS),
    st.integers(0, 11),
    st.sampled_from(FATES),
    st.sampled_from(PAUSES_S),
)


@st.composite
def evenings(draw: Any) -> Evening:
    """A sound evening in which at least one order was accepted and paid."""
    sale = Evening()
    carts: dict[str, dict[str, int]] = {}
    for verb, buyer, key, choice, fate, pause_s in draw(st.lists(STEPS, min_size=4, max_size=30)):
        sale.wait(pause_s)
        if verb == "reserve" or not carts:
            verb, order = "again", f"{buyer}.{key}"
            carts.setdefault(order, draw(CARTS))
        else:
            order = sorted(carts)[choice % len(carts)]
        if verb == "again":
            buyer, key = order.split(".")
            sale.reserve(buyer, key, fate, **carts[order])
        elif verb == "pay":
            sale.act("confirm", order, fate, payment=f"{order}-{choice % 3 // 2}")
        elif verb == "act":
            sale.act(("begin_payment", "release")[choice % 2], order, fate)
        elif verb == "refund":
            flags = {"return_units": order < "b", "return_limit": order.endswith("k")}
            sale.act("refund", order, fate, refund=f"{order}-r", **flags)
        elif verb == "look":
            sale.look(order, fate)
        elif verb == "stock":
            sale.add_stock(SKUS[choice % 3], choice + 1, f"{key}-{choice}", fate)
        else:
            sale.sweep()
    sale.reserve("zoe", "k", plenty=1)
    sale.act("confirm", "zoe.k", payment="zoe")
    return sale


@settings(FEW, max_examples=100)
@given(evenings())
def test_every_sound_evening_is_valid(sale: Evening) -> None:
    report = sale.case().judge()
    assert report.verdict is Verdict.VALID, report.problems


def pick(draw: Any, choices: Any) -> Any:
    found = list(choices)
    assume(found)
    return draw(st.sampled_from(found))


def told_lines(case: Case) -> list[dict[str, Any]]:
    return [line for line in case.lines if "told" in line]


def order_events(case: Case) -> list[Any]:
    return [event for event in case.seen.events if event.record is not None]


def change_stock(case: Case, draw: Any) -> None:
    row = pick(draw, case.seen.stock.values())
    name = pick(draw, type(row).__struct_fields__)
    setattr(row, name, getattr(row, name) + pick(draw, (-2, -1, 1, 2)))


def drop_record(case: Case, draw: Any) -> None:
    del case.seen.orders[pick(draw, case.seen.orders)]


RECORD_CHANGES: dict[str, Callable[[Any], Any]] = {
    "state": lambda old: "x" if old != "x" else "h",
    "version": lambda old: old + 1,
    "deadline_ms": lambda old: old + 1,
    "units": lambda old: {index: count + 1 for index, count in old.items()},
    "buyer": lambda old: old + "x",
    "payments": lambda old: (*old, "more"),
    "refund": lambda old: old + "x",
    "print6": lambda old: "abcdef",
}


def change_struct(record: Any, draw: Any) -> None:
    name = pick(draw, RECORD_CHANGES)
    setattr(record, name, RECORD_CHANGES[name](getattr(record, name)))


def change_record(case: Case, draw: Any) -> None:
    change_struct(case.seen.orders[pick(draw, case.seen.orders)], draw)


def change_event(case: Case, draw: Any) -> None:
    change_struct(pick(draw, order_events(case)).record, draw)


def change_kind(case: Case, draw: Any) -> None:
    event = pick(draw, order_events(case))
    event.kind = pick(draw, {"held", "paying", "confirmed", "released", "expired"} - {event.kind})


def drop_event(case: Case, draw: Any) -> None:
    del case.seen.events[draw(st.integers(0, len(case.seen.events) - 1))]


def double_event(case: Case, draw: Any) -> None:
    place = draw(st.integers(0, len(case.seen.events) - 1))
    case.seen.events.insert(place, case.seen.events[place])


def double_event_with_numbers(case: Case, draw: Any) -> None:
    """As a script that ran twice: dense, and the same done again."""
    place = case.seen.events.index(pick(draw, order_events(case)))
    events = case.seen.events
    events.insert(place + 1, msgspec.structs.replace(events[place]))
    for seq, event in enumerate(events, 1):
        event.seq = seq
    case.seen.seq += 1


def change_purse(case: Case, draw: Any) -> None:
    buyer = pick(draw, case.seen.buyers)
    owned, lapsed = case.seen.buyers[buyer]
    case.seen.buyers[buyer] = pick(draw, [(owned, lapsed + 1), (owned | {"0": 9}, lapsed)])


def lose_order(case: Case, draw: Any) -> None:
    """Wholly, after somebody was told of it."""
    order = pick(draw, {line["told"]["id"] for line in told_lines(case)})
    case.forget(lambda event: event.subject != order)


def lose_tail(case: Case, draw: Any) -> None:
    """As a crash does, and at least one of what is lost had been told."""
    places = {(event.subject, event.record.version): event.seq for event in order_events(case)}
    told = [line["told"] for line in told_lines(case)]
    last = max(places[each["id"], each["version"]] for each in told)
    cut = draw(st.integers(1, last))
    case.forget(lambda event: event.seq < cut)


TOLD_CHANGES: dict[str, Callable[[Any], Any]] = {
    "id": lambda old: old + "x",
    "buyer": lambda old: old + "x",
    "state": lambda old: "expired" if old != "expired" else "held",
    "version": lambda old: old + 1,
    "items": lambda old: {sku: count + 1 for sku, count in old.items()},
    "deadline_ms": lambda old: old + 1,
    "payments": lambda old: [*old, "more"],
}


def change_answer(case: Case, draw: Any) -> None:
    told = pick(draw, told_lines(case))["told"]
    name = pick(draw, TOLD_CHANGES)
    told[name] = TOLD_CHANGES[name](told[name])


def forget_callers(case: Case, draw: Any) -> None:
    """Nobody has ever asked for this order, or for what became of it."""
    event = pick(draw, [event for event in order_events(case) if event.kind != "expired"])
    verbs = {"held": "reserve", "confirmed": "confirm", "refund_due": "confirm"}
    verbs |= {"paying": "begin_payment", "released": "release", "refunded": "refund"}
    gone = {
        line["n"]
        for line in case.lines
        if line.get("order") == event.subject and line["op"] == verbs[event.kind]
    }
    case.lines = [line for line in case.lines if line["n"] not in gone]


def create_again(case: Case, draw: Any) -> None:
    line = pick(draw, case.answers("CREATED"))
    case.add_call(case.begin_of(line), "CREATED", told=line["told"])


def ask(case: Case, order: str) -> dict[str, Any]:
    return next(
        line for line in case.lines if line.get("order") == order and line["op"] == "reserve"
    )


def refuse_retry(case: Case, draw: Any) -> None:
    order = pick(draw, {line["told"]["id"] for line in told_lines(case)})
    case.add_call(ask(case, order), pick(draw, ("SOLD_OUT", "CONFLICT", "ENDED", "SKU_LIMIT")))


def find_nothing(case: Case, draw: Any) -> None:
    order = pick(draw, {line["told"]["id"] for line in told_lines(case)})
    verb, answer = pick(draw, (("look", "NONE"), ("confirm", "UNKNOWN_ORDER")))
    case.add_call({"op": verb, "order": order, "payment": "p"}, answer)


def sell_out(case: Case, draw: Any) -> None:
    """For want of what everybody knows to be there."""
    sku = pick(draw, [sku for i, sku in enumerate(SKUS) if case.seen.stock[str(i)].available > 0])
    asked = {"op": "reserve", "order": "yan.k", "buyer": "yan", "items": {sku: 1}}
    case.add_call(asked, "SOLD_OUT")


def tell_an_old_version(case: Case, draw: Any) -> None:
    told = [line["told"] for line in told_lines(case)]
    newest = {
        each["id"]: each["version"] for each in sorted(told, key=lambda each: each["version"])
    }
    old = pick(draw, [each for each in told if each["version"] < newest[each["id"]]])
    case.add_call({"op": "look", "order": old["id"]}, "FOUND", told=old)


def claim_what_was_not_done(case: Case, draw: Any) -> None:
    told = pick(draw, told_lines(case))["told"]
    assume(not any(e.subject == told["id"] and e.kind == "refunded" for e in case.seen.events))
    case.add_call({"op": "refund", "order": told["id"], "refund": "no"}, "DONE", told=told)


def claim_stock(case: Case, draw: Any) -> None:
    asked = {"op": "add_stock", "order": "", "sku": "some", "units": 1, "key": "never"}
    case.add_call(asked, pick(draw, ("DONE", "ALREADY")))


def change_ledger(case: Case, draw: Any) -> None:
    event = pick(draw, case.ledger.events)
    name = pick(draw, ("text", "subject", "at_ms"))
    old = getattr(event, name)
    setattr(event, name, old + 1 if name == "at_ms" else old + "x")


def drop_from_ledger(case: Case, draw: Any) -> None:
    del case.ledger.events[draw(st.integers(0, len(case.ledger.events) - 1))]


def change_row(case: Case, draw: Any) -> None:
    change_struct(case.ledger.orders[pick(draw, case.ledger.orders)].record, draw)


def change_row_version(case: Case, draw: Any) -> None:
    case.ledger.orders[pick(draw, case.ledger.orders)].version += pick(draw, (-1, 1))


def drop_row(case: Case, draw: Any) -> None:
    del case.ledger.orders[pick(draw, case.ledger.orders)]


def change_sighting(case: Case, draw: Any) -> None:
    place = draw(st.integers(0, len(case.sightings) - 1))
    seen = case.sightings[place]
    changes = pick(
        draw, ({"subject": "x"}, {"kind": "x"}, {"version": seen.version + 1}, {"seq": 10_000})
    )
    case.sightings[place] = msgspec.structs.replace(seen, **changes)


def drop_sighting(case: Case, draw: Any) -> None:
    place = draw(st.integers(0, len(case.sightings) - 1))
    assume(case.sightings[place].seq in case.seen.acked["mall"])
    del case.sightings[place]


DAMAGES: tuple[Callable[[Case, Any], None], ...] = (
    change_stock,
    drop_record,
    change_record,
    change_event,
    change_kind,
    drop_event,
    double_event,
    double_event_with_numbers,
    change_purse,
    lose_order,
    lose_tail,
    change_answer,
    forget_callers,
    create_again,
    refuse_retry,
    find_nothing,
    sell_out,
    tell_an_old_version,
    claim_what_was_not_done,
    claim_stock,
    change_ledger,
    drop_from_ledger,
    change_row,
    change_row_version,
    drop_row,
    change_sighting,
    drop_sighting,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@settings(FEW)
@given(sale=evenings(), data=st.data())
def test_no_damaged_evening_is_valid(
    damage: Callable[[Case, Any], None], sale: Evening, data: st.DataObject
) -> None:
    case = sale.case()
    damage(case, data.draw)
    report = case.judge()
    assert report.verdict is Verdict.INVALID, report
