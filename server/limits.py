"""How often one may ask.

GCRA, the token bucket kept as a single number: for each key the moment up to which its past
requests have used up the rate ("theoretical arrival time"). A request is let through while that
moment is less than a burst ahead of now, and moves it on by 1/rate.
"""

from __future__ import annotations

from math import isfinite
from typing import Final

from seckill.errors import InvalidInput

__all__ = ["Limiter"]

KEYS_MAX: Final = 100_000


class Limiter:
    """Lets each key through ``burst`` times at once and ``per_s`` times a second in the long run.

    A key that has been quiet for burst/per_s seconds is as good as new, so nothing need be known of
    it. Entries live in two generations: every burst/per_s seconds a new one begins, and the one
    before the last is forgotten whole. That needs no sweep and loses nothing.

    A generation also ends when it holds half of ``keys_max``. Then the keys that were quiet the
    longest may start with a full burst again: under a flood of keys the limiter looks back over the
    last keys_max/2 of them instead of the full time, but it never grows, and never refuses a
    newcomer for what others do.

    Each process counts for itself.
    """

    __slots__ = ("_ahead_s", "_each_s", "_half", "_life_s", "_old", "_turn_s", "_young")

    def __init__(self, per_s: float, burst: int, *, keys_max: int = KEYS_MAX) -> None:
        """Raises InvalidInput. No limit at all is not a limiter of 0."""
        if not (isfinite(per_s) and per_s > 0):
            raise InvalidInput("per_s", f"{per_s!r} is not a rate", "pass a number above 0")
        if burst < 1:
            raise InvalidInput("burst", f"{burst!r} lets nobody through", "pass 1 or more")
        if keys_max < 2:
            raise InvalidInput("keys_max", f"{keys_max!r} is too few", "pass 2 or more")
        self._each_s = 1 / per_s
        # The first of a burst needs no room ahead.
        self._ahead_s = (burst - 1) / per_s
        self._life_s = burst / per_s
        self._half = keys_max // 2
        self._young: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._turn_s = -float("inf")

    def __len__(self) -> int:
        """Keys that are remembered now; one may be counted twice."""
        return len(self._young) + len(self._old)

    def take(self, key: str, now_s: float) -> float:
        """Seconds until this key may ask again; 0.0 lets it through now. A refusal costs the key
        nothing, so whoever hammers is served at the rate. ``now_s`` is time.monotonic(), or any
        clock that never goes back."""
        if now_s >= self._turn_s or len(self._young) >= self._half:
            self._turn(now_s)
        used_s = self._young.get(key)
        if used_s is None:
            used_s = self._old.get(key, now_s)
        if used_s <= now_s:
            self._young[key] = now_s + self._each_s
            return 0.0
        wait_s = used_s - self._ahead_s - now_s
        if wait_s > 0.0:
            return wait_s
        self._young[key] = used_s + self._each_s
        return 0.0

    def _turn(self, now_s: float) -> None:
        self._old, self._young = self._young, {}
        self._turn_s = now_s + self._life_s
