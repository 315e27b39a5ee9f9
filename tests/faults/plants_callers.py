"""What callers were told and ought not to have been, each broken by one rule."""

from __future__ import annotations

from tests.faults.evening import Case, state_of
from tests.faults.observed import SeenEvent, SeenOrder
from tests.faults.plants import breaks, event_of, leave_alone, put


@breaks("answer")
def answer_another_state(case: Case) -> None:
    case.answers("FOUND")[0]["told"]["state"] = "paying"


@breaks("missing")
def find_nothing(case: Case) -> None:
    case.add_call({"op": "look", "order": "ann.k"}, "NONE")


@breaks("missing")
def know_no_order(case: Case) -> None:
    case.add_call({"op": "release", "order": "ann.k"}, "UNKNOWN_ORDER")


@breaks("money")
def pay_nothing(case: Case) -> None:
    """Late, and neither an event nor a refund is due."""
    asked = {"op": "confirm", "order": "ann.k", "payment": "a1"}
    case.add_call(asked, "LATE", told=case.answers("FOUND")[0]["told"])


@breaks("money")
def forget_payment(case: Case) -> None:
    event = event_of(case, "cid.k", "refund_due")
    assert event.record is not None
    event.record.payments = ()
    leave_alone(case)
    answer = case.answers("LATE")[0]
    answer["answer"] = "OutcomeUnknown"
    del answer["told"]


@breaks("order")
def answer_before_it_was_asked(case: Case) -> None:
    """An order stands before others whose calls had ended before that of "cid.k" began."""
    for line in case.lines:
        if line["n"] == case.begin_of(case.answers("CREATED")[3])["n"]:
            line["t"] += 10


@breaks("phantom")
def add_stranger(case: Case) -> None:
    case.lines = [
        line
        for line in case.lines
        if line["n"] not in {each["n"] for each in case.lines if each.get("order") == "gus.k"}
    ]


@breaks("phantom")
def confirm_by_nobody(case: Case) -> None:
    record = case.seen.orders["ann.k"]
    payments = ("a1", *record.payments)
    put(case, order="ann.k", kind="confirmed", detail="a1", state="c", payments=payments)


@breaks("phantom")
def refuse_what_is_there(case: Case) -> None:
    """Every call was refused, and yet it exists."""
    for line in case.lines:
        if case.begin_of(line)["order"] == "gus.k" and "answer" in line:
            line["answer"] = "BUYER_LIMIT"
            line.pop("told")


@breaks("phantom")
def never_send_what_is_there(case: Case) -> None:
    for line in case.lines:
        if case.begin_of(line)["order"] == "gus.k" and "answer" in line:
            line["answer"] = "Overloaded"
            line.pop("told")


@breaks("phantom")
def change_stock_by_nobody(case: Case) -> None:
    number = case.answers("DONE", verb="add_stock")[0]["n"]
    case.lines = [line for line in case.lines if line["n"] != number]


@breaks("retry")
def refuse_a_retry(case: Case) -> None:
    asked = case.begin_of(case.answers("CREATED")[2])
    assert asked["order"] == "ann.k"
    case.add_call(asked, "CONFLICT")


@breaks("sold_out")
def sell_out_early(case: Case) -> None:
    asked = {"op": "reserve", "order": "zoe.k", "buyer": "zoe", "items": {"plenty": 1}}
    case.add_call(asked, "SOLD_OUT")


@breaks("sold_out")
def say_too_few(case: Case) -> None:
    asked = {"op": "reserve", "order": "zoe.k", "buyer": "zoe", "items": {"some": 2}}
    case.add_call(asked, "INSUFFICIENT")


@breaks("twice")
def create_twice(case: Case) -> None:
    line = case.answers("CREATED")[0]
    case.add_call(case.begin_of(line), "CREATED", told=line["told"])
    # The order was lapsed by then, so that what it tells is told of it before.
    case.lines[-2]["t"] = case.begin_of(line)["t"]
    case.lines[-1]["t"] = line["t"]


@breaks("twice")
def answer_another_order(case: Case) -> None:
    case.answers("EXISTS")[0]["told"]["id"] = "ann.k"


@breaks("twice")
def answer_another_payload(case: Case) -> None:
    case.answers("EXISTS")[0]["told"]["items"] = {"plenty": 1}


@breaks("twice")
def change_stock_twice(case: Case) -> None:
    line = case.answers("DONE", verb="add_stock")[0]
    case.add_call(case.begin_of(line), "DONE")


@breaks("twice")
def change_stock_by_other_units(case: Case) -> None:
    case.begin_of(case.answers("DONE", verb="add_stock")[0])["units"] = 5


@breaks("version")
def tell_an_old_version(case: Case) -> None:
    told = case.answers("CREATED", verb="reserve")[-1]["told"]
    assert told["id"] == "eve.k"
    case.add_call({"op": "look", "order": "eve.k"}, "FOUND", told=told)


@breaks("zombie")
def rise_from_the_dead(case: Case) -> None:
    """A look-up found nothing when the time of the one call for it was over, and later it was
    there."""
    asked = {"op": "reserve", "order": "zoe.k", "buyer": "zoe", "items": {"plenty": 1}}
    case.add_call(asked, "OutcomeUnknown")
    case.add_call({"op": "look", "order": "zoe.k"}, "NONE")
    last, sale = case.seen.events[-1], case.seen.sale
    due_ms = last.at_ms + sale.hold_ms - case.seen.origin_ms
    record = SeenOrder("h", 1, "------", due_ms, {"0": 1}, "zoe")
    event = SeenEvent(last.seq + 1, last.at_ms, "zoe.k", "held", "", "", record)
    case.seen = state_of(case.seen.sale, [*case.seen.events, event])
    leave_alone(case)


@breaks("zombie")
def rise_after_a_kill(case: Case) -> None:
    """The same of a call that was left open by a kill, until its time was over."""
    rise_from_the_dead(case)
    call = case.begin_of(case.lines[-3])
    call["until"] = case.lines[-2]["t"] - 1
    del case.lines[-3]
