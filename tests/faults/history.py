"""What the callers were told: the logs of any number of load processes, read as they grow.

A log has a JSON line before each call and one after its answer, and belongs to one process:

    {"n": 7, "t": 81.25, "at_ms": 1765000000123, "op": "reserve", "order": "00…", "until": 81.4, …}
    {"n": 7, "t": 81.26, "at_ms": 1765000000131, "answer": "CREATED", "told": {…}}

``t`` is the machine's monotonic clock in seconds, the same for all its processes, and the only one
that anything is judged by; ``at_ms`` is for people. ``until`` is when the call can have no effect
any more even if its caller is dead, ``timeout_ms`` how long its engine lets a caller wait.
``told`` is the order as the answer described it. What a verb asked for stands beside its name:
buyer and items of reserve, payment of confirm, refund of refund, sku, units and key of add_stock.

A process that was killed leaves a log that ends anywhere: it is read as far as it has whole lines,
and a call without an answer may have happened or not.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["ACCEPTED", "NOT_SENT", "OPEN", "UNKNOWN", "Call", "History"]

# Answers of the load that are no statuses: an exception says what happened.
UNKNOWN: Final = "OutcomeUnknown"
OPEN: Final = ""
"""The answer of a call that has none."""
NOT_SENT: Final = frozenset({"EngineClosed", "Overloaded", "RedisUnavailable", "ServerFull"})
ACCEPTED: Final = frozenset({"CREATED", "EXISTS"})
UNDECIDED: Final = frozenset({OPEN, UNKNOWN, "ScriptFailed"})
MUTE: Final = frozenset({"FENCED", "STALE_DEFINITION", "UPGRADE_NEEDED"})
"""Refusals that don't even say whether there is such an order."""
DENIED: Final = frozenset({"NONE", "UNKNOWN_ORDER", "UNKNOWN_SALE"})
"""Answers which say that at some moment of the call there was no such order; so does whatever else
reserve is refused with."""


class Call(msgspec.Struct, kw_only=True):
    """One call. ``asked`` is its first line, ``told`` what its answer said of the order."""

    process: str
    number: int
    verb: str
    order: str
    began_s: float
    asked: dict[str, Any]
    ended_s: float = math.inf
    answer: str = OPEN
    told: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.verb} (call {self.number} of {self.process}: {self.answer or 'open'})"

    @property
    def accepted(self) -> bool:
        """Whether it is a reserve that was accepted."""
        return self.verb == "reserve" and self.answer in ACCEPTED

    @property
    def denied(self) -> bool:
        """Whether its answer says that at some moment there was no such order."""
        if self.verb != "reserve":
            return self.answer in DENIED
        return not (self.accepted or self.undecided or self.harmless or self.answer in MUTE)

    @property
    def futile(self) -> bool:
        """Whether it certainly changed nothing."""
        return self.harmless or self.denied or self.answer in MUTE

    @property
    def undecided(self) -> bool:
        """Whether it may have happened or not."""
        return self.answer in UNDECIDED

    @property
    def harmless(self) -> bool:
        """Whether it is certain that it was never executed."""
        return self.answer in NOT_SENT

    @property
    def effective_s(self) -> float:
        """Until when it can have had its effect. Whoever was told that a reserve's outcome is
        unknown was told so after its not_after."""
        if self.answer == OPEN:
            return float(self.asked.get("until", math.inf))
        return self.ended_s if self.verb == "reserve" or not self.undecided else math.inf


class History:
    """All calls. ``orders`` has those of each order as they began, ``stock`` those of add_stock.
    ``damage`` says what of a log can't be read; then nothing is proved."""

    def __init__(self) -> None:
        self.orders: dict[str, list[Call]] = {}
        self.stock: list[Call] = []
        self.damage: list[str] = []
        self.accepted = 0
        self.unknown = 0
        self._open: dict[tuple[str, int], Call] = {}
        self._offsets: dict[Path, int] = {}
        self._names: dict[Path, str] = {}

    @property
    def calls(self) -> int:
        """How many calls began."""
        return len(self.stock) + sum(map(len, self.orders.values()))

    def read(self, log: Path) -> None:
        """Takes in what was appended to a log since the last time, whole lines only."""
        offset = self._offsets.get(log, 0)
        with log.open("rb") as file:
            file.seek(offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offsets[log] = offset + len(data)
        # Two logs may have the same name in two folders.
        name = self._names.setdefault(log, f"{log.stem}#{len(self._names) + 1}")
        for line in data.splitlines():
            try:
                self.take(name, json.loads(line))
            except (LookupError, TypeError, ValueError) as error:
                self.damage.append(f"{log.name} has a line that can't be read: {error!r}")

    def take(self, process: str, line: dict[str, Any]) -> None:
        """One line. Raises LookupError, TypeError or ValueError for one that no load has
        written."""
        number = int(line["n"])
        if "op" in line:
            if (process, number) in self._open:
                raise ValueError(f"call {number} begins twice")
            self._begin(process, number, line)
        else:
            self._end(self._open.pop((process, number)), line)

    def _begin(self, process: str, number: int, line: dict[str, Any]) -> None:
        call = Call(
            process=process,
            number=number,
            verb=line["op"],
            order=line["order"],
            began_s=float(line["t"]),
            asked=line,
        )
        self._open[process, number] = call
        if call.verb == "add_stock":
            self.stock.append(call)
        else:
            self.orders.setdefault(call.order, []).append(call)

    def _end(self, call: Call, line: dict[str, Any]) -> None:
        call.ended_s, call.answer, call.told = float(line["t"]), line["answer"], line.get("told")
        if call.ended_s < call.began_s:
            raise ValueError(f"call {call.number} ends before it began")
        self.unknown += call.answer == UNKNOWN
        self.accepted += call.accepted
