"""Decides whether what a server holds fits what its callers were told.

    History    every call and its answer, as any number of load processes logged them (history.py)
    Observed   the server's keys at one moment, read raw and without the engine (observed.py)
    the ledger's rows and the consumers' logs, where there are any (checker_witness.py)
    check      all of them together: valid, invalid with the problems, or unknown with the reasons

It shares no code with the engine but the names of the keys. The rules stand in checker_report.py:
checker_stream.py replays the events with a twin of a few lines, checker_calls.py holds each call
against them, and checker_times.py asks whether the order of the events fits the times of the calls.
Read the callers' logs first, then the server, then the ledger and the consumers' logs, while no
caller reaches the server.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from tests.faults.checker_calls import call_problems, losses, stock_problems
from tests.faults.checker_report import Report, Verdict, rule_of
from tests.faults.checker_stream import Twin, state_problems
from tests.faults.checker_times import Times, sold_out_problems, time_problems
from tests.faults.checker_witness import (
    SeenLedger,
    Sighting,
    all_events,
    consumer_problems,
    ledger_problems,
)
from tests.faults.history import History
from tests.faults.observed import (
    Observed,
    SeenEvent,
    SeenItem,
    SeenOrder,
    SeenSale,
    SeenStock,
    observe,
)

__all__ = [
    "History",
    "Keeps",
    "Observed",
    "Report",
    "SeenEvent",
    "SeenItem",
    "SeenOrder",
    "SeenSale",
    "SeenStock",
    "Verdict",
    "check",
    "observe",
    "state_problems",
]

Keeps = Literal["all", "up_to_fsync", "nothing"]
"""Which acknowledged orders must survive a crash: all, all but those of the last moments before it,
or none."""

# What `appendfsync everysec` may lose: Redis promises a second, and two when the disk is slow.
FSYNC_S = 2.0
# The engine's lease of 200 ms, and what the scripts add because clocks are cut to milliseconds.
LEASE_S = 0.25


def check(
    history: History,
    seen: Observed | None,
    *,
    keeps: Keeps = "all",
    crashes_s: Sequence[float] = (),
    lease_s: float = LEASE_S,
    ledger: SeenLedger | None = None,
    sightings: Sequence[Sighting] = (),
) -> Report:
    """The verdict. A state that could not be read, a history in which nothing was accepted and a
    checker that crashed prove nothing.

    ``crashes_s`` are the crashes' times on the machine's monotonic clock: with "up_to_fsync" only
    what was acknowledged in the last seconds before one of them may be lost. ``lease_s`` is how old
    "sold out" may be.
    """
    if seen is None:
        return Report(Verdict.UNKNOWN, ("unread: the server's state could not be read",))
    court = _Court(history, seen, keeps, crashes_s)
    court.hear(lambda: court.judge_state(ledger))
    if court.events is not None:
        events = court.events
        if ledger is not None:
            book = ledger
            court.hear(lambda: court.lost_or(ledger_problems(book, seen, events)))
        seen_by = list(sightings)
        court.hear(lambda: court.lost_or(consumer_problems(seen_by, seen, events)))
        court.hear(court.judge_calls)
        court.hear(lambda: court.judge_times(lease_s))
    return court.report()


class _Court:
    """One judgement. Each part of it is heard by itself, so that one that crashes hides no
    other."""

    def __init__(
        self, history: History, seen: Observed, keeps: Keeps, crashes_s: Sequence[float]
    ) -> None:
        self._history = history
        self._seen = seen
        self._keeps = keeps
        self._crashes_s = crashes_s
        self._problems: list[str] = []
        self._listed: list[str] = []
        self._notes: list[str] = []
        self._reasons = [f"damaged: {text}" for text in history.damage]
        # What the events come to, if nothing is wrong with them.
        self._twin: Twin | None = None
        self._index_of = {item.sku: str(index) for index, item in enumerate(seen.sale.items)}
        self.events: list[SeenEvent] | None = None

    def hear(self, part: Callable[[], None]) -> None:
        """Runs one part of the judgement."""
        try:
            part()
        except Exception:  # noqa: BLE001
            # Whatever it stumbled over, it has not finished, and must not look as if it had.
            self._reasons.append(f"crashed: {traceback.format_exc()}")

    def judge_state(self, ledger: SeenLedger | None) -> None:
        """The server's state and its events, whatever anybody was told."""
        self.events = all_events(self._seen, ledger)
        if self.events is None:
            self._reasons.append(
                "unread: the stream has lost its first events, and no ledger is given"
            )
            return
        twin = Twin(self._seen)
        twin.replay(self.events)
        problems = state_problems(self._seen, self.events, twin)
        self._twin = None if problems else twin
        self._problems += problems

    def judge_calls(self) -> None:
        """What the callers were told."""
        events = self.events or []
        for loss in losses(self._history, self._seen, events):
            may_be = rule_of(loss.problem) == "lost" and self._may_be_lost(loss.acknowledged_s)
            (self._listed if may_be else self._problems).append(loss.problem)
        found = [
            *call_problems(self._history, events, self._seen.origin_ms, self._index_of),
            *stock_problems(self._history, events, self._index_of),
        ]
        if self._keeps != "all":
            # What was lost may have been done again, with another end.
            found = [problem for problem in found if rule_of(problem) not in ("answer", "twice")]
            self._notes.append("answer, twice: not judged, because what was told may be lost")
        if self._keeps == "nothing":
            # What was done and lost may have been followed by something else.
            gone = [problem for problem in found if rule_of(problem) in ("lost", "money")]
            self._listed += gone
            found = [problem for problem in found if problem not in gone]
        self._problems += found

    def judge_times(self, lease_s: float) -> None:
        """Whether the order of the events fits the times of the calls."""
        events = self.events or []
        rebuilt = any(event.kind == "rebuilt" for event in events)
        if self._keeps != "all" or rebuilt or self._twin is None:
            why = (
                "what was told may be lost" if self._twin else "the events or the state are broken"
            )
            self._notes.append(
                f"order, missing, retry, sold_out, version: not judged, because {why}"
            )
            return
        times = Times(self._history, events)
        self._problems += time_problems(self._history, events, times)
        if times.contradiction is None:
            self._problems += sold_out_problems(
                self._history, self._seen, self._twin, times, lease_s
            )

    def lost_or(self, problems: Iterable[str]) -> None:
        """Problems of the other witnesses, of which a loss may be one that the mode allows."""
        for problem in problems:
            allowed = rule_of(problem) == "lost" and self._keeps != "all"
            if allowed and (self._keeps == "nothing" or self._crashes_s):
                self._listed.append(problem)
            else:
                self._problems.append(problem)

    def _may_be_lost(self, acknowledged_s: float) -> bool:
        if self._keeps == "up_to_fsync":
            return any(0 <= crash_s - acknowledged_s <= FSYNC_S for crash_s in self._crashes_s)
        return self._keeps == "nothing"

    def report(self) -> Report:
        """What it comes to."""
        listed, notes = tuple(self._listed), tuple(self._notes)
        if self._problems:
            return Report(Verdict.INVALID, tuple(self._problems), listed, notes)
        if not self._history.accepted:
            self._reasons.append("empty: nothing was acknowledged")
        if self._reasons:
            return Report(Verdict.UNKNOWN, tuple(self._reasons), listed, notes)
        return Report(Verdict.VALID, (), listed, notes)
