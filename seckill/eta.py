"""How long it takes until a buyer in a queue is called: plain arithmetic, for the queue's pages and
for `seckill rehearse`.

The pace of the last steps goes on. Where it is the stock that holds the queue back, that pace has
the lapses of those who did not come in it already; where it is the rate, it is the rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["WINDOW_MS", "eta_ms", "lapse_ms", "pace_per_s"]

WINDOW_MS: Final = 30_000
"""How far back the pace is looked at."""
_LEAST_MS: Final = 2_000
_STUCK_MS: Final = 1_000


def pace_per_s(
    calls: Iterable[tuple[int, int]], began_ms: int, now_ms: int, rate_per_s: int
) -> float:
    """Tickets that are called in a second, by the last calls as (at ms, tickets): ``rate_per_s``
    for a queue that has only just begun, at ``began_ms``."""
    since_ms = max(began_ms, now_ms - WINDOW_MS)
    span_ms = now_ms - since_ms
    if span_ms < _LEAST_MS:
        return float(rate_per_s)
    called = sum(tickets for at_ms, tickets in calls if at_ms > since_ms)
    return min(float(rate_per_s), called * 1000 / span_ms)


def lapse_ms(called_at: Iterable[int], life_ms: int, now_ms: int) -> int:
    """Milliseconds until the oldest live token lapses, where the stock holds the queue back: people
    wait, and nobody was called for a second. Else 0. ``called_at`` are the steps' times."""
    live = [at_ms for at_ms in called_at if at_ms + life_ms > now_ms]
    if not live or now_ms - max(live) < _STUCK_MS:
        return 0
    return min(live) + life_ms - now_ms


def eta_ms(ahead: int, pace: float, opens_ms: int, now_ms: int, least_ms: int = 0) -> int | None:
    """Milliseconds until somebody with ``ahead`` others before them is called, ``least_ms`` at
    least; None when nobody is called at all."""
    wait_ms = max(0, opens_ms - now_ms)
    if pace <= 0:
        return least_ms or None
    return wait_ms + max(least_ms, int((ahead + 1) * 1000 / pace))
