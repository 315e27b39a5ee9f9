"""The sales' clock as the intake tells it: how far off it is when answers take their time."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import RedisUnavailable
from seckill.server.clock import STALE_S, Clock
from tests.faults.proxy import Proxy

START_MS = 1_795_867_200_000.0
# Both clocks are told in whole milliseconds.
WHOLE_MS = 1.0


class Far:
    """A Redis at some distance, in a world whose time only passes on the way to it and back.
    ``now_s`` is our clock, ``there_ms`` Redis's. ``ways_s`` are there and back."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.ahead_ms = START_MS - 1_000_000.0
        self.ways_s = (0.0, 0.0)
        self.away = False

    @property
    def there_ms(self) -> float:
        return self.now_s * 1000 + self.ahead_ms

    async def now_ms(self) -> int:
        if self.away:
            raise RedisUnavailable("away")
        self.now_s += self.ways_s[0]
        told = int(self.there_ms)
        self.now_s += self.ways_s[1]
        return told

    async def off_ms(self, clock: Clock, *, there_s: float = 0.0, back_s: float = 0.0) -> float:
        """By how much the clock is wrong, on either side, if it asks at such a distance."""
        self.ways_s = (there_s, back_s)
        return abs((await clock.read()).now_ms - self.there_ms)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Far:
    far = Far()
    monkeypatch.setattr("seckill.server.clock.monotonic", lambda: far.now_s)
    return far


def clock_of(far: Far) -> Clock:
    return Clock(cast(Engine, far))


async def test_a_slow_answer_is_off_by_half_of_its_time(far: Far) -> None:
    assert await far.off_ms(clock_of(far), back_s=0.8) <= 400 + WHOLE_MS
    assert await far.off_ms(clock_of(far), there_s=0.8) <= 400 + WHOLE_MS


async def test_a_slow_answer_spoils_nothing_that_is_known(far: Far) -> None:
    clock = clock_of(far)
    assert await far.off_ms(clock, there_s=0.001, back_s=0.001) <= 1 + WHOLE_MS
    for _ in range(20):
        far.now_s += 1.0
        assert await far.off_ms(clock, back_s=0.9) <= 20 + WHOLE_MS
    far.now_s += 1.0
    assert await far.off_ms(clock, there_s=0.001) <= 0.5 + WHOLE_MS


@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=8))
def test_it_is_as_good_as_its_best_answer(ways: list[tuple[float, float]]) -> None:
    async def check() -> None:
        far, best_ms = Far(), float("inf")
        clock = clock_of(far)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("seckill.server.clock.monotonic", lambda: far.now_s)
            for there_s, back_s in ways:
                far.now_s += 1.01
                best_ms = min(best_ms, (there_s + back_s) * 500)
                # Twenty seconds at most, in which the clocks may part by a hundredth of one.
                off_ms = await far.off_ms(clock, there_s=there_s, back_s=back_s)
                assert off_ms <= best_ms + 10 + WHOLE_MS

    asyncio.run(check())


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_set_is_followed(far: Far, hours: int) -> None:
    clock = clock_of(far)
    await clock.read()
    far.now_s += 1.01
    far.ahead_ms += hours * 3_600_000
    assert await far.off_ms(clock, back_s=0.1) <= 50 + WHOLE_MS


async def test_it_goes_on_for_a_while_without_redis(far: Far) -> None:
    clock = clock_of(far)
    far.away = True
    with pytest.raises(RedisUnavailable):
        await clock.read()
    far.away = False
    assert await far.off_ms(clock) <= WHOLE_MS
    far.away = True
    for _ in range(int(STALE_S) - 1):
        far.now_s += 1.01
        assert await far.off_ms(clock) <= STALE_S * 0.5 + WHOLE_MS
    far.now_s += 2.0
    with pytest.raises(RedisUnavailable):
        await clock.read()
    far.away = False
    assert await far.off_ms(clock) <= WHOLE_MS


async def test_with_a_slow_way_to_redis(redis_server: EmbeddedServer) -> None:
    """The server is on this machine, so both clocks are one."""
    async with (
        Proxy(redis_server.url) as proxy,
        Engine(proxy.url, durability="memory", sweep_ms=0) as engine,
    ):
        clock = Clock(engine)
        await engine.now_ms()  # Connected.
        proxy.reply_delay_s = 0.4
        before_ms = time.time() * 1000
        told_ms = (await clock.read()).now_ms
        after_ms = time.time() * 1000
        # It can't know when the answer was written: half of the time it took may be wrong.
        assert before_ms + 200 - WHOLE_MS <= told_ms <= after_ms + (after_ms - before_ms) / 2
