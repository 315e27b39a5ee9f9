"""The rehearsal's twin: the same crowd, and the real scripts in place of the simulation."""

from __future__ import annotations

import heapq
from bisect import bisect_right

import redis

from seckill.rehearse import Crowd, Habits, Rules
from seckill.rehearse.model import Choices
from seckill.rehearse.simulate import LOOK_MS
from seckill.status import Status
from tests.lua.core import Wish
from tests.lua.queue_core import QueueCore

__all__ = ["real_evening"]


def real_evening(
    client: redis.Redis, rules: Rules, crowd: Crowd, habits: Habits, until_ms: int
) -> dict[int, int]:
    """When each buyer is called, in ms since the opening, by join.lua, admit.lua, reserve.lua,
    confirm.lua and expire.lua on a server whose sale's clock is moved from look to look."""
    core = QueueCore(client)
    core.begin_queue(
        rules.mode,
        rules.units,
        rate=rules.rate_per_s,
        overbook=rules.overbook_max,
        life_ms=rules.token_life_ms,
        hold_ms=rules.hold_ms,
        clock_jump_ms=86_400_000,
    )
    choices = Choices(rules, habits, crowd.seed)
    called_at: dict[int, int] = {}
    events: list[tuple[int, int, int, str, int, int | None]] = []
    joined = step = 0
    opens_ms = core.now_ms
    for now_ms in range(0, until_ms, LOOK_MS):
        # What happens between two looks happens at its own time, as far as the sale can tell.
        while events and events[0][0] <= now_ms:
            at_ms, buyer, number, kind, step_at_ms, pay_ms = heapq.heappop(events)
            core.travel(opens_ms + at_ms - core.now_ms)
            core.expire(1_000)
            if kind == "pay":
                assert core.confirm(f"o{buyer}", f"p{buyer}").status is Status.DONE
                continue
            turn = (number, step_at_ms + rules.token_life_ms, buyer)
            (answer,) = core.reserve(Wish(f"o{buyer}", f"b{buyer}", turn=turn))
            if answer == Status.CREATED and pay_ms is not None:
                heapq.heappush(events, (at_ms + pay_ms, buyer, 0, "pay", 0, None))
        core.travel(opens_ms + now_ms - core.now_ms)
        core.expire(1_000)
        came = min(bisect_right(crowd.arrivals, now_ms), crowd.joined)
        while joined < came:
            part = range(joined, min(joined + 1_000, came))
            core.join_raw([f"b{buyer}" for buyer in part])
            joined = part.stop
        for number, start, stop, at_ms in core.admit(step).steps:
            step, at_ms = number, at_ms - opens_ms
            for buyer in range(start, stop):
                called_at[buyer] = at_ms
                order_ms, pay_ms = choices.next()
                if order_ms is not None:
                    visit = (at_ms + order_ms, buyer, number, "buy", at_ms, pay_ms)
                    heapq.heappush(events, visit)
    return called_at
