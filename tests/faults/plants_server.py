"""What breaks a promise on the server, in the ledger or at the consumers, each by one rule."""

from __future__ import annotations

import msgspec

from tests.faults.checker import Verdict
from tests.faults.checker_witness import LedgerOrder, Sighting
from tests.faults.evening import Case, state_of
from tests.faults.plants import breaks, event_of, leave_alone, put


@breaks("confirmed")
def expire_confirmed(case: Case) -> None:
    put(case, order="bob.k", kind="expired", state="x")


@breaks("confirmed")
def keep_confirmed_as_held(case: Case) -> None:
    case.seen.orders["bob.k"].state = "h"


@breaks("conservation")
def leak_unit(case: Case) -> None:
    case.seen.stock["0"].available -= 1


@breaks("conservation")
def invent_unit(case: Case) -> None:
    case.seen.stock["0"].available += 1
    case.seen.stock["0"].total += 1


@breaks("conservation")
def shift_unit(case: Case) -> None:
    """The sum is right and the rows are not."""
    case.seen.stock["0"].available += 1
    case.seen.stock["0"].held -= 1


@breaks("conservation")
def lose_stock(case: Case) -> None:
    del case.seen.stock["0"]


@breaks("conservation")
def say_another_total(case: Case) -> None:
    event = event_of(case, "sale", "stock")
    event.detail = event.detail[:-1] + "9"
    case.ledger.events[event.seq - 1].detail = event.detail


@breaks("consumer")
def see_what_is_not(case: Case) -> None:
    case.sightings[4] = msgspec.structs.replace(case.sightings[4], version=7)


@breaks("consumer")
def acknowledge_unseen(case: Case) -> None:
    del case.sightings[4]


@breaks("deadline")
def lapse_early(case: Case) -> None:
    put(case, order="ann.k", kind="expired", state="x")


@breaks("deadline")
def pay_without_more_time(case: Case) -> None:
    record = case.seen.orders["ann.k"]
    put(case, "begin_payment", order="ann.k", kind="paying", state="p", units=record.units)


@breaks("deadline")
def change_the_deadline(case: Case) -> None:
    due_ms = case.seen.orders["ann.k"].deadline_ms + 1
    put(case, "release", order="ann.k", kind="released", state="r", deadline_ms=due_ms)


@breaks("event")
def lose_event(case: Case) -> None:
    """The record and its units stay."""
    seen = case.seen
    case.forget(lambda event: event.subject != "ann.k")
    case.seen.orders, case.seen.stock, case.seen.buyers = seen.orders, seen.stock, seen.buyers
    case.seen.stock = state_of(case.seen.sale, case.seen.events).stock
    del case.seen.buyers["ann"]


@breaks("event")
def begin_with_paying(case: Case) -> None:
    """An order's first event is not the one with which it was accepted."""
    case.seen.events = [e for e in case.seen.events if (e.subject, e.kind) != ("eve.k", "held")]
    for seq, event in enumerate(case.seen.events, 1):
        event.seq = seq
    case.seen.seq -= 1
    leave_alone(case)


@breaks("ledger")
def change_ledger_event(case: Case) -> None:
    case.ledger.events[3].text += "|more"


@breaks("ledger")
def drop_ledger_event(case: Case) -> None:
    del case.ledger.events[3]


@breaks("ledger")
def change_row(case: Case) -> None:
    case.ledger.orders["ann.k"].record.state = "r"


@breaks("ledger")
def drop_row(case: Case) -> None:
    del case.ledger.orders["ann.k"]


@breaks("version")
def let_row_fall_back(case: Case) -> None:
    row = case.ledger.orders["eve.k"]
    row.version = row.record.version = 1


@breaks("limit")
def pass_limit(case: Case) -> None:
    case.seen.sale.items[0].limit = 1


@breaks("limit")
def pass_order_limit(case: Case) -> None:
    case.seen.sale.limit_per_order = 1


@breaks("limit")
def pass_sale_limit(case: Case) -> None:
    case.seen.sale.limit_per_buyer = 1


@breaks("lost")
def lose_order(case: Case) -> None:
    """As a crash does: record, event and units are gone together, and nobody else had come by."""
    case.forget(lambda event: event.subject != "ann.k")
    case.lines = [line for line in case.lines if line["n"] != case.answers("SOLD_OUT")[0]["n"]]


@breaks("lost")
def lose_confirm(case: Case) -> None:
    case.forget(lambda event: event.subject != "eve.k" or event.kind != "paying")


@breaks("lost")
def lose_stock_change(case: Case) -> None:
    case.forget(lambda event: event.kind != "stock")


@breaks("lost")
def lose_record(case: Case) -> None:
    del case.seen.orders["ann.k"]


@breaks("lost")
def keep_in_ledger_only(case: Case) -> None:
    last = case.ledger.events[-1]
    case.ledger.events.append(msgspec.structs.replace(last, seq=last.seq + 1, record=None))


@breaks("lost")
def keep_row_only(case: Case) -> None:
    record = msgspec.structs.replace(case.seen.orders["ann.k"], buyer="zoe")
    case.ledger.orders["zoe.k"] = LedgerOrder(1, record)


@breaks("lost")
def see_beyond_the_end(case: Case) -> None:
    case.sightings.append(Sighting("mall", "c-1", case.seen.seq + 1, "ann.k", "order_released", 2))


@breaks("money")
def pay_twice(case: Case) -> None:
    """The same payment buys the order and is due back."""
    record = case.seen.orders["bob.k"]
    payments = (*record.payments, "b1")
    put(case, order="bob.k", kind="refund_due", detail="b1", payments=payments)


@breaks("oversold")
def oversell(case: Case) -> None:
    case.seen.sale.items[2].total = 0
    case.seen = state_of(case.seen.sale, case.seen.events)


@breaks("purse")
def count_too_few(case: Case) -> None:
    case.seen.buyers["ann"] = ({"0": 1}, 0)


@breaks("purse")
def forget_a_lapse(case: Case) -> None:
    case.seen.buyers["gus"] = ({}, 0)


@breaks("seq")
def drop_event(case: Case) -> None:
    del case.seen.events[1]
    leave_alone(case)


@breaks("seq")
def double_event(case: Case) -> None:
    case.seen.events.insert(2, case.seen.events[1])
    leave_alone(case)


@breaks("seq")
def drop_last_event(case: Case) -> None:
    put(case, "release", order="eve.k", kind="released", state="r")
    assert case.judge().verdict is Verdict.VALID
    del case.seen.events[-1]


@breaks("state")
def go_back_from_paying(case: Case) -> None:
    put(case, "begin_payment", order="cid.k", kind="paying", state="p")


@breaks("state")
def change_state(case: Case) -> None:
    case.seen.orders["ann.k"].state = "x"


@breaks("twice")
def accept_twice(case: Case) -> None:
    record = case.seen.orders["ann.k"]
    put(case, order="ann.k", kind="held", version=record.version)


@breaks("twice")
def change_the_cart(case: Case) -> None:
    put(case, "release", order="eve.k", kind="released", state="r", units={"0": 2})


@breaks("version")
def fall_back(case: Case) -> None:
    case.seen.orders["eve.k"] = msgspec.structs.replace(case.seen.orders["ann.k"], buyer="eve")


@breaks("version")
def jump(case: Case) -> None:
    put(case, "release", order="eve.k", kind="released", state="r", version=9)
