"""What the checker says: a verdict, and each broken promise as one sentence.

PROMISES   every rule by its name, and what it holds the engine to
broken     a problem: the rule, what was seen, and what had been promised
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["PROMISES", "Report", "Verdict", "broken", "rule_of"]

PROMISES: Final = {
    "answer": "an answer tells the order as one of its events left it",
    "confirmed": "a confirmed order stays confirmed, but for its refund",
    "conservation": "available + held + confirmed + moving == total, at every event and in the end",
    "consumer": "what a group has acknowledged was seen by a consumer, as it stands in the stream",
    "deadline": "an order has the time that it was promised, and lapses no sooner",
    "event": "no order is without its events",
    "ledger": "the ledger agrees with the stream as far as it has come",
    "limit": "no buyer has more than the limits allow, at any moment",
    "lost": "what was acknowledged survives",
    "missing": "an order that is there is found",
    "money": "a payment buys its order or leaves one refund_due event, and never both",
    "order": "what was answered before a call began stands before it in the stream",
    "oversold": "no unit is sold that is not there",
    "phantom": "nothing happens to an order but what a call could have done",
    "purse": "what counts against a buyer's limits is what the events say",
    "retry": "a blind retry finds the order that was accepted under its key",
    "seq": "the numbers of the events are dense, without gap or double",
    "sold_out": "sold out is said only while nothing is available, but for the lease",
    "state": "an order goes the ways of its life only, and its record says where it is",
    "twice": "a key has at most one accepted outcome, and always the same order",
    "version": "an order's versions only rise",
    "zombie": "an order that was finally not found never appears later",
}
"""What a problem of each rule breaks."""


class Verdict(StrEnum):
    """Unknown is no pass: nothing was proved."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


class Report(msgspec.Struct, frozen=True):
    """A verdict and what led to it. ``problems`` are "rule: sentence", and where nothing is broken
    the reasons why nothing is proved. ``listed`` are losses that the mode does not rule out, and
    ``notes`` what was not judged."""

    verdict: Verdict
    problems: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def found(self, rule: str) -> int:
        """How many problems of one rule."""
        return sum(rule_of(problem) == rule for problem in self.problems)

    @property
    def rules(self) -> set[str]:
        """The rules that are broken."""
        return {rule_of(problem) for problem in self.problems}


def broken(rule: str, seen: str) -> str:
    """A problem. ``seen`` names the order and the call or event."""
    return f"{rule}: {seen}, and the promise is: {PROMISES[rule]}"


def rule_of(problem: str) -> str:
    """The rule that a problem breaks."""
    return problem.partition(":")[0]
