"""The checker on doctored histories: each kind of damage is found, and what proves nothing is
unknown. Without this, a run without problems would say little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checker import (
    History,
    Observed,
    SeenEvent,
    SeenOrder,
    SeenStock,
    Verdict,
    check,
    state_problems,
)

Doctor = Callable[[Observed], None]


def healthy() -> Observed:
    """Ten units: "kept" is held, "paid" confirmed with two units, "given" released."""
    return Observed(
        seq=7,
        totals={"0": 10},
        stock={"0": SeenStock(available=7, held=1, confirmed=2, total=10)},
        orders={
            "kept": SeenOrder("h", {"0": 1}),
            "paid": SeenOrder("c", {"0": 2}),
            "given": SeenOrder("r", {"0": 1}),
        },
        events=[
            SeenEvent(1, "sale", "created"),
            SeenEvent(2, "sale", "opened"),
            SeenEvent(3, "kept", "held"),
            SeenEvent(4, "paid", "held"),
            SeenEvent(5, "given", "held"),
            SeenEvent(6, "paid", "confirmed"),
            SeenEvent(7, "given", "released"),
        ],
    )


def said(*calls: tuple[str, str, str | None]) -> History:
    """A history of calls one after the other: verb, order, answer; None leaves the call open."""
    history = History()
    for number, (verb, order, answer) in enumerate(calls):
        history.begin(number, verb, order)
        if answer is not None:
            history.end(number, answer)
    return history


TOLD = (
    ("reserve", "kept", "CREATED"),
    ("reserve", "paid", "OutcomeUnknown"),
    ("reserve", "paid", "EXISTS"),
    ("reserve", "given", "CREATED"),
    ("confirm", "paid", "DONE"),
    ("release", "given", "OutcomeUnknown"),
    ("release", "given", "ALREADY"),
    ("reserve", "refused", "SOLD_OUT"),
    ("reserve", "unsent", "Overloaded"),
)


def test_a_healthy_history_is_valid() -> None:
    assert check(said(*TOLD), healthy()).verdict is Verdict.VALID


def lose_order(seen: Observed) -> None:
    """As a crash does: record, event and units are gone together."""
    del seen.orders["kept"]
    seen.events = [event for event in seen.events if event.subject != "kept"]
    for seq, event in enumerate(seen.events, 1):
        event.seq = seq
    seen.seq = 6
    seen.stock["0"] = SeenStock(8, 0, 2, 10)


def lose_confirm(seen: Observed) -> None:
    seen.orders["paid"].state = "h"
    del seen.events[5]
    seen.events[5].seq = 6
    seen.seq = 6
    seen.stock["0"] = SeenStock(7, 3, 0, 10)


def lose_record(seen: Observed) -> None:
    del seen.orders["kept"]


def sell_twice(seen: Observed) -> None:
    seen.events.append(SeenEvent(8, "kept", "held"))
    seen.seq = 8
    seen.stock["0"] = SeenStock(6, 2, 2, 10)


def leak_unit(seen: Observed) -> None:
    seen.stock["0"].available -= 1


def invent_unit(seen: Observed) -> None:
    seen.stock["0"].available += 1
    seen.stock["0"].total += 1


def lose_stock(seen: Observed) -> None:
    del seen.stock["0"]


def shift_unit(seen: Observed) -> None:
    """The sum is right and the rows are not."""
    seen.stock["0"] = SeenStock(8, 0, 2, 10)


def oversell(seen: Observed) -> None:
    seen.orders["kept"].units["0"] = 9
    seen.stock["0"] = SeenStock(-1, 9, 2, 10)


def drop_event(seen: Observed) -> None:
    del seen.events[2]


def change_state(seen: Observed) -> None:
    seen.orders["kept"].state = "x"


def confirm_after_release(seen: Observed) -> None:
    seen.events.append(SeenEvent(8, "given", "confirmed"))
    seen.seq = 8
    seen.orders["given"].state = "c"


def add_stranger(seen: Observed) -> None:
    _add_order(seen, "stranger")


def add_refused(seen: Observed) -> None:
    _add_order(seen, "refused")


def add_unsent(seen: Observed) -> None:
    _add_order(seen, "unsent")


def _add_order(seen: Observed, order: str) -> None:
    seen.orders[order] = SeenOrder("h", {"0": 1})
    seen.events.append(SeenEvent(8, order, "held"))
    seen.seq = 8
    seen.stock["0"] = SeenStock(6, 2, 2, 10)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lose_order, "lost"),
        (lose_confirm, "lost"),
        (lose_record, "lost"),
        (sell_twice, "double"),
        (leak_unit, "conservation"),
        (invent_unit, "conservation"),
        (lose_stock, "conservation"),
        (shift_unit, "conservation"),
        (oversell, "oversold"),
        (drop_event, "seq"),
        (change_state, "state"),
        (confirm_after_release, "state"),
        (add_stranger, "phantom"),
        (add_refused, "phantom"),
        (add_unsent, "phantom"),
    ],
)
def test_damage_is_found(damage: Doctor, rule: str) -> None:
    seen = healthy()
    damage(seen)
    report = check(said(*TOLD), seen)
    assert report.verdict is Verdict.INVALID
    assert report.found(rule) > 0, report.problems


def test_some_damage_shows_only_beside_the_history() -> None:
    """A loss that is whole leaves a sound state, which is why the callers' logs are needed."""
    for damage in (lose_order, lose_confirm):
        seen = healthy()
        damage(seen)
        assert state_problems(seen) == []


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (("reserve", "kept", "CREATED"), "double"),
        (("confirm", "kept", "UNKNOWN_ORDER"), "refused"),
        (("release", "kept", "DONE"), "lost"),
    ],
)
def test_answers_that_do_not_fit_are_found(more: tuple[str, str, str], rule: str) -> None:
    report = check(said(*TOLD, more), healthy())
    assert report.verdict is Verdict.INVALID
    assert report.found(rule) > 0, report.problems


@pytest.mark.parametrize(
    "calls",
    [
        [("reserve", "new", None)],
        [("reserve", "new", "OutcomeUnknown")],
        [("reserve", "new", "SOLD_OUT"), ("reserve", "new", "OutcomeUnknown")],
    ],
)
def test_an_open_call_may_have_happened_or_not(
    calls: list[tuple[str, str, str | None]],
) -> None:
    history = said(*TOLD, *calls)
    assert check(history, healthy()).verdict is Verdict.VALID
    seen = healthy()
    _add_order(seen, "new")
    assert check(history, seen).verdict is Verdict.VALID


def test_a_refusal_settles_the_unknown_before_it() -> None:
    history = said(*TOLD, ("reserve", "new", "OutcomeUnknown"), ("reserve", "new", "TOO_LATE"))
    seen = healthy()
    _add_order(seen, "new")
    assert check(history, seen).found("phantom") == 1


def test_an_open_confirm_may_have_happened_or_not() -> None:
    seen = healthy()
    lose_confirm(seen)
    told = [call for call in TOLD if call[0] != "confirm"]
    history = said(*told, ("confirm", "paid", None))
    assert check(history, seen).verdict is Verdict.VALID
    assert check(history, healthy()).verdict is Verdict.VALID


def test_what_proves_nothing_is_unknown() -> None:
    assert check(said(*TOLD), None).verdict is Verdict.UNKNOWN
    empty = Observed(seq=0, totals={}, stock={}, orders={}, events=[])
    assert check(said(), empty).verdict is Verdict.UNKNOWN
    assert check(said(("reserve", "unsent", "Overloaded")), empty).verdict is Verdict.UNKNOWN


def test_a_checker_that_crashes_is_no_pass() -> None:
    seen = healthy()
    seen.events.append(SeenEvent(8, "kept", "teleported"))
    seen.seq = 8
    report = check(said(*TOLD), seen)
    assert report.verdict is Verdict.UNKNOWN
    assert "teleported" in report.problems[0]


def test_a_log_is_read_by_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "history.jsonl"
    history = History()
    log.write_text('{"n": 1, "op": "reserve", "order": "a"}\n{"n": 1, "ans')
    history.read(log)
    assert (history.accepted, history.orders["a"].open) == (0, 1)
    log.write_text('{"n": 1, "op": "reserve", "order": "a"}\n{"n": 1, "answer": "CREATED"}\n')
    history.read(log)
    assert (history.accepted, history.orders["a"].open) == (1, 0)
