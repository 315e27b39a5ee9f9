"""The rehearsal's twin: the same crowd, and the real scripts in place of the simulation."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from typing import NamedTuple

import redis

from seckill.rehearse import Crowd, Habits, Rules
from seckill.rehearse.model import Choices
from seckill.rehearse.simulate import LOOK_MS
from seckill.status import Status
from tests.lua.core import Wish
from tests.lua.queue_core import Look, QueueCore

__all__ = ["RealEvening"]


class Visit(NamedTuple):
    """What happens at a time: an order, a payment, or an overdue hold."""

    at_ms: int
    kind: str
    buyer: int
    step: int = 0
    until_ms: int = 0
    pay_ms: int | None = None


class RealEvening:
    """A queue in order of coming, on a server whose sale's clock is moved from event to event.

    Times are as the rehearsal's, milliseconds since the opening. With a ``seed`` of its own the
    called make other choices.
    """

    def __init__(
        self, client: redis.Redis, rules: Rules, crowd: Crowd, habits: Habits, seed: int = 0
    ) -> None:
        self.rules, self.crowd = rules, crowd
        self.choices = Choices(rules, habits, seed or crowd.seed)
        self.core = QueueCore(client).begin_queue(
            rules.mode,
            rules.units,
            rate=rules.rate_per_s,
            overbook=rules.overbook_max,
            life_ms=rules.token_life_ms,
            hold_ms=rules.hold_ms,
            clock_jump_ms=86_400_000,
        )
        self.opens_ms = self.core.now_ms
        self.events: list[Visit] = []
        self.patient: deque[Visit] = deque()
        self.called_at: dict[int, int] = {}
        self.looks: dict[int, Look] = {}
        self.joined = self.step = 0

    def run(self, until_ms: int, look_ms: int = LOOK_MS) -> RealEvening:
        """The evening up to a time: ``called_at`` by buyer, and every look by its time."""
        for now_ms in range(0, until_ms, look_ms):
            while self.events and self.events[0].at_ms <= now_ms:
                self.happen(heapq.heappop(self.events))
            self.go_to(now_ms)
            self.join(min(bisect_right(self.crowd.arrivals, now_ms), self.crowd.joined))
            self.admit(now_ms)
        return self

    def go_to(self, at_ms: int) -> None:
        self.core.travel(self.opens_ms + at_ms - self.core.now_ms)

    def happen(self, event: Visit) -> None:
        self.go_to(event.at_ms)
        if event.kind == "pay":
            paid = self.core.confirm(f"o{event.buyer}", f"p{event.buyer}")
            assert paid.status is Status.DONE
        elif event.kind == "overdue":
            self.core.expire(1_000)
            while self.patient and (visit := self.patient.popleft()):
                if visit.until_ms > event.at_ms:
                    assert self.order(visit, event.at_ms) is Status.CREATED
                    break
        elif self.order(event, event.at_ms) is Status.SOLD_OUT:
            self.patient.append(event)

    def order(self, visit: Visit, at_ms: int) -> Status | str:
        turn = (visit.step, self.opens_ms + visit.until_ms, visit.buyer)
        (answer,) = self.core.reserve(Wish(f"o{visit.buyer}", f"b{visit.buyer}", turn=turn))
        if answer is Status.CREATED:
            kind = "overdue" if visit.pay_ms is None else "pay"
            due_ms = at_ms + (self.rules.hold_ms if visit.pay_ms is None else visit.pay_ms)
            heapq.heappush(self.events, Visit(due_ms, kind, visit.buyer))
        else:
            assert answer is Status.SOLD_OUT
        return answer

    def join(self, count: int) -> None:
        while self.joined < count:
            part = range(self.joined, min(self.joined + 1_000, count))
            answers = self.core.join_raw([f"b{buyer}" for buyer in part])[2]
            assert answers == [2 * buyer for buyer in part]
            self.joined = part.stop

    def admit(self, now_ms: int) -> None:
        look = self.looks[now_ms] = self.core.admit(self.step)
        for step in look.steps:
            assert step.at_ms == self.opens_ms + now_ms
            self.step = step.number
            for buyer in range(step.start, step.stop):
                self.called_at[buyer] = now_ms
                order_ms, pay_ms = self.choices.next()
                if order_ms is not None:
                    until_ms = now_ms + self.rules.token_life_ms
                    visit = Visit(now_ms + order_ms, "buy", buyer, self.step, until_ms, pay_ms)
                    heapq.heappush(self.events, visit)
