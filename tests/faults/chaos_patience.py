"""Whether those who wait longer than any failover takes were served, and if not, what was going on.

A caller is promised to see nothing of a failover that is over before its time is. Faults come one
right after the other here, so they may leave nobody served for longer than that although each is
short. An error for a patient caller is therefore explained by the faults of its time if there was
no calm among them in which it had to be answered; else it is a defect of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

import msgspec

from tests.faults.chaos_schedule import FAULTS, Fault
from tests.faults.chaos_servers import Servers
from tests.faults.history import UNKNOWN, Call
from tests.faults.load import PATIENT_MS

__all__ = ["CALM_S", "Outage", "Outages", "Patience", "look_at_patience"]

CALM_S: Final = 5.0
"""Who has so long without a fault must be answered. An engine looks once a second who the master
is, which takes up to two, a roll call waits 2 s for the dead, and the machine is slow."""
EARLY: Final = 0.9
"""Whoever is told before this part of its time has not been let wait for it."""
# A full server is an answer, and a call that was left open was its process's last.
ERRORS: Final = frozenset(
    {UNKNOWN, "EngineClosed", "Overloaded", "RedisUnavailable", "ScriptFailed"}
)


class Outage(msgspec.Struct, frozen=True):
    """A fault that callers may get no answer in, from when to when (monotonic seconds)."""

    name: str
    began_s: float
    ended_s: float


class Outages:
    """Does the faults to the servers, and keeps when each was going on."""

    def __init__(self, servers: Servers, topology: str) -> None:
        self._servers = servers
        self._kinds = FAULTS[topology]
        self._since_s: dict[Fault, float] = {}
        self._over: list[Outage] = []

    def begin(self, fault: Fault) -> None:
        """The fault happens."""
        self._since_s[fault] = time.monotonic()
        self._servers.begin(fault)

    def end(self, fault: Fault) -> None:
        """It is over, which may take its time."""
        self._servers.end(fault)
        began_s = self._since_s.pop(fault)
        if self._kinds[fault.name].stops:
            self._over.append(Outage(fault.name, began_s, time.monotonic()))

    @property
    def told(self) -> list[Outage]:
        """All of them; a run that went wrong leaves some that never ended."""
        going_on = [
            Outage(fault.name, began_s, inf)
            for fault, began_s in self._since_s.items()
            if self._kinds[fault.name].stops
        ]
        return [*self._over, *going_on]


class Patience(msgspec.Struct, frozen=True):
    """What patient callers met with: how many errors, the faults that were going on meanwhile, and
    the longest time without any while one of them waited. ``problems`` are those errors that the
    faults do not explain."""

    errors: int = 0
    faults: tuple[str, ...] = ()
    calm_s: float = 0.0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = f"{self.errors} error{'' if self.errors == 1 else 's'} for patient callers"
        if not self.errors:
            return line
        return f"{line} ({' '.join(self.faults) or 'no fault'}; {self.calm_s:.2f} s of calm)"


def look_at_patience(
    calls: Iterable[Call], outages: Sequence[Outage], *, has_lost: bool = False
) -> Patience:
    """What became of the calls of patient callers. ``has_lost``: the sale was fenced, so who waits
    is told at once that nobody knows."""
    failed = [call for call in calls if _is_patient(call) and call.answer in ERRORS]
    outages = sorted(outages, key=lambda outage: outage.began_s)
    calm_s = 0.0
    names: dict[str, None] = {}
    problems: list[str] = []
    for call in failed:
        met = [each for each in outages if _meet(call, each)]
        names |= dict.fromkeys(each.name for each in met)
        calm = _calm_s(call, met)
        calm_s = max(calm_s, calm)
        took_s = call.ended_s - call.began_s
        said = f"unserved: {call} was let wait for {took_s:.2f} s"
        if has_lost:
            continue
        if took_s < EARLY * _timeout_s(call):
            problems.append(f"{said}, and has {_timeout_s(call):.0f}")
        elif calm > CALM_S:
            problems.append(f"{said}, and nothing was wrong for {calm:.2f} s of them")
    return Patience(len(failed), tuple(names), calm_s, tuple(problems))


def _timeout_s(call: Call) -> float:
    return float(call.asked.get("timeout_ms", 0)) / 1000


def _is_patient(call: Call) -> bool:
    return _timeout_s(call) * 1000 >= PATIENT_MS


def _meet(call: Call, outage: Outage) -> bool:
    return outage.began_s < call.ended_s and call.began_s < outage.ended_s


def _calm_s(call: Call, met: Sequence[Outage]) -> float:
    """The longest part of a call's time in which none of these was going on; by their begin."""
    longest_s, since_s = 0.0, call.began_s
    for outage in met:
        longest_s = max(longest_s, outage.began_s - since_s)
        since_s = max(since_s, outage.ended_s)
    return max(longest_s, call.ended_s - since_s)
