"""The naive twin of a sale's queue: lists and dicts, written from the promises, not from the Lua.

How many are called it takes from the script, and holds against what must be true of any number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from seckill.status import Status

AGES = 10
TOLERANCE = 0.01
"""The script keeps its credit to a thousandth."""


@dataclass
class TwinStep:
    number: int
    start: int
    stop: int
    at_ms: int
    unused: int


@dataclass
class TwinHold:
    buyer: str
    units: int
    deadline_ms: int
    state: str = "held"


@dataclass(frozen=True)
class Rules:
    """What a merchant has chosen. ``draw_ms`` counts like ``QueueTwin.now_ms``."""

    mode: Literal["queue", "shuffle", "draw"]
    stock: int
    rate: int
    overbook: int
    life_ms: int
    hold_ms: int
    draw_ms: int = 0

    @property
    def pause_ms(self) -> float:
        """Between two steps."""
        return max(200, self.life_ms / 256)


@dataclass
class QueueTwin:
    """``turn_ms`` is the queue's clock: it goes on while the sale sells, as of the last look
    (``sells``). ``line`` is who stands at each position, None for a place that was given up;
    ``late`` are numbers that came after the list was closed and before it was ranked."""

    rules: Rules
    now_ms: int = 0
    turn_ms: int = 0
    sells: bool = True
    paused: bool = False
    next: int = 0
    closed: int | None = None
    ranked: int | None = None
    head: int = 0
    lapsed: int = 0
    lapses: int = 0
    called: int = 0
    uses: int = 0
    tickets: dict[str, int] = field(default_factory=dict)
    line: list[str | None] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    late: list[tuple[str, int]] = field(default_factory=list)
    steps: list[TwinStep] = field(default_factory=list)
    holds: dict[str, TwinHold] = field(default_factory=dict)
    came: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.available, self.held, self.credit, self.last_ms = self.rules.stock, 0, 0.0, 0
        self.stepped_ms = -self.rules.pause_ms
        self.pass_time(0)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        self.turn_ms += ms if self.sells else 0
        if self.rules.mode != "queue" and self.closed is None and self.now_ms >= self.rules.draw_ms:
            self.closed = self.next

    # -- tickets ------------------------------------------------------------------------------

    def join(self, buyer: str) -> tuple[int, bool] | Status:
        number = self.tickets.get(buyer)
        if number is not None and not self._is_over(number):
            return number, True
        if self.rules.mode == "draw" and self.closed is not None:
            return Status.JOINS_CLOSED
        number = self.tickets[buyer] = self.next
        self.next += 1
        if self.rules.mode == "queue" or self.ranked is not None:
            self._stand(buyer, number)
        elif self.closed is not None:
            self.late.append((buyer, number))
        return number, False

    def _is_over(self, number: int) -> bool:
        at = self.place.get(number)
        return self.rules.mode != "draw" and at is not None and at < self.lapsed

    def _stand(self, buyer: str, number: int) -> None:
        self.place[number] = len(self.line)
        self.line.append(buyer)

    def leave(self, buyer: str) -> Status:
        if buyer not in self.tickets:
            return Status.UNKNOWN_TICKET
        if self.closed is not None and self.ranked is None:
            return Status.DRAWING
        at = self.place.get(self.tickets.pop(buyer))
        if at is not None and at >= self.head:
            self.line[at] = None
        elif at is not None and buyer not in self.came:
            for step in self.steps:
                if step.start <= at < step.stop:
                    step.unused -= 1
        return Status.DONE

    def rank(self, order: Sequence[str]) -> None:
        """The closed list is in this order now."""
        for buyer in order:
            self._stand(buyer, self.tickets[buyer])
        for buyer, number in self.late:
            self._stand(buyer, number)
        self.ranked = len(order)

    @property
    def listed(self) -> list[str]:
        return [name for name, number in self.tickets.items() if number < (self.closed or 0)]

    # -- turns --------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        return sum(step.unused for step in self.steps)

    @property
    def waiting(self) -> list[str]:
        return [buyer for buyer in self.line[self.head :] if buyer is not None]

    def let_lapse(self) -> None:
        """What a look does first."""
        self.sells = not self.paused
        while self.steps and self.steps[0].at_ms + self.rules.life_ms <= self.turn_ms:
            step = self.steps.pop(0)
            self.lapsed, self.lapses = step.stop, self.lapses + step.unused
        earned = self.rules.rate * (self.turn_ms - self.last_ms) / 1_000
        self.credit = min(self.credit + earned, max(1, self.rules.rate))
        self.last_ms = self.turn_ms

    @property
    def may_call(self) -> bool:
        """Whether anything at all allows a call now. After ``let_lapse``."""
        return (
            not self.paused
            and self.available > 0
            and bool(self.waiting)
            and self.turn_ms - self.stepped_ms >= self.rules.pause_ms
            and (self.rules.rate == 0 or self.credit >= 1 - TOLERANCE)
        )

    @property
    def must_call(self) -> bool:
        """Whether a call may not wait any longer: nobody else could buy."""
        sure = self.rules.rate == 0 or self.credit >= 1 + TOLERANCE
        return self.may_call and self.live == 0 and sure

    def call(self, number: int, start: int, stop: int, worth: float) -> None:
        """Checks a step that was made, and makes it. ``worth``: the live tokens before it, each
        counted by the chance it has left as against a new one."""
        assert self.may_call
        assert number == (self.called_steps + 1)
        assert start == self.head
        assert start < stop <= len(self.line)
        people = [buyer for buyer in self.line[start:stop] if buyer is not None]
        assert people
        assert len(set(people)) == len(people)
        counted = self.live if self.rules.overbook == 1 else worth
        assert counted + len(people) <= self.rules.overbook * self.available + TOLERANCE
        if self.rules.rate:
            assert len(people) <= self.credit + TOLERANCE
            self.credit = max(0.0, self.credit - len(people))
        self.steps.append(TwinStep(number, start, stop, self.turn_ms, len(people)))
        self.called_steps, self.head, self.stepped_ms = number, stop, self.turn_ms
        self.called += len(people)

    called_steps: int = 0

    def worth(self, used: Sequence[int], risk: Sequence[int]) -> float:
        """The live tokens, each counted by its chance as against a new one; ``used`` and ``risk``
        are what the sale has seen of each age."""
        reached = [(self.turn_ms - step.at_ms) * AGES / self.rules.life_ms for step in self.steps]
        seen = list(map(float, risk))
        for step, age in zip(self.steps, reached, strict=True):
            seen[int(age)] -= step.unused * (1 - age % 1)
        stays = [1.0]
        for came, at_risk in zip(reversed(used), reversed(seen), strict=True):
            stays.append(stays[-1] * (1 - min(1, (came + 0.2) / (max(came, at_risk) + 2))))
        chances = [1 - stay for stay in reversed(stays)]
        return sum(
            step.unused
            * (chances[int(age)] * (1 - age % 1) + chances[int(age) + 1] * (age % 1))
            / chances[0]
            for step, age in zip(self.steps, reached, strict=True)
        )

    # -- orders -------------------------------------------------------------------------------

    def buy(self, order: str, buyer: str, step: tuple[int, int], number: int, units: int) -> Status:
        """``step``: its number, and when it called. ``number``: the token's ticket."""
        if self.paused:
            return Status.PAUSED
        if step[1] + self.rules.life_ms <= self.turn_ms:
            return Status.TOKEN_EXPIRED
        if self.tickets.get(buyer) != number:
            return Status.UNKNOWN_TICKET
        if self.available < units:
            return Status.INSUFFICIENT if self.available else Status.SOLD_OUT
        self.available, self.held = self.available - units, self.held + units
        self.holds[order] = TwinHold(buyer, units, self.now_ms + self.rules.hold_ms)
        if buyer not in self.came:
            self.came.add(buyer)
            self.uses += 1
            for live in self.steps:
                live.unused -= live.number == step[0]
        return Status.CREATED

    def confirm(self, order: str) -> None:
        self._end([order], back=False)

    def release(self, order: str) -> None:
        self._end([order], back=True)

    def expire(self) -> int:
        due = [name for name in self.open if self.holds[name].deadline_ms <= self.now_ms]
        self._end(due, back=True)
        return len(due)

    @property
    def open(self) -> list[str]:
        return [name for name, hold in self.holds.items() if hold.state == "held"]

    def _end(self, orders: Iterable[str], *, back: bool) -> None:
        for name in orders:
            hold = self.holds[name]
            hold.state = "over"
            self.held -= hold.units
            self.available += hold.units if back else 0
