"""An evening without a queue: whoever comes while a unit is there has it.

Whoever finds nothing goes away. Real buyers press again and again, so a unit that comes back goes
to whoever presses next; here that is the next to come.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from seckill.rehearse.evening import Evening, Fate, Moment
from seckill.rehearse.model import Choices, Crowd, Habits, Rules

__all__ = ["open_evening"]

_NOTES: Final = 200


def open_evening(rules: Rules, crowd: Crowd, habits: Habits) -> Evening:
    """The evening of a sale that is open to everybody at once."""
    evening = Evening(rules, crowd)
    choices = Choices(rules, habits, crowd.seed)
    arrivals, buyer = crowd.arrivals, bisect_left(crowd.arrivals, 0)
    # Nobody can order before the opening. Who was there knows that, and presses when it opens.
    early = range(buyer)
    for waiting in early:
        _press(evening, choices, waiting, 0)
    while buyer < crowd.joined:
        at_ms = arrivals[buyer]
        due_ms = evening.next_ms
        if due_ms is not None and due_ms <= at_ms:
            evening.settle()
            _note(evening, due_ms)
        elif evening.available > 0:
            _press(evening, choices, buyer, at_ms)
            buyer += 1
        else:
            # Until a unit comes back, all find nothing.
            last = crowd.joined if due_ms is None else bisect_left(arrivals, due_ms)
            last = min(last, crowd.joined)
            for poor in range(buyer, last):
                _press(evening, choices, poor, arrivals[poor])
            # For the picture, which shows how they came.
            for poor in range(buyer, last, max(1, (last - buyer) // _NOTES)):
                _note(evening, arrivals[poor])
            buyer = last
    while evening.next_ms is not None and evening.next_ms < rules.ends_ms:
        _note(evening, evening.settle()[0])
    evening.settle_all()
    return evening


def _press(evening: Evening, choices: Choices, buyer: int, at_ms: int) -> None:
    evening.call(buyer, at_ms)
    if evening.available > 0:
        evening.sell(buyer, at_ms, choices.next()[1])
        _note(evening, at_ms)
    else:
        evening.fates[buyer] = Fate.EMPTY


def _note(evening: Evening, at_ms: int) -> None:
    came = bisect_right(evening.crowd.arrivals, at_ms)
    evening.moments.append(
        Moment(at_ms, came, came, evening.available, evening.held, 0, evening.available)
    )
