"""How many buyers there are at each moment: most come before the opening and press at it, the rest
comes in a long tail."""

from __future__ import annotations

from math import ceil, exp
from typing import Final

__all__ = ["present"]

# Everybody who comes before the opening is to have looked at the page and at the clock by then.
_BEFORE_S: Final = 1.5
# So near to all that the last ones, who would come at the end of time, come now.
_NEARLY: Final = 0.02


def present(
    users: int, rush: float, tail_s: float, come_per_s: float, opening_s: float, after_s: float
) -> int:
    """How many of all users are to be there ``after_s`` seconds after the start of a run that
    began ``opening_s`` before the opening (negative: after it). Where there is time enough before
    the opening, ``come_per_s`` says nothing."""
    early = users * rush
    ramp_s = opening_s - _BEFORE_S if opening_s > _BEFORE_S else early / come_per_s
    count = early * min(1.0, after_s / ramp_s) if ramp_s > 0 else early
    since_s = after_s - max(opening_s, ramp_s)
    if since_s > 0:
        count += (users - early) * (1 - exp(-since_s / tail_s) if tail_s > 0 else 1)
        if users - count <= max(1.0, users * _NEARLY):
            count = users
    return max(1, min(users, ceil(count)))
