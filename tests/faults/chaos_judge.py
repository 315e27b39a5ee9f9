"""What a chaos run comes to: the checker's verdict, and what else must hold when a sale was fenced.

valid     nothing that was promised is broken
invalid   something is: a defect of the engine, or of what judges it
unknown   nothing was proved, and why. Only an empty history or a state that cannot be read is
          explained by the faults; a process that died or a run that never came to rest is not
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from tests.faults.chaos_crew import Crew
from tests.faults.chaos_patience import Outage, Patience, look_at_patience
from tests.faults.chaos_schedule import Fault
from tests.faults.chaos_servers import SALE, Servers, header_of
from tests.faults.checker import Report, Verdict, check, observe
from tests.faults.checker_report import rule_of
from tests.faults.checker_witness import SeenLedger, read_ledger, read_sightings
from tests.faults.history import UNKNOWN, Call, History

__all__ = ["Result", "judge"]

EXPLAINED: Final = frozenset({"empty", "unread"})


class Result(msgspec.Struct, frozen=True):
    """One run. ``unknown`` calls had no answer in their time, and ``patience`` says what became of
    callers that wait for 10 s; ``silence_s`` is the longest time in which nobody was answered,
    ``longest_s`` how long one call took that was. ``fenced`` is the reason why the sale sells no
    more. ``folder`` has the logs of a run that was not valid."""

    topology: str
    seed: int
    faults: tuple[Fault, ...]
    report: Report
    calls: int
    accepted: int
    unknown: int
    patience: Patience
    silence_s: float
    longest_s: float
    fenced: str = ""
    folder: str = ""

    @property
    def verdict(self) -> Verdict:
        """What it comes to."""
        return self.report.verdict

    @property
    def explained(self) -> bool:
        """Whether it is valid or invalid, or unknown for a reason that lies in the faults."""
        if self.verdict is not Verdict.UNKNOWN:
            return True
        return {rule_of(reason) for reason in self.report.problems} <= EXPLAINED

    def __str__(self) -> str:
        names = sorted({fault.name for fault in self.faults})
        line = (
            f"{self.topology} seed {self.seed}: {self.verdict}  {' '.join(names)}; "
            f"{self.calls} calls, {self.accepted} accepted, {self.unknown} unknown,"
            f" {self.patience}, silence {self.silence_s:.2f} s,"
            f" longest call {self.longest_s:.2f} s"
        )
        if self.fenced:
            line += f"; fenced: {self.fenced}"
        return f"{line}; logs in {self.folder}" if self.folder else line


def judge(
    crew: Crew,
    servers: Servers,
    seed: int,
    topology: str,
    faults: Sequence[Fault],
    trouble: Sequence[str],
    outages: Sequence[Outage],
) -> Result:
    """Reads every witness, in the order that the checker asks for. ``trouble`` is what the run
    itself went wrong with; it makes a valid run unknown, and so does a patient caller's error that
    none of the ``outages`` explains."""
    history = crew.read()
    calls = list(_calls(history))
    fenced = ""
    try:
        state, reason = header_of(servers, "state", "reason")
        fenced = reason if state == "fenced" else ""
        report = _check(crew, servers, history, fenced=fenced)
    except Exception as error:  # noqa: BLE001 - a judge that fails has proved nothing
        report = Report(Verdict.UNKNOWN, (f"crashed: the run could not be judged: {error!r}",))
    has_lost = bool(fenced) or servers.restored_s is not None
    patience = look_at_patience(calls, outages, has_lost=has_lost)
    trouble = (*trouble, *patience.problems)
    if trouble and report.verdict is not Verdict.INVALID:
        told = report.problems if report.verdict is Verdict.UNKNOWN else ()
        report = msgspec.structs.replace(
            report, verdict=Verdict.UNKNOWN, problems=(*trouble, *told)
        )
    return Result(
        topology,
        seed,
        tuple(faults),
        report,
        calls=history.calls,
        accepted=history.accepted,
        unknown=sum(call.answer == UNKNOWN for call in calls),
        patience=patience,
        silence_s=_silence_s(calls),
        longest_s=max((call.ended_s - call.began_s for call in calls if _told(call)), default=0.0),
        fenced=fenced,
    )


def _check(crew: Crew, servers: Servers, history: History, *, fenced: str) -> Report:
    seen = observe(servers.inside_url, SALE)
    ledger = _ledger(crew)
    sightings = read_sightings(worker.log for worker in crew.consumers)
    restored_s = servers.restored_s
    if servers.rebuilt and not fenced:
        # What the ledger had not got either is gone; a consumer may have seen some of it.
        return check(history, seen, keeps="nothing", ledger=ledger)
    if not fenced or restored_s is None:
        report = check(history, seen, ledger=ledger, sightings=sightings)
        if fenced and report.verdict is not Verdict.INVALID:
            why = f"fenced: nothing was lost, and the sale sells no more: {fenced}"
            return msgspec.structs.replace(report, verdict=Verdict.UNKNOWN, problems=(why,))
        return report
    # What the old state does not have is lost, and told; then nothing may be sold on top of it.
    report = check(history, seen, keeps="nothing", ledger=ledger, sightings=sightings)
    sold = tuple(
        f"fenced: order {call.order} was {call.answer} by {call} when an old state was back"
        for call in _calls(history)
        if call.verb == "reserve" and call.answer == "CREATED" and call.began_s > restored_s
    )
    if sold:
        problems = (*sold, *(report.problems if report.verdict is Verdict.INVALID else ()))
        return msgspec.structs.replace(report, verdict=Verdict.INVALID, problems=problems)
    return report


def _ledger(crew: Crew) -> SeenLedger | None:
    if not Path(crew.ledger_url.removeprefix("sqlite:///")).exists():
        return None
    return asyncio.run(read_ledger(crew.ledger_url, SALE))


def _calls(history: History) -> Iterator[Call]:
    yield from history.stock
    for calls in history.orders.values():
        yield from calls


def _told(call: Call) -> bool:
    """Whether it was answered by the sale, be it with a refusal."""
    return not (call.undecided or call.harmless)


def _silence_s(calls: list[Call]) -> float:
    times = sorted(call.ended_s for call in calls if _told(call))
    return max((b - a for a, b in pairwise(times)), default=0.0)
