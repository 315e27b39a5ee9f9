"""How buyers get to the till of a sale, as its merchant chooses it beforehand.

    queue    first come, first served: tickets are called in order of their numbers
    shuffle  who came before ``draw_at`` is put in random order, whoever comes later stands behind
    draw     a lottery among those who came before ``draw_at``; nobody can join after it

A sale without an admission is open: whoever comes is served. An admission is a part of the sale's
definition, so quotas and weights are public before the first ticket and never change.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

import msgspec

from seckill.checks import (
    EPOCH,
    MILLISECOND,
    TIME_MS_MAX,
    TIME_MS_MIN,
    check_int,
    check_keys,
    check_text,
    show,
    to_ms,
    whole_ms,
)
from seckill.errors import InvalidInput

__all__ = ["OVERBOOK_MAX", "TIERS_MAX", "WEIGHT_MAX", "Admission", "Mode", "build_admission"]

Mode = Literal["queue", "shuffle", "draw"]
RATE_MAX: Final = 1_000_000
OVERBOOK_MAX: Final = 100
WEIGHT_MAX: Final = 100
TIERS_MAX: Final = 20
_LIFE_MS_MIN: Final = 1_000
_LIFE_MS_MAX: Final = 86_400_000
_TIER_MAX: Final = 40
_VALUE_MAX: Final = 200
_MODES: Final = "write queue, shuffle or draw"


class Admission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sale's admission.

    ``rate_per_s`` is how many tickets are called in a second at most: what the mall behind the
    engine can bear. A draw calls everybody who has won at once. ``token_life_ms`` is how long a
    called buyer may buy. ``overbook_max`` bounds how many may be called for each unit that is left,
    while the sale learns how many of them come (a token counts by the chance it has left, as
    against a new one); a draw never calls more than there are units.
    ``joins_at`` is when tickets can first be taken, None: as soon as the sale is created.
    ``draw_at`` (shuffle and draw) is when the list of tickets closes, None: when the sale opens.
    ``weights`` (draw) maps a member tier to the number of lots of its tickets, 1 for all others.
    ``public_value`` names a value that nobody knows before ``draw_at`` and everybody after it, and
    that takes part in the order; without it nothing protects against the operator.
    """

    mode: Mode
    rate_per_s: int = 1_000
    token_life_ms: int = 120_000
    overbook_max: int = 20
    joins_at: datetime | None = None
    draw_at: datetime | None = None
    weights: tuple[tuple[str, int], ...] = ()
    public_value: str | None = None

    def __post_init__(self) -> None:
        mode: str = self.mode
        if mode == "open":
            problem = "'open' is what a sale without an admission is"
            raise InvalidInput(
                "mode", problem, f"for an open sale remove [admission]; else {_MODES}"
            )
        if mode not in get_args(Mode):
            raise InvalidInput("mode", f"{show(mode)} is unknown", _MODES)
        check_int("rate_per_s", self.rate_per_s, 1, RATE_MAX, "tickets a second")
        life = "milliseconds, 1 second to 1 day"
        check_int("token_life_ms", self.token_life_ms, _LIFE_MS_MIN, _LIFE_MS_MAX, life)
        check_int("overbook_max", self.overbook_max, 1, OVERBOOK_MAX, "tokens for each unit left")
        for name in ("joins_at", "draw_at"):
            if getattr(self, name) is not None:
                value = whole_ms(name, getattr(self, name))
                msgspec.structs.force_setattr(self, name, value)
        self._check_weights()
        if self.public_value is not None:
            check_text("public_value", self.public_value, _VALUE_MAX)
        if self.mode == "queue":
            for name in ("draw_at", "public_value"):
                if getattr(self, name) is not None:
                    remedy = (
                        f'remove it, or write mode = "shuffle" or "draw" instead of {self.mode!r}'
                    )
                    raise InvalidInput(name, "is for a shuffle or a draw", remedy)
        if self.weights and self.mode != "draw":
            raise InvalidInput("weights", "is for a draw", 'remove it, or write mode = "draw"')

    def _check_weights(self) -> None:
        if not isinstance(self.weights, tuple):
            raise InvalidInput("weights", f"is {show(self.weights)}", "pass pairs of tier and lots")
        if len(self.weights) > TIERS_MAX:
            problem = f"has {len(self.weights)} tiers"
            raise InvalidInput("weights", problem, f"write at most {TIERS_MAX}")
        for tier, lots in self.weights:
            check_text("weights", tier, _TIER_MAX)
            check_int(f"weights.{tier}", lots, 1, WEIGHT_MAX, "lots")
        tiers = [tier for tier, _ in self.weights]
        if tiers != sorted(set(tiers)):
            raise InvalidInput("weights", "is not sorted by tier", "name each tier once, sorted")

    def weight(self, tier: str) -> int:
        """The lots of a ticket of a member of this tier."""
        return dict(self.weights).get(tier, 1)

    @property
    def is_drawn(self) -> bool:
        """Whether tickets are ranked once their list is closed."""
        return self.mode != "queue"

    def check_times(self, opens_at: datetime, ends_at: datetime) -> None:
        """Raises InvalidInput for times that don't fit the sale's."""
        if self.joins_at is not None and self.joins_at >= ends_at:
            raise InvalidInput("admission.joins_at", "is not before ends_at", "write a time before")
        draw_at = self.draw_at or opens_at
        if draw_at >= ends_at:
            raise InvalidInput("admission.draw_at", "is not before ends_at", "write a time before")
        if self.is_drawn and self.joins_at is not None and self.joins_at >= draw_at:
            raise InvalidInput(
                "admission.joins_at",
                f"{self.joins_at.isoformat()} is not before the draw at {draw_at.isoformat()}",
                "write a time before it, so that somebody can join",
            )

    def moved(self, by: timedelta) -> Admission:
        """The same, with its times later by so much."""
        times = {name: getattr(self, name) for name in ("joins_at", "draw_at")}
        later = {name: at + by for name, at in times.items() if at is not None}
        return msgspec.structs.replace(self, **later)

    def plain(self) -> dict[str, Any]:
        """What ``build_admission`` makes an equal one of: every field, times in milliseconds."""
        fields = msgspec.structs.asdict(self)
        for name in ("joins_at", "draw_at"):
            value = fields.pop(name)
            fields[name.replace("_at", "_ms")] = None if value is None else to_ms(value)
        fields["weights"] = dict(self.weights)
        return fields


def build_admission(fields: object) -> Admission:
    """An admission from plain values: of a file, of JSON, or as ``plain`` writes them. Raises
    InvalidInput, whose field begins with ``admission``."""
    if not isinstance(fields, dict):
        problem = f"is {show(fields)}, not a table"
        raise InvalidInput("admission", problem, 'write a table with mode = "queue"')
    known = Admission.__struct_fields__
    values = dict(fields)
    for name_ms, name in (("joins_ms", "joins_at"), ("draw_ms", "draw_at")):
        if name_ms in values:
            ms = values.pop(name_ms)
            if ms is not None:
                check_int(f"admission.{name_ms}", ms, TIME_MS_MIN, TIME_MS_MAX, "ms since 1970")
                ms = EPOCH + ms * MILLISECOND
            values[name] = ms
    check_keys(values, known, (), "admission.", "an admission")
    if "mode" not in values:
        raise InvalidInput("admission.mode", "is missing", _MODES)
    weights = values.get("weights")
    if isinstance(weights, dict):
        for tier in weights:
            check_text("admission.weights", tier, _TIER_MAX)
        values["weights"] = tuple(sorted(weights.items()))
    elif weights is not None and "weights" in values:
        problem = f"is {show(weights)}, not a table"
        raise InvalidInput("admission.weights", problem, "write lots by tier: {gold = 3}")
    try:
        return Admission(**values)
    except InvalidInput as error:
        raise InvalidInput(f"admission.{error.field}", error.problem, error.remedy) from None
