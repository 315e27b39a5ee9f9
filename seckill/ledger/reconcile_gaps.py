"""Gaps: which events the ledger lacks, and how many records can be explained by them.

An event leads one order to one version, so each event that is lost explains one version of one
order and no more. Of an event that the stream or a dead letter still has, the order is known, and
it explains nothing of any other. All that is further than its events is counted together: a gap
of one event would else let any number of forged records in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Claim", "Gaps"]


class Claim(NamedTuple):
    """How many lost events an order needs, all of them after event ``seq``: ``of_row`` to explain
    its row, ``beyond`` that to explain Redis' record."""

    seq: int
    of_row: int
    beyond: int


class Gaps:
    """Events that are not in the ledger, and those that only it has."""

    def __init__(self) -> None:
        self._lost: list[tuple[int, int]] = []
        self._absent: list[tuple[int, int]] = []
        self._of_subject: dict[str, list[int]] = {}
        self._only_here: list[tuple[int, int]] = []
        self._claims: dict[str, Claim] = {}
        # Where runs of lost events begin, and how many are lost from there on.
        self._starts: list[int] = []
        self._rest: list[int] = []

    def lose(self, first: int, last: int) -> None:
        """Notes events of which nobody knows what they were."""
        _append(self._lost, first, last)
        self._starts = []
        _append(self._absent, first, last)

    def lose_known(self, seq: int, subjects: Iterable[str]) -> None:
        """Notes an event that the ledger lacks or disputes, and whose it is."""
        _append(self._absent, seq, seq)
        for subject in subjects:
            self._of_subject.setdefault(subject, []).append(seq)

    def only_here(self, first: int, last: int) -> None:
        """Notes events of the ledger that the stream does not have (any more)."""
        _append(self._only_here, first, last)

    def is_only_here(self, seq: int) -> bool:
        """Whether the stream does not have this event (any more)."""
        return _has(self._only_here, seq)

    def is_lost(self, seq: int) -> bool:
        """Whether the ledger does not have this event, or another one."""
        return _has(self._absent, seq)

    def room(self, seq: int) -> int:
        """How many events after this one are lost that may have been any order's. The sale's first
        is not: it is always its own."""
        if not self._starts and self._lost:
            self._count()
        # The run that this event is in or after, and those that follow it.
        at = bisect_right(self._starts, seq)
        here = self._rest[at - 1] - self._rest[at] if at else 0
        of_it = max(0, here - (seq - self._starts[at - 1] + 1)) if at else 0
        return of_it + (self._rest[at] if self._rest else 0)

    def _count(self) -> None:
        runs: list[tuple[int, int]] = []
        for first, last in sorted(self._lost):
            start = max(first, 2, runs[-1][1] + 1 if runs else 0)
            if start <= last:
                runs.append((start, last))
        self._starts = [first for first, _ in runs]
        self._rest = [0]
        for first, last in reversed(runs):
            self._rest.append(self._rest[-1] + last - first + 1)
        self._rest.reverse()

    def known(self, order: str, seq: int) -> int:
        """How many events of this order after that one the ledger lacks or disputes."""
        return sum(each > seq for each in self._of_subject.get(order, ()))

    # -- claims -------------------------------------------------------------------------------

    def claim(self, order: str, claim: Claim) -> None:
        """Notes what an order needs; its own events that are known come first."""
        known = self.known(order, claim.seq)
        of_row = max(0, claim.of_row - known)
        beyond = max(0, claim.beyond - max(0, known - claim.of_row))
        self._claims.pop(order, None)
        if of_row or beyond:
            self._claims[order] = Claim(claim.seq, of_row, beyond)

    @property
    def claimed(self) -> int:
        """How many lost events all orders together need."""
        return sum(claim.of_row + claim.beyond for claim in self._claims.values())

    def needs(self, order: str) -> bool:
        """Whether it needs lost events to explain Redis' record."""
        return order in self._claims and self._claims[order].beyond > 0

    def fit(self) -> bool:
        """Whether all claims fit at once. Each may use what is lost after its own last event."""
        used = 0
        for claim in sorted(self._claims.values(), reverse=True):
            used += claim.of_row + claim.beyond
            if used > self.room(claim.seq):
                return False
        return True


def _append(ranges: list[tuple[int, int]], first: int, last: int) -> None:
    if ranges and ranges[-1][1] + 1 == first:
        first = ranges.pop()[0]
    ranges.append((first, last))


def _has(ranges: list[tuple[int, int]], seq: int) -> bool:
    return any(first <= seq <= last for first, last in ranges)
