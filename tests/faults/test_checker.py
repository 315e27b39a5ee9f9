"""The checker on doctored evenings: each rule finds what breaks it, and what proves nothing is
unknown. Without this, a run without problems would say little."""

from __future__ import annotations

import pytest

from tests.faults import plants_callers  # noqa: F401 - what it plants is in PLANTED
from tests.faults.checker import Observed, SeenSale, Verdict, check, state_problems
from tests.faults.checker_report import PROMISES
from tests.faults.checker_witness import SeenLedger
from tests.faults.evening import Evening, state_of
from tests.faults.history import History
from tests.faults.plants import PLANTED, Doctor, evening
from tests.faults.plants_server import (
    accept_twice,
    drop_event,
    keep_in_ledger_only,
    leak_unit,
    lose_confirm,
    lose_order,
    oversell,
    pass_limit,
    see_beyond_the_end,
)

# Nothing here asks a Redis.
pytestmark = pytest.mark.once


def test_a_sound_evening_is_valid() -> None:
    report = evening().case().judge()
    assert report.verdict is Verdict.VALID, report.problems
    assert report.listed == report.notes == ()


@pytest.mark.parametrize(
    ("damage", "rule"), PLANTED, ids=lambda each: getattr(each, "__name__", each)
)
def test_damage_is_found_by_its_rule_and_by_no_other(damage: Doctor, rule: str) -> None:
    case = evening().case()
    damage(case)
    report = case.judge()
    assert report.verdict is Verdict.INVALID, report
    assert report.rules == {rule}, report.problems


def test_there_is_damage_for_every_rule() -> None:
    assert {rule for _, rule in PLANTED} == set(PROMISES)


def test_a_problem_is_a_sentence_with_order_call_and_promise() -> None:
    case = evening().case()
    lose_order(case)
    problem = case.judge().problems[0]
    assert problem.startswith("lost: order ann.k ")
    assert "reserve (call " in problem
    assert PROMISES["lost"] in problem


def test_some_damage_shows_only_beside_the_history() -> None:
    """A loss that is whole leaves a sound state, which is why the callers' logs are needed."""
    for damage in (lose_order, lose_confirm):
        case = evening().case()
        damage(case)
        assert state_problems(case.seen) == []


@pytest.mark.parametrize("fate", ["lost", "open", "stuck"])
def test_what_was_left_open_may_have_happened_or_not(fate: str) -> None:
    for happened in ("lost", "open"):
        sale = evening()
        sale.reserve("zoe", "k", happened, plenty=1)
        case = sale.case()
        assert case.judge().verdict is Verdict.VALID
        case.forget(lambda event: event.subject != "zoe.k")
        assert case.judge().verdict is Verdict.VALID
    sale = evening()
    sale.act("confirm", "ann.k", fate, payment="a1")  # type: ignore[arg-type]
    sale.act("release", "eve.k", fate)  # type: ignore[arg-type]
    sale.add_stock("one", 1, "again", fate)  # type: ignore[arg-type]
    assert sale.case().judge().verdict is Verdict.VALID


def test_a_later_call_may_have_made_what_was_not_found() -> None:
    sale = evening()
    sale.reserve("zoe", "k", "stuck", plenty=1)
    assert sale.look("zoe.k") == "NONE"
    sale.reserve("zoe", "k", plenty=1)
    assert sale.case().judge().verdict is Verdict.VALID


def test_a_unit_that_comes_back_is_leased_for_a_moment() -> None:
    """Within the lease "sold out" may still be said, and after it not any more."""
    sale = evening()
    sale.act("release", "ann.k")
    case = sale.case()
    freed_s = case.lines[-1]["t"]
    asked = {"op": "reserve", "order": "zoe.k", "buyer": "zoe", "items": {"one": 1}}
    case.add_call(asked, "SOLD_OUT")
    case.lines[-2]["t"] = case.lines[-1]["t"] = freed_s + 0.1
    assert case.judge().verdict is Verdict.VALID
    assert case.judge(lease_s=0.05).rules == {"sold_out"}
    case.lines[-2]["t"] = case.lines[-1]["t"] = freed_s + 0.3
    assert case.judge().rules == {"sold_out"}


def test_what_a_mode_may_lose_is_listed() -> None:
    case = evening().case()
    lose_order(case)
    report = case.judge(keeps="nothing")
    assert report.verdict is Verdict.VALID
    assert len(report.listed) == 1
    assert report.notes
    acknowledged_s = case.answers("CREATED")[2]["t"]
    near, far = (acknowledged_s + 1,), (acknowledged_s + 60,)
    assert case.judge(keeps="up_to_fsync", crashes_s=near).verdict is Verdict.VALID
    # With no crash near it, nothing may be lost.
    assert case.judge(keeps="up_to_fsync", crashes_s=far).rules == {"lost"}
    assert case.judge(keeps="up_to_fsync").rules == {"lost"}


@pytest.mark.parametrize("damage", [leak_unit, oversell, pass_limit, drop_event, accept_twice])
def test_a_mode_that_loses_keeps_every_other_promise(damage: Doctor) -> None:
    case = evening().case()
    damage(case)
    assert case.judge(keeps="nothing").verdict is Verdict.INVALID


def test_what_a_mode_may_lose_the_other_witnesses_may_still_have() -> None:
    for damage in (keep_in_ledger_only, see_beyond_the_end):
        case = evening().case()
        damage(case)
        assert case.judge(keeps="nothing").verdict is Verdict.VALID
        assert case.judge(keeps="up_to_fsync").rules == {"lost"}


def test_trimmed_events_come_from_the_ledger() -> None:
    case = evening().case()
    case.seen.events = case.seen.events[5:]
    case.seen.trimmed_seq = 5
    assert case.judge().verdict is Verdict.VALID
    report = case.judge(ledger=None)
    assert report.verdict is Verdict.UNKNOWN
    assert "no ledger" in report.problems[0]
    # What was not trimmed is missing.
    case.seen.trimmed_seq = 3
    assert "seq" in case.judge().rules


def test_what_proves_nothing_is_unknown() -> None:
    nothing = Observed(0, SeenSale([], 0, 0), {}, {}, {}, [])
    assert check(History(), None).verdict is Verdict.UNKNOWN
    assert check(History(), nothing).verdict is Verdict.UNKNOWN
    case = Evening().case()
    assert case.judge().problems == ("empty: nothing was acknowledged",)
    case = evening().case()
    assert check(History(), state_of(case.seen.sale, case.seen.events[:2])).verdict is (
        Verdict.UNKNOWN
    )


def test_a_whole_sale_may_be_lost() -> None:
    case = evening().case()
    case.seen = Observed(0, SeenSale([], 0, 0), {}, {}, {}, [])
    case.ledger, case.sightings = SeenLedger([], {}), []
    assert "lost" in case.judge().rules


def test_a_checker_that_crashes_is_no_pass() -> None:
    case = evening().case()
    case.seen.events[1].kind = "teleported"
    report = case.judge(ledger=None, sightings=[])
    assert report.verdict is Verdict.UNKNOWN
    assert "teleported" in report.problems[0]
    # What another part of it has found is found.
    lose_order(case)
    assert case.judge(ledger=None, sightings=[]).verdict is Verdict.INVALID


def test_a_damaged_log_is_no_pass() -> None:
    case = evening().case()
    history = History()
    for line in case.lines:
        history.take("load", line)
    history.damage.append("load#1 has a line that can't be read")
    assert check(history, case.seen, ledger=case.ledger).verdict is Verdict.UNKNOWN
