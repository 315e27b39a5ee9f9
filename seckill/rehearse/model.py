"""Who comes to a sale and when, and the rules that they find.

Times are milliseconds since the sale's opening: whoever is there before it has a negative one.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from bisect import bisect_left
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from seckill.checks import to_ms
from seckill.errors import InvalidInput
from seckill.sale import Sale

__all__ = [
    "BUYERS_MAX",
    "Choices",
    "Crowd",
    "Habits",
    "Rules",
    "make_crowd",
    "read_span",
    "rules_of",
]

BUYERS_MAX: Final = 10_000_000
PAY_MEAN_MS: Final = 60_000
"""From an order to its payment, for those who pay; cut at the sale's hold_ms."""
# A rush: this share comes near the moment that everybody waits for, the others in a long tail.
_NEAR: Final = 0.8
_RACE_MEAN_MS: Final = 5_000
_LIST_MEAN_MS: Final = 300_000
_TAIL_MEAN_MS: Final = 600_000
_LIST_MS: Final = 3_600_000
_CSV_BYTES_MAX: Final = 200 * 1024 * 1024
_SPAN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(ms|s|min|m|h)?").fullmatch
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "m": 60_000, "h": 3_600_000}

Mode = Literal["open", "queue", "shuffle", "draw"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What of a sale decides how its evening goes. ``joins_ms`` is None where tickets can be taken
    as soon as the sale is created; ``draw_ms`` is 0 where nothing is drawn."""

    mode: Mode
    units: int
    ends_ms: int
    hold_ms: int
    rate_per_s: int = 0
    token_life_ms: int = 0
    overbook_max: int = 1
    each: int = 1
    joins_ms: int | None = None
    draw_ms: int = 0

    @property
    def is_drawn(self) -> bool:
        """Whether tickets are put in random order."""
        return self.mode in ("shuffle", "draw")

    @property
    def begins_ms(self) -> int:
        """When somebody can be called first."""
        return max(0, self.draw_ms)


def rules_of(sale: Sale) -> Rules:
    """The rules of a sale; one without an admission is open."""
    rules = Rules(
        mode="open",
        units=sale.total_units,
        ends_ms=sale.ends_ms - sale.opens_ms,
        hold_ms=sale.hold_ms,
    )
    admission = sale.admission
    if admission is None:
        return rules
    return msgspec.structs.replace(
        rules,
        mode=admission.mode,
        # As in seckill.queue: who has won a draw is called at once, and never more than can buy.
        rate_per_s=0 if admission.mode == "draw" else admission.rate_per_s,
        overbook_max=1 if admission.mode == "draw" else admission.overbook_max,
        each=sale.units_a_buyer if admission.mode == "draw" else 1,
        token_life_ms=admission.token_life_ms,
        joins_ms=_since_opening(sale, admission.joins_at),
        draw_ms=sale.draw_ms - sale.opens_ms if admission.is_drawn else 0,
    )


def _since_opening(sale: Sale, at: datetime | None) -> int | None:
    return None if at is None else to_ms(at) - sale.opens_ms


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What buyers do. ``show_up`` is the share of the called who come, ``order_mean_ms`` how long
    they take on average from the call to the order, ``pay_through`` the share of orders that are
    paid. Raises InvalidInput, whose field is the option's."""

    show_up: float = 0.7
    order_mean_ms: int = 10_000
    pay_through: float = 0.9

    def __post_init__(self) -> None:
        for option, share in (("--show-up", self.show_up), ("--pay-through", self.pay_through)):
            if not 0 <= share <= 1:
                problem = f"{share:g} is no share"
                raise InvalidInput(option, problem, "write a number from 0 to 1, e.g. 0.9")
        if self.order_mean_ms < 1:
            raise InvalidInput("--order-after", "is no time", "write a time, e.g. 10s")


class Choices:
    """What each called buyer does, one after the other: the same in every rehearsal of a crowd, so
    that two differ by their rules alone."""

    def __init__(self, rules: Rules, habits: Habits, seed: int) -> None:
        self._random = random.Random(f"choices {seed}").random
        self._rules = rules
        self._habits = habits

    def next(self) -> tuple[int | None, int | None]:
        """Milliseconds from the call to the order, None for who does not come; and from there to
        the payment, None for who does not pay."""
        comes, after, pays, pay_after = (self._random() for _ in range(4))
        habits, rules = self._habits, self._rules
        order_ms = pay_ms = None
        if comes < habits.show_up:
            order_ms = int(_cut(after, habits.order_mean_ms, rules.token_life_ms))
        if pays < habits.pay_through:
            pay_ms = int(_cut(pay_after, PAY_MEAN_MS, rules.hold_ms))
        return order_ms, pay_ms


def _cut(chance: float, mean: float, end: float) -> float:
    """An exponential time below ``end``, from a number between 0 and 1."""
    return -mean * math.log1p(-chance * -math.expm1(-end / mean))


class Crowd:
    """Everybody who comes.

    ``arrivals`` is when each buyer comes, in order; ``joined`` of them get a ticket, or a try where
    there is no queue. ``listed`` tickets are ranked, and ``order`` is the buyers by rank.
    """

    def __init__(self, arrivals: array[int], rules: Rules, seed: int) -> None:
        if rules.joins_ms is not None and rules.mode != "open":
            # Who is too early is told when to come, and comes then.
            early = bisect_left(arrivals, rules.joins_ms)
            arrivals[:early] = array("q", [rules.joins_ms]) * early
        self.seed = seed
        self.arrivals = arrivals
        self.listed = bisect_left(arrivals, rules.draw_ms) if rules.is_drawn else 0
        self.joined = bisect_left(arrivals, rules.ends_ms)
        if rules.mode == "draw":
            self.joined = self.listed
        self.order = array("q", range(self.listed))
        random.Random(f"order {seed}").shuffle(self.order)

    def buyer(self, position: int) -> int:
        """Whose ticket stands there."""
        return self.order[position] if position < self.listed else position


def make_crowd(arrival: str, buyers: int | None, rules: Rules, seed: int) -> Crowd:
    """A crowd by its description: ``rush``, ``even:600s``, or a CSV file whose first column is
    seconds since the opening. Raises InvalidInput."""
    if arrival == "rush":
        times = _rush(buyers or 100_000, rules, random.Random(f"arrivals {seed}"))
    elif arrival.startswith("even:"):
        length_ms = read_span(arrival.removeprefix("even:"), "--arrival")
        times = _even(buyers or 100_000, length_ms, rules)
    elif arrival.endswith(".csv"):
        if buyers is not None:
            problem = "is given beside a file of arrivals"
            raise InvalidInput("--buyers", problem, "leave it out: each row is a buyer")
        times = _read_arrivals(Path(arrival))
    else:
        problem = f"{arrival[:40]!r} is unknown"
        raise InvalidInput("--arrival", problem, "write rush, even:600s or the name of a .csv file")
    return Crowd(array("q", sorted(times)), rules, seed)


def _moment(rules: Rules) -> int:
    """What a crowd waits for: the first moment at which one can come, or the draw."""
    if rules.is_drawn:
        return rules.draw_ms
    return rules.joins_ms or 0 if rules.mode == "queue" else 0


def _rush(buyers: int, rules: Rules, rng: random.Random) -> list[int]:
    moment, chance = _moment(rules), rng.random
    tail_ms = rules.ends_ms - moment
    near = round(buyers * _NEAR)
    if rules.is_drawn:
        # Nobody has to be quick; but the news of a draw spreads until it is held.
        room_ms = _LIST_MS if rules.joins_ms is None else moment - rules.joins_ms
        times = [moment - 1 - int(_cut(chance(), _LIST_MEAN_MS, room_ms)) for _ in range(near)]
    else:
        times = [moment + int(_cut(chance(), _RACE_MEAN_MS, tail_ms)) for _ in range(near)]
    times += [moment + int(_cut(chance(), _TAIL_MEAN_MS, tail_ms)) for _ in range(buyers - near)]
    return times


def _even(buyers: int, length_ms: int, rules: Rules) -> list[int]:
    begin_ms = _moment(rules) - (length_ms if rules.is_drawn else 0)
    return [begin_ms + index * length_ms // buyers for index in range(buyers)]


def _read_arrivals(path: Path) -> list[int]:
    try:
        with path.open("rb") as file:
            data = file.read(_CSV_BYTES_MAX + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise InvalidInput("--arrival", problem, "name a file that is there") from None
    except UnicodeDecodeError:
        raise InvalidInput("--arrival", f"{path} is not UTF-8", "save it as UTF-8") from None
    if len(data) > _CSV_BYTES_MAX:
        raise InvalidInput("--arrival", f"{path} is too large", "write at most 200 MiB")
    times = []
    for number, line in enumerate(lines, 1):
        cell = line.partition(",")[0].strip()
        try:
            times.append(int(float(cell) * 1000))
        except (ValueError, OverflowError):
            # The first line may name the columns; an empty one says nothing.
            if cell and number > 1:
                problem = f"{path}:{number}: {cell[:40]!r} is no number of seconds"
                remedy = "write seconds since the opening, negative before it"
                raise InvalidInput("--arrival", problem, remedy) from None
    if not 1 <= len(times) <= BUYERS_MAX:
        problem = f"{path} has {len(times)} rows with a time"
        raise InvalidInput("--arrival", problem, f"write 1 to {BUYERS_MAX} rows")
    return times


def read_span(text: str, option: str) -> int:
    """Milliseconds of a length of time: ``10s``, ``1.5 min``, ``2h``; seconds where no unit stands.
    Raises InvalidInput."""
    found = _SPAN(text.strip())
    length_ms = float(found[1]) * _UNIT_MS[found[2] or "s"] if found else 0
    if not 1 <= length_ms <= 7 * 86_400_000:
        problem = f"{text[:40]!r} is no time that fits"
        remedy = "write a time longer than 0, at most 7 days, such as 600s, 10min or 2h"
        raise InvalidInput(option, problem, remedy)
    return int(length_ms)
