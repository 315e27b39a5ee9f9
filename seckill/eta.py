"""How long it takes until a buyer in a queue is called: plain arithmetic, for the queue's pages and
for `seckill rehearse`.

The pace of the last steps goes on. That is for those whom the rate holds back; nobody can tell for
those who wait for the stock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["WINDOW_MS", "eta_ms", "pace_per_s"]

WINDOW_MS: Final = 30_000
"""How far back the pace is looked at."""
_LEAST_MS: Final = 2_000


def pace_per_s(
    calls: Iterable[tuple[int, int]], began_ms: int, now_ms: int, rate_per_s: int
) -> float:
    """Tickets that are called in a second, by the last calls as (at ms, tickets). ``began_ms`` is
    since when people have waited: a lull says nothing of the pace. ``rate_per_s`` for a queue that
    has only just begun."""
    since_ms = max(began_ms, now_ms - WINDOW_MS)
    span_ms = now_ms - since_ms
    if span_ms < _LEAST_MS:
        return float(rate_per_s)
    called = sum(tickets for at_ms, tickets in calls if at_ms > since_ms)
    return min(float(rate_per_s), called * 1000 / span_ms)


def eta_ms(ahead: int, pace: float, opens_ms: int, now_ms: int) -> int | None:
    """Milliseconds until somebody with ``ahead`` others before them is called; None when nobody is
    called at all."""
    if pace <= 0:
        return None
    return max(0, opens_ms - now_ms) + int((ahead + 1) * 1000 / pace)
