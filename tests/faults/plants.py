"""An evening of a bit of everything, and how what it left behind is damaged.

    plants_server.py    what breaks a promise on the server, in the ledger or at the consumers
    plants_callers.py   what the callers were told and ought not to have been

Each damage is found by one rule, and PLANTED has them all once both are imported.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tests.faults.checker_witness import SeenLedger
from tests.faults.evening import Case, Evening, state_of
from tests.faults.observed import SeenEvent

__all__ = ["PLANTED", "Doctor", "breaks", "evening", "event_of", "leave_alone", "put"]

Doctor = Callable[[Case], None]

PLANTED: list[tuple[Doctor, str]] = []
"""Every damage there is, and the one rule that finds it."""


def breaks(rule: str) -> Callable[[Doctor], Doctor]:
    """Notes which rule a damage breaks."""

    def note(damage: Doctor) -> Doctor:
        PLANTED.append((damage, rule))
        return damage

    return note


def evening() -> Evening:
    """A bit of everything: "ann.k" is held, "bob.k" confirmed, "cid.k" released and paid too late,
    "dan.k" refunded, "eve.k" paying, "fay.k" had lapsed and was paid late, "gus.k" has lapsed, and
    "one" is sold out to "hal.k"."""
    sale = Evening()
    sale.reserve("gus", "k", plenty=1)
    sale.reserve("fay", "k", plenty=1)
    sale.wait(30)
    sale.sweep()
    assert sale.act("confirm", "fay.k", payment="f1") == "CONFIRMED_LATE"
    sale.reserve("ann", "k", plenty=1, one=1)
    assert sale.reserve("hal", "k", one=1) == "SOLD_OUT"
    sale.reserve("bob", "k", "lost", plenty=2)
    assert sale.reserve("bob", "k", plenty=2) == "EXISTS"
    sale.act("confirm", "bob.k", payment="b1")
    assert sale.act("confirm", "bob.k", payment="b2") == "DUPLICATE_PAYMENT"
    sale.reserve("cid", "k", some=1)
    sale.act("release", "cid.k", "lost")
    assert sale.act("release", "cid.k") == "ALREADY"
    assert sale.act("confirm", "cid.k", payment="c1") == "LATE"
    sale.reserve("dan", "k", some=2)
    sale.act("begin_payment", "dan.k")
    sale.act("confirm", "dan.k", payment="d1")
    sale.act("refund", "dan.k", refund="r1", return_units=False, return_limit=True)
    sale.reserve("eve", "k", plenty=1)
    sale.act("begin_payment", "eve.k")
    sale.add_stock("some", 3, "more")
    assert sale.look("ann.k") == "FOUND"
    assert sale.look("nobody.k") == "NONE"
    sale.reserve("ivo", "k", "stuck", plenty=1)
    assert sale.look("ivo.k") == "NONE"
    sale.reserve("jan", "k", "unsent", plenty=1)
    return sale


def put(case: Case, verb: str = "", **changes: object) -> None:
    """The last event is followed by one more of an order, as the server would have written it;
    after a call whose outcome is unknown, if a verb is given."""
    order, kind = str(changes.pop("order")), str(changes.pop("kind"))
    detail = str(changes.pop("detail", ""))
    record = case.seen.orders[order]
    record = msgspec.structs.replace(record, **{"version": record.version + 1} | changes)
    last = case.seen.events[-1]
    event = SeenEvent(last.seq + 1, last.at_ms, order, kind, detail, "", record)
    case.seen = state_of(case.seen.sale, [*case.seen.events, event])
    leave_alone(case)
    if verb:
        case.add_call({"op": verb, "order": order}, "OutcomeUnknown")


def leave_alone(case: Case) -> None:
    """Without the other witnesses, who would tell of the damage in their own words."""
    case.ledger, case.sightings, case.seen.acked = SeenLedger([], {}), [], {}


def event_of(case: Case, order: str, kind: str) -> SeenEvent:
    return next(e for e in case.seen.events if (e.subject, e.kind) == (order, kind))
