"""What patient callers of a chaos run met with, planted call by call: which errors the faults
explain, and which are a defect."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import chaos_judge
from tests.faults.chaos_judge import judge
from tests.faults.chaos_patience import (
    CALM_S,
    Outage,
    Outages,
    Patience,
    look_at_patience,
)
from tests.faults.chaos_schedule import Fault
from tests.faults.checker import Report, Verdict
from tests.faults.history import Call, History
from tests.faults.load import HASTY_MS, PATIENT_MS

# Nothing here asks a Redis.
pytestmark = pytest.mark.once

TIMEOUT_S = PATIENT_MS / 1000


def history_of(*calls: tuple[float, float | None, str], **asked: Any) -> History:
    """Calls, each with its begin, its end (None: its process was killed first) and its answer."""
    history = History()
    for number, (began_s, ended_s, answer) in enumerate(calls, 1):
        begin = {"op": "confirm", "order": "o", "timeout_ms": PATIENT_MS} | asked
        history.take("load", {"n": number, "t": began_s, **begin})
        if ended_s is not None:
            history.take("load", {"n": number, "t": ended_s, "answer": answer})
    return history


def calls_of(*calls: tuple[float, float | None, str], **asked: Any) -> list[Call]:
    return history_of(*calls, **asked).orders["o"]


def test_who_was_killed_while_it_waited_has_met_no_error() -> None:
    calls = calls_of((0.0, None, ""), (0.0, 3.0, "DONE"))
    assert look_at_patience(calls, []) == Patience()
    assert str(look_at_patience(calls, [])) == "0 errors for patient callers"


@pytest.mark.parametrize("verb", ["reserve", "look", "add_stock", "refund"])
@pytest.mark.parametrize("answer", ["OutcomeUnknown", "RedisUnavailable", "Overloaded"])
def test_every_error_counts_whatever_was_asked_for(verb: str, answer: str) -> None:
    history = history_of((0.0, TIMEOUT_S, answer), op=verb)
    calls = [*history.stock, *(call for calls in history.orders.values() for call in calls)]
    found = look_at_patience(calls, [Outage("pause_master", -1.0, 9.0)])
    assert (found.errors, found.problems) == (1, ())


def test_neither_hasty_callers_nor_a_full_server_count() -> None:
    hasty = calls_of((0.0, 0.2, "OutcomeUnknown"), timeout_ms=HASTY_MS)
    full = calls_of((0.0, 0.1, "ServerFull"), (0.0, 0.1, "SOLD_OUT"))
    assert look_at_patience([*hasty, *full], []) == Patience()


def test_faults_one_right_after_the_other_explain_an_error_and_are_named() -> None:
    calls = calls_of((10.0, 20.0, "OutcomeUnknown"))
    outages = [
        Outage("failover", 15.0, 19.5),
        Outage("part_master", 9.0, 13.0),
        # Within another one, so it does not end what that began.
        Outage("drop", 11.0, 12.0),
        Outage("kill_replica", 3.0, 9.9),
        Outage("kill_master", 20.1, 24.0),
    ]
    found = look_at_patience(calls, outages)
    assert found == Patience(1, ("part_master", "drop", "failover"), 2.0)
    assert str(found) == ("1 error for patient callers (part_master drop failover; 2.00 s of calm)")


@pytest.mark.parametrize(
    ("outages", "calm_s"),
    [
        ([], 10.0),
        ([Outage("cut", 10.0, 11.0)], 9.0),
        ([Outage("kill", 14.0, 20.0), Outage("pause", 8.0, 8.5)], 4.0),
        ([Outage("kill", 9.0, 12.0), Outage("pause", 17.5, 20.0)], 5.5),
    ],
)
def test_who_had_calm_enough_and_was_not_served_met_a_defect(
    outages: list[Outage], calm_s: float
) -> None:
    calls = calls_of((10.0, 20.0, "OutcomeUnknown"))
    found = look_at_patience(calls, outages)
    assert found.calm_s == calm_s
    assert len(found.problems) == (calm_s > CALM_S)
    for problem in found.problems:
        assert problem == (
            "unserved: confirm (call 1 of load: OutcomeUnknown) was let wait for 10.00 s, and"
            f" nothing was wrong for {calm_s:.2f} s of them"
        )


def test_who_was_told_long_before_its_time_was_over_met_a_defect() -> None:
    calls = calls_of((10.0, 12.0, "OutcomeUnknown"))
    outages = [Outage("kill_master", 9.0, 30.0)]
    [problem] = look_at_patience(calls, outages).problems
    assert problem.endswith("was let wait for 2.00 s, and has 10")
    # Nobody is let wait for a sale that is stopped until it is rebuilt.
    told = look_at_patience(calls, outages, has_lost=True)
    assert (told.errors, told.problems) == (1, ())


def test_only_faults_that_stop_callers_are_kept() -> None:
    done: list[tuple[str, str]] = []
    servers: Any = SimpleNamespace(
        begin=lambda fault: done.append(("begin", fault.name)),
        end=lambda fault: done.append(("end", fault.name)),
    )
    outages = Outages(servers, "sentinel")
    over, slow, going_on = (
        Fault("kill_master", 0, 0, 0),
        Fault("delay", 1, 0, 5),
        Fault("drop", 2, 0, 1),
    )
    for fault in (over, slow):
        outages.begin(fault)
        outages.end(fault)
    outages.begin(going_on)
    assert done == [
        ("begin", "kill_master"),
        ("end", "kill_master"),
        ("begin", "delay"),
        ("end", "delay"),
        ("begin", "drop"),
    ]
    first, last = outages.told
    assert (first.name, last.name) == ("kill_master", "drop")
    assert first.began_s <= first.ended_s <= last.began_s < last.ended_s == float("inf")


@pytest.mark.parametrize("verdict", Verdict)
def test_an_error_that_no_fault_explains_is_no_pass(
    verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(verdict, () if verdict is Verdict.VALID else ("empty: nothing",))
    monkeypatch.setattr(chaos_judge, "header_of", lambda *_: ["open", ""])
    monkeypatch.setattr(chaos_judge, "_check", lambda *_, **__: report)
    crew: Any = SimpleNamespace(read=lambda: history_of((10.0, 20.0, "OutcomeUnknown")))
    servers: Any = SimpleNamespace(restored_s=None)
    for outage, explains in ((Outage("kill", 10.0, 20.0), True), (Outage("kill", 10, 11), False)):
        result = judge(crew, servers, 1, "single", (), (), [outage])
        assert result.patience.errors == 1
        assert "1 error for patient callers (kill; " in str(result)
        if explains or verdict is Verdict.INVALID:
            assert result.report == report
        else:
            assert result.verdict is Verdict.UNKNOWN
            assert not result.explained
            assert "unserved" in result.report.rules
