"""The lane when answers come late or never: a stopped server, a slow line, a reply held back.

Whoever is told "unknown" is told in time, and the order is not executed after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, Overloaded, RedisUnavailable
from seckill.keys import crew_key, shard_keys
from seckill.lane import Lane
from seckill.order import Outcome
from seckill.status import Status
from tests.faults.proxy import Command, Fate, Proxy
from tests.faults.sales import answers_of, buy, buy_all, held, id_of, open_sale, statuses

# Long enough for a busy machine to answer in time what it should answer.
TIMEOUT_MS = 1_000
# Late by more than this, and by what the machine has kept us waiting, is too late.
SLACK_S = 0.5
TICK_S = 0.005


class Delay:
    """How much later than it should this process gets its turns: ``s`` is the sum."""

    def __init__(self) -> None:
        self.s = 0.0

    async def __aenter__(self) -> Delay:
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            began = monotonic()
            await asyncio.sleep(TICK_S)
            self.s += monotonic() - began - TICK_S


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    # A busy disk may take a second by itself, which is all the time there is.
    with EmbeddedServer(tmp_path_factory.mktemp("lane-late"), appendfsync="no") as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.url) as listening:
        yield listening


async def answered(proxy: Proxy, batches: int) -> list[Command]:
    """The lane's batches, once the server has answered all it got, and that many at least."""
    async with asyncio.timeout(30):
        while True:
            found = [command for command in proxy.passed if command.order_ids]
            if len(found) >= batches and all(command.reply is not None for command in found):
                return found
            await asyncio.sleep(0.005)


async def asked_on(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, asked for until there is one: a busy machine may take all the time there is."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OutcomeUnknown, RedisUnavailable, Overloaded):
                return await call()


async def sent_to(proxy: Proxy, orders: set[str]) -> set[str]:
    """What the proxy has read, once these are among it: it may still have to read the last."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while not orders <= sent_until_now(proxy):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
    return sent_until_now(proxy)


def sent_until_now(proxy: Proxy) -> set[str]:
    return {order for command in proxy.seen for order in command.order_ids}


class Stopped:
    """The server stands still, as in a long page fault or a paused virtual machine."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._pid = server.pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


async def test_a_stuck_server_makes_outcomes_unknown_and_executes_nothing_later(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    async with (
        Engine(proxy.url, durability="memory", timeout_ms=TIMEOUT_MS) as engine,
        AsyncExitStack() as stack,
    ):
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: buy(engine, sale, "first"))
        told: dict[int, type[BaseException]] = {}
        told_s: list[float] = []

        async def impatient(buyer: int) -> None:
            began = monotonic()
            with pytest.raises((OutcomeUnknown, RedisUnavailable, Overloaded)) as error:
                await buy(engine, sale, buyer)
            told[buyer] = error.type
            told_s.append(monotonic() - began)

        with Stopped(server):
            delay = await stack.enter_async_context(Delay())
            # In two waves, so that batches of both slots and those who wait are told in time.
            calls = [asyncio.ensure_future(impatient(n)) for n in range(60)]
            await asyncio.sleep(0.1)
            calls += [asyncio.ensure_future(impatient(n)) for n in range(60, 100)]
            await asyncio.gather(*calls)
        assert min(told_s) > TIMEOUT_MS / 1000 - 0.05
        assert max(told_s) < TIMEOUT_MS / 1000 + SLACK_S + delay.s
        # A slot that could not connect any more knows that it has sent nothing, and so does the
        # lane of whoever never left it, on a machine that stood still.
        unknown = {id_of(sale, buyer) for buyer, error in told.items() if error is OutcomeUnknown}
        assert await sent_to(proxy, unknown) - {id_of(sale, "first")} == unknown
        # The server now finds all that was sent to it, and must refuse it.
        for command in await answered(proxy, 2):
            if command.order_ids != [id_of(sale, "first")]:
                assert set(command.reply[2]) == {Status.TOO_LATE}
        assert held(server.url, sale) == {id_of(sale, "first")}
        # Whoever asks again under the same key gets a fresh decision.
        async with Engine(server.url, durability="memory", timeout_ms=30_000) as patient:
            again = await buy_all(patient, sale, range(100))
        assert set(statuses(again)) == {Status.CREATED}


async def test_a_batch_delivered_after_its_deadline_is_refused(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """The network holds the bytes until the callers have been told, and delivers them at once."""
    async with Engine(proxy.url, durability="memory", timeout_ms=TIMEOUT_MS) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: buy(engine, sale, "first"))
        told = asyncio.Event()

        async def hold(command: Command) -> Fate:
            if command.order_ids:
                await told.wait()
            return Fate.PASS

        proxy.judge = hold
        outcomes = await buy_all(engine, sale, range(20))
        assert set(statuses(outcomes)) == {OutcomeUnknown}
        # Nor would it be executed if the server's clock were set back now.
        assert await asked_on(lambda: engine.order(sale, id_of(sale, 0))) is None
        with redis.Redis.from_url(server.url) as client:
            passed_ms = int(str(client.hget(shard_keys(sale)[0], "passed_ms"), "ascii"))  # type: ignore[arg-type]
        told.set()
        for command in await answered(proxy, 2):
            if command.order_ids != [id_of(sale, "first")]:
                assert set(command.reply[2]) == {Status.TOO_LATE}
                assert max(command.not_after_ms) < passed_ms
        assert held(server.url, sale) == {id_of(sale, "first")}


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.2])
async def test_not_after_is_never_later_than_the_callers_patience(
    server: EmbeddedServer, proxy: Proxy, delay_s: float
) -> None:
    """However long replies take, the lane thinks the server's clock to be early, never late. Server
    and test share one clock here, so the two can be compared."""
    async with Engine(proxy.url, durability="memory", timeout_ms=2_000) as engine, Delay() as delay:
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: buy(engine, sale, "first"))
        proxy.reply_delay_s = delay_s
        for round_ in range(5):
            began_ms = time.time() * 1000
            buyers = range(10 * round_, 10 * round_ + 10)
            outcomes = await buy_all(engine, sale, buyers)
            assert set(statuses(outcomes)) == {Status.CREATED}
            batch = next(c for c in reversed(proxy.passed) if id_of(sale, buyers[0]) in c.order_ids)
            # All were asked within a few milliseconds from began_ms on, or when we had a turn.
            for not_after_ms in batch.not_after_ms:
                assert not_after_ms <= began_ms + 2_000 + 15 + delay.s * 1000
                assert not_after_ms >= began_ms + 2_000 - 1000 * delay_s - 100 - delay.s * 1000


async def test_an_order_is_good_for_its_time_on_a_slow_line(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """Replies take three quarters of the callers' patience: no order is called late for that. Now
    and then the machine takes the rest."""
    async with Engine(proxy.url, durability="memory", timeout_ms=TIMEOUT_MS) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: buy(engine, sale, "first"))
        proxy.reply_delay_s = 0.75 * TIMEOUT_MS / 1000
        told: list[object] = []
        for buyer in range(12):
            told += statuses(await buy_all(engine, sale, [buyer]))
            if told.count(Status.CREATED) == 3:
                return
            if told[-1] is not Status.CREATED:
                # On a line like this no new connection is made in time: that is for later.
                proxy.reply_delay_s = 0.0
                await asked_on(lambda: buy(engine, sale, "first"))
                proxy.reply_delay_s = 0.75 * TIMEOUT_MS / 1000
        pytest.fail(f"{told}")


async def test_an_old_connection_never_answers_a_new_batch(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """The reply to a batch that was given up lies in the socket when the next batch is sent."""
    async with Engine(proxy.url, durability="memory", timeout_ms=TIMEOUT_MS) as engine:
        sale = await asked_on(lambda: open_sale(engine, scarce=1))
        await asked_on(lambda: buy(engine, sale, "first"))
        proxy.replies_open.clear()
        with pytest.raises(OutcomeUnknown):
            await buy(engine, sale, "slow", "scarce")
        # It was executed, in time: the unit is gone, and CREATED waits behind the closed door.
        assert id_of(sale, "slow") in held(server.url, sale)
        call = asyncio.ensure_future(buy(engine, sale, "next", "scarce"))
        await asyncio.sleep(0.02)
        proxy.replies_open.set()
        assert (await call).status is Status.SOLD_OUT
        again = await asked_on(lambda: buy(engine, sale, "slow", "scarce"))
        assert again.status is Status.EXISTS
        assert held(server.url, sale) == {id_of(sale, "first"), id_of(sale, "slow")}


async def test_those_who_waited_in_vain_were_never_sent(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """Both slots hang. Whoever could not even be sent is told so, and not that it is unknown."""
    async with Engine(
        proxy.url, durability="memory", timeout_ms=TIMEOUT_MS, batch_max=10
    ) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: buy(engine, sale, "first"))

        async def hold(command: Command) -> Fate:
            if command.order_ids:
                await asyncio.sleep(2 * TIMEOUT_MS / 1000)
            return Fate.PASS

        proxy.judge = hold
        async with Delay() as delay:
            began = monotonic()
            outcomes = await buy_all(engine, sale, range(100))
            assert monotonic() - began < TIMEOUT_MS / 1000 + SLACK_S + delay.s
        told = set(statuses(outcomes))
        assert (
            {OutcomeUnknown, Overloaded} <= told <= {OutcomeUnknown, Overloaded, RedisUnavailable}
        )
        unknown = {
            id_of(sale, buyer)
            for buyer, status in enumerate(statuses(outcomes))
            if status is OutcomeUnknown
        }
        assert await sent_to(proxy, unknown) - {id_of(sale, "first")} == unknown


async def test_nobody_waits_past_its_time_for_a_server_that_is_not_trusted(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody of the crew does not answer, so the server stays new for two seconds."""
    async with Engine(server.url, durability="memory", timeout_ms=TIMEOUT_MS) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: buy(engine, sale, "first"))
        pauses: list[float] = []
        deadlines: list[float] = []
        take, sleep = Lane._take, asyncio.sleep

        def taken(lane: Lane) -> Any:
            batch = take(lane)
            deadlines.extend(order[-1] for order in batch)
            return batch

        async def slept(delay_s: float, *args: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"] == "seckill.lane":
                pauses.append(monotonic() + delay_s)
            return await sleep(delay_s, *args)

        monkeypatch.setattr(Lane, "_take", taken)
        monkeypatch.setattr(asyncio, "sleep", slept)
        with redis.Redis.from_url(server.url) as client:
            client.hset(crew_key(sale), "f" * 16, int(time.time() * 1000))
            client.hset(shard_keys(sale)[0], "server", "f" * 40)
        with pytest.raises(RedisUnavailable, match="not adopted yet"):
            await buy(engine, sale, "second")
        [deadline_s] = deadlines
        assert len(pauses) > 1
        assert max(pauses) <= deadline_s + TICK_S


async def test_aclose_under_load_with_a_stuck_server_answers_everything(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    engine = Engine(proxy.url, durability="memory", timeout_ms=TIMEOUT_MS, batch_max=10)
    await engine.start()
    sale = await asked_on(lambda: open_sale(engine))
    await asked_on(lambda: buy(engine, sale, "first"))
    with Stopped(server):
        calls = [asyncio.ensure_future(buy(engine, sale, n)) for n in range(100)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            await engine.aclose()
        done, unanswered = await asyncio.wait(calls, timeout=0)
        assert not unanswered
        told = {type(call.exception()) for call in done}
        assert OutcomeUnknown in told
        assert told <= {OutcomeUnknown, RedisUnavailable, Overloaded}
    await asyncio.sleep(0.1)
    assert held(server.url, sale) == {id_of(sale, "first")}


# -- the first call, and the other verbs -----------------------------------------------------------


async def test_many_first_calls_wait_no_longer_than_one(server: EmbeddedServer) -> None:
    """The lane is opened by the first order; on a stuck server nobody queues up to try it."""
    async with Engine(server.url, durability="memory", timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        await asked_on(lambda: engine.sale(sale))
        with Stopped(server):
            async with Delay() as delay:
                began = monotonic()
                outcomes = await buy_all(engine, sale, range(6))
                took_s = monotonic() - began
        assert set(statuses(outcomes)) <= {RedisUnavailable, OutcomeUnknown}
        assert took_s < TIMEOUT_MS / 1000 + SLACK_S + delay.s


async def test_a_verb_that_was_sent_is_unknown_and_not_unsent(server: EmbeddedServer) -> None:
    async with Engine(server.url, durability="memory", timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        order = (await asked_on(lambda: buy(engine, sale, "first"))).order
        assert order is not None
        with Stopped(server), pytest.raises(OutcomeUnknown):
            await engine.confirm(sale, order.id, "pay")
        again = await asked_on(lambda: engine.confirm(sale, order.id, "pay"))
        assert again.status in (Status.DONE, Status.ALREADY)


async def test_a_verbs_late_reply_answers_nobody_else(server: EmbeddedServer) -> None:
    async with Engine(server.url, durability="memory", timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await asked_on(lambda: open_sale(engine))
        one = (await asked_on(lambda: buy(engine, sale, "one"))).order
        two = (await asked_on(lambda: buy(engine, sale, "two"))).order
        assert one is not None
        assert two is not None
        with Stopped(server):
            late = await answers_of(engine.confirm(sale, one.id, f"pay{n}") for n in range(5))
        assert Outcome not in {type(answer) for answer in late}
        for _ in range(10):
            found = await asked_on(lambda: engine.order(sale, two.id))
            assert found is not None
            assert found.id == two.id
            assert found.buyer == "btwo"
