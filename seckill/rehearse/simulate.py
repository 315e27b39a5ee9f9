"""An evening with a queue, look by look: the queue calls as many as the engine would, each of them
comes and orders or does not, and unpaid units come back to the line.

A look stands for one call of admit.lua, which a mall's processes make every 200 ms. Only the called
are events of their own; those who wait are two numbers, so a million of them cost nothing.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from typing import Final, NamedTuple

from seckill.eta import WINDOW_MS, eta_ms, pace_per_s
from seckill.rehearse.evening import Evening, Fate, Moment, Told
from seckill.rehearse.model import Choices, Crowd, Habits, Rules
from seckill.rehearse.open_till import open_evening
from seckill.rehearse.pace import Pacer

__all__ = ["LOOK_MS", "simulate"]

LOOK_MS: Final = 200
"""As in seckill.queue."""
# A look at which nobody can be called changes nothing. These show what those who wait are told.
_IDLE_MS: Final = 5_000
_TOLD_MAX: Final = 50


class _Visit(NamedTuple):
    """A called buyer who comes to order."""

    at_ms: int
    buyer: int
    step: int
    until_ms: int
    pay_ms: int | None


def simulate(rules: Rules, crowd: Crowd, habits: Habits, pacer: Pacer) -> Evening:
    """The evening of a sale; ``pacer`` has nothing to do in one that is open."""
    if rules.mode == "open":
        return open_evening(rules, crowd, habits)
    return _Queue(rules, crowd, habits, pacer).run()


class _Queue:
    def __init__(self, rules: Rules, crowd: Crowd, habits: Habits, pacer: Pacer) -> None:
        self.rules = rules
        self.crowd = crowd
        self.pacer = pacer
        self.evening = Evening(rules, crowd)
        self.choices = Choices(rules, habits, crowd.seed)
        self.head = self.step = 0
        self.calls: deque[tuple[int, int]] = deque()
        self.visits: list[_Visit] = []
        # Who came too late and still has time: they ask until their token lapses.
        self.patient: deque[_Visit] = deque()
        self.uses: Counter[int] = Counter()
        self.told_to = 0
        # Since when buyers have waited without a break, as the looks have it.
        self.busy_ms: int | None = rules.begins_ms

    def run(self) -> Evening:
        rules, evening = self.rules, self.evening
        self.pacer.begin(rules)
        now_ms, looked_ms = rules.begins_ms, rules.begins_ms - _IDLE_MS
        while now_ms < rules.ends_ms:
            self._live_through(now_ms)
            tail = self._tail(now_ms)
            busy = evening.available > 0 and tail > self.head
            if busy or self.uses or now_ms - looked_ms >= _IDLE_MS or evening.gone_ms is not None:
                if self.uses and now_ms - looked_ms > LOOK_MS:
                    # The engine has looked all the while, so it knows how old the tokens are.
                    self.pacer.look(now_ms - LOOK_MS, 0, 0, 0, {})
                self._look(now_ms, tail)
                looked_ms = now_ms
            if evening.gone_ms is not None or self._is_over(now_ms, tail):
                break
            now_ms = self._next_look(now_ms, looked_ms, busy)
        self._live_through(rules.ends_ms - 1)
        evening.settle_all()
        return evening

    def _live_through(self, now_ms: int) -> None:
        """All that happens until ``now_ms``, in order."""
        evening = self.evening
        while True:
            due_ms = evening.next_ms
            visit_ms = self.visits[0].at_ms if self.visits else None
            if due_ms is not None and due_ms <= now_ms and (visit_ms is None or due_ms <= visit_ms):
                at_ms, came_back = evening.settle()
                if came_back:
                    self._serve_patient(at_ms)
            elif visit_ms is not None and visit_ms <= now_ms:
                visit = heapq.heappop(self.visits)
                if evening.available > 0:
                    self._sell(visit, visit.at_ms)
                else:
                    evening.fates[visit.buyer] = Fate.EMPTY
                    self.patient.append(visit)
            else:
                return

    def _serve_patient(self, at_ms: int) -> None:
        while self.patient:
            visit = self.patient.popleft()
            if visit.until_ms > at_ms:
                self._sell(visit, at_ms)
                return

    def _sell(self, visit: _Visit, at_ms: int) -> None:
        self.evening.sell(visit.buyer, at_ms, visit.pay_ms)
        self.uses[visit.step] += 1

    def _tail(self, now_ms: int) -> int:
        """One past the last position; before the draw there is none."""
        if self.rules.mode == "draw":
            return self.crowd.joined
        return min(bisect_right(self.crowd.arrivals, now_ms), self.crowd.joined)

    def _look(self, now_ms: int, tail: int) -> None:
        evening = self.evening
        waiting = tail - self.head
        found = self.pacer.look(now_ms, evening.available, evening.held, waiting, self.uses)
        self.uses.clear()
        if found.count:
            self._call(now_ms, found.count)
        evening.moments.append(
            Moment(
                now_ms, tail, self.head, evening.available, evening.held, found.live, found.reach
            )
        )
        if tail == self.head:
            self.busy_ms = None
        elif self.busy_ms is None:
            self.busy_ms = now_ms
        if self.rules.mode != "draw":
            self._tell(now_ms, tail, self.head + found.reach, found.room)

    def _call(self, now_ms: int, count: int) -> None:
        self.step += 1
        until_ms = now_ms + self.rules.token_life_ms
        for position in range(self.head, self.head + count):
            buyer = self.crowd.buyer(position)
            self.evening.call(buyer, now_ms)
            order_ms, pay_ms = self.choices.next()
            if order_ms is not None and now_ms + order_ms < self.rules.ends_ms:
                visit = _Visit(now_ms + order_ms, buyer, self.step, until_ms, pay_ms)
                heapq.heappush(self.visits, visit)
        self.head += count
        self.calls.append((now_ms, count))

    def _tell(self, now_ms: int, tail: int, reach: int, room: int) -> None:
        """Notes what the queue says to some of those who have come since the last look, unless it
        is that a unit is unlikely."""
        kept_ms = max(WINDOW_MS, self.rules.token_life_ms)
        while self.calls and self.calls[0][0] + kept_ms <= now_ms:
            self.calls.popleft()
        began_ms = now_ms if self.busy_ms is None else self.busy_ms
        pace = pace_per_s(self.calls, began_ms, now_ms, self.rules.rate_per_s)
        first = max(self.told_to, self.head)
        for position in range(first, min(tail, reach), max(1, (tail - first) // _TOLD_MAX)):
            ahead = position - self.head
            eta = eta_ms(ahead, pace, 0, now_ms) if ahead < room else None
            self.evening.told.append(Told(position, now_ms, eta))
        self.told_to = tail

    def _is_over(self, now_ms: int, tail: int) -> bool:
        """Whether nobody waits, nobody comes any more and nothing is under way."""
        nobody = tail == self.head and tail == self.crowd.joined
        return nobody and not self.visits and self.evening.next_ms is None and not self.uses

    def _next_look(self, now_ms: int, looked_ms: int, busy: bool) -> int:
        """When the next look can change anything; looks are LOOK_MS apart."""
        if busy and self.evening.available > 0 and self._tail(now_ms) > self.head:
            return now_ms + LOOK_MS
        soon_ms = looked_ms + _IDLE_MS
        if self.evening.next_ms is not None:
            soon_ms = min(soon_ms, self.evening.next_ms)
        if self.visits:
            soon_ms = min(soon_ms, self.visits[0].at_ms)
        if self.evening.available > 0:
            place = bisect_left(self.crowd.arrivals, now_ms + 1, hi=self.crowd.joined)
            if self.rules.mode != "draw" and place < self.crowd.joined:
                soon_ms = min(soon_ms, self.crowd.arrivals[place])
        return now_ms + max(1, -(-(soon_ms - now_ms) // LOOK_MS)) * LOOK_MS
