"""The lane when connections break, replies hang, and the server stops, dies and comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, Overloaded, RedisUnavailable
from seckill.order import Outcome, order_id
from seckill.status import Status
from tests.faults.checker import observe, state_problems
from tests.faults.proxy import Command, Fate, Proxy
from tests.faults.sales import open_sale

TIMEOUT_MS = 400
# What a loaded machine may add to a timeout.
SLACK_S = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("lane-faults")) as running:
        yield running


def socket_of(server: EmbeddedServer) -> str:
    return server.url.removeprefix("unix://")


@pytest_asyncio.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[Proxy]:
    async with Proxy(socket_of(server)) as listening:
        yield listening


async def buy(engine: Engine, sale: str, buyer: object, sku: str = "plain") -> Outcome:
    return await engine.reserve(sale, f"b{buyer}", "k", {sku: 1})


async def buy_all(engine: Engine, sale: str, buyers: range) -> list[Outcome | BaseException]:
    return await asyncio.gather(*(buy(engine, sale, n) for n in buyers), return_exceptions=True)


def id_of(sale: str, buyer: object) -> str:
    return order_id(sale, f"b{buyer}", "k")


def held(server: EmbeddedServer, sale: str) -> set[str]:
    """The orders that exist, after a look at the whole sale."""
    seen = observe(server.url, sale)
    assert state_problems(seen) == []
    return set(seen.orders)


def statuses(outcomes: list[Outcome | BaseException]) -> list[Status | type[BaseException]]:
    return [out.status if isinstance(out, Outcome) else type(out) for out in outcomes]


async def answered(proxy: Proxy, batches: int) -> list[Command]:
    """The lane's batches, once the server has answered all it got, and that many at least."""
    async with asyncio.timeout(5):
        while True:
            found = [command for command in proxy.passed if command.order_ids]
            if len(found) >= batches and all(command.reply is not None for command in found):
                return found
            await asyncio.sleep(0.005)


class Stopped:
    """The server stands still, as in a long page fault or a paused virtual machine."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._pid = server.pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


# -- connections that break ------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [Fate.CUT_BEFORE, Fate.CUT_HALF, Fate.CUT_AFTER])
async def test_a_cut_batch_is_sent_again(
    server: EmbeddedServer, proxy: Proxy, fate: Fate
) -> None:
    """Whether or not the server has seen it, each caller gets one answer and each order is one."""
    async with Engine(proxy.url) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        cut = 0

        async def cut_twice(command: Command) -> Fate:
            nonlocal cut
            if command.order_ids and cut < 2:
                cut += 1
                return fate
            return Fate.PASS

        proxy.judge = cut_twice
        outcomes = await buy_all(engine, sale, range(100))
        assert cut == 2
        # After a cut behind the server, the answer tells that the order is there already.
        executed = fate is Fate.CUT_AFTER
        assert set(statuses(outcomes)) <= {Status.CREATED, Status.EXISTS}
        assert (Status.EXISTS in statuses(outcomes)) == executed
        orders = [out.order for out in outcomes if isinstance(out, Outcome)]
        assert [order.id for order in orders if order] == [id_of(sale, n) for n in range(100)]
        assert len(held(server, sale)) == 101


async def test_cuts_at_random_harm_nobody(server: EmbeddedServer, proxy: Proxy) -> None:
    """Half of all batches are cut somewhere, under load, with more buyers than units."""
    rng = random.Random(20)
    async with Engine(proxy.url, timeout_ms=20_000) as engine:
        sale = await open_sale(engine, scarce=150)
        await buy(engine, sale, "first")
        fates = [Fate.CUT_BEFORE, Fate.CUT_HALF, Fate.CUT_AFTER, *[Fate.PASS] * 3]

        async def judge(command: Command) -> Fate:
            return rng.choice(fates) if command.order_ids else Fate.PASS

        proxy.judge = judge

        async def shop(name: int) -> list[Outcome | BaseException]:
            return [
                await buy(engine, sale, f"{name}-{n}", "scarce" if n % 2 else "plain")
                for n in range(10)
            ]

        outcomes = [out for shopped in await asyncio.gather(*map(shop, range(40)))
                    for out in shopped]
        assert set(statuses(outcomes)) <= {Status.CREATED, Status.EXISTS, Status.SOLD_OUT}
        accepted = {out.order.id for out in outcomes if isinstance(out, Outcome) and out.order}
        assert len(accepted) == 350
        assert held(server, sale) == accepted | {id_of(sale, "first")}


async def test_a_lane_waits_for_a_server_that_is_away(server: EmbeddedServer, proxy: Proxy) -> None:
    """Connections are refused for a while; then the same batch goes through."""
    async with Engine(proxy.url) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.target = "/nowhere"

        async def cut(command: Command) -> Fate:
            return Fate.CUT_BEFORE

        proxy.judge = cut
        calls = asyncio.ensure_future(buy_all(engine, sale, range(50)))
        await asyncio.sleep(0.3)
        links = proxy.links
        assert not calls.done()
        proxy.target = socket_of(server)

        async def pass_on(command: Command) -> Fate:
            return Fate.PASS

        proxy.judge = pass_on
        assert set(statuses(await calls)) == {Status.CREATED}
        assert 4 <= links < 60, "it tries again soon, and not without a pause"
        assert len(held(server, sale)) == 51


async def test_the_server_is_killed_and_restarted_under_load(tmp_path: Path) -> None:
    """Callers whose timeout is longer than the outage see no error."""
    with EmbeddedServer(tmp_path) as server:
        async with (
            Proxy(socket_of(server)) as proxy,
            Engine(proxy.url, timeout_ms=20_000) as engine,
        ):
            sale = await open_sale(engine)
            stop = False
            outcomes: list[Outcome] = []

            async def shop(name: int) -> None:
                number = 0
                while not stop:
                    number += 1
                    outcomes.append(await buy(engine, sale, f"{name}-{number}"))

            shoppers = [asyncio.ensure_future(shop(name)) for name in range(40)]
            for _ in range(3):
                await asyncio.sleep(0.2)
                server.kill()
                server.start()
                proxy.target = socket_of(server)
            await asyncio.sleep(0.2)
            stop = True
            await asyncio.gather(*shoppers)
            orders = [out.order.id for out in outcomes if out.order]
            assert len(orders) == len(outcomes) > 100
            assert len(set(orders)) == len(orders)
            assert held(server, sale) == set(orders)


# -- answers that come late ------------------------------------------------------------------------


async def test_a_stuck_server_makes_outcomes_unknown_and_executes_nothing_later(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        told_s: list[float] = []

        async def impatient(buyer: int) -> None:
            began = monotonic()
            with pytest.raises(OutcomeUnknown):
                await buy(engine, sale, buyer)
            told_s.append(monotonic() - began)

        with Stopped(server):
            # In two waves, so that batches of both slots and those who wait are told in time.
            calls = [asyncio.ensure_future(impatient(n)) for n in range(60)]
            await asyncio.sleep(0.1)
            calls += [asyncio.ensure_future(impatient(n)) for n in range(60, 100)]
            await asyncio.gather(*calls)
        assert min(told_s) > TIMEOUT_MS / 1000 - 0.05
        assert max(told_s) < TIMEOUT_MS / 1000 + SLACK_S
        # The server now finds all that was sent to it, and must refuse it.
        for command in await answered(proxy, 2):
            if command.order_ids != [id_of(sale, "first")]:
                assert set(command.reply[2:]) == {Status.TOO_LATE}
        assert held(server, sale) == {id_of(sale, "first")}
        # Whoever asks again under the same key gets a fresh decision.
        again = await buy_all(engine, sale, range(100))
        assert set(statuses(again)) == {Status.CREATED}


async def test_a_batch_delivered_after_its_deadline_is_refused(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """The network holds the bytes until the callers have been told, and delivers them at once."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        told = asyncio.Event()

        async def hold(command: Command) -> Fate:
            if command.order_ids:
                await told.wait()
            return Fate.PASS

        proxy.judge = hold
        outcomes = await buy_all(engine, sale, range(20))
        assert set(statuses(outcomes)) == {OutcomeUnknown}
        told.set()
        for command in (await answered(proxy, 2))[1:]:
            assert set(command.reply[2:]) == {Status.TOO_LATE}
        assert held(server, sale) == {id_of(sale, "first")}


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.2])
async def test_not_after_is_never_later_than_the_callers_patience(
    server: EmbeddedServer, proxy: Proxy, delay_s: float
) -> None:
    """However long replies take, the lane thinks the server's clock to be early, never late. Server
    and test share one clock here, so the two can be compared."""
    async with Engine(proxy.url, timeout_ms=1_000) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.reply_delay_s = delay_s
        for round_ in range(5):
            began_ms = time.time() * 1000
            buyers = range(10 * round_, 10 * round_ + 10)
            outcomes = await buy_all(engine, sale, buyers)
            assert set(statuses(outcomes)) == {Status.CREATED}
            batch = next(c for c in reversed(proxy.passed) if id_of(sale, buyers[0]) in c.order_ids)
            # All were asked within a few milliseconds from began_ms on.
            for not_after_ms in batch.not_after_ms:
                assert not_after_ms <= began_ms + 1_000 + 15
                assert not_after_ms >= began_ms + 1_000 - 1000 * delay_s - 100


async def test_an_order_is_good_for_its_time_on_a_slow_line(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """Replies take three quarters of the callers' patience: no order is called late for that."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.reply_delay_s = 0.75 * TIMEOUT_MS / 1000
        for buyer in range(3):
            assert (await buy(engine, sale, buyer)).status is Status.CREATED


async def test_an_old_connection_never_answers_a_new_batch(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """The reply to a batch that was given up lies in the socket when the next batch is sent."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS) as engine:
        sale = await open_sale(engine, scarce=1)
        await buy(engine, sale, "first")
        proxy.replies_open.clear()
        with pytest.raises(OutcomeUnknown):
            await buy(engine, sale, "slow", "scarce")
        # It was executed, in time: the unit is gone, and CREATED waits behind the closed door.
        assert id_of(sale, "slow") in held(server, sale)
        call = asyncio.ensure_future(buy(engine, sale, "next", "scarce"))
        await asyncio.sleep(0.02)
        proxy.replies_open.set()
        assert (await call).status is Status.SOLD_OUT
        again = await buy(engine, sale, "slow", "scarce")
        assert again.status is Status.EXISTS
        assert held(server, sale) == {id_of(sale, "first"), id_of(sale, "slow")}


async def test_those_who_waited_in_vain_were_never_sent(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    """Both slots hang. Whoever could not even be sent is told so, and not that it is unknown."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, batch_max=10) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")

        async def hold(command: Command) -> Fate:
            if command.order_ids:
                await asyncio.sleep(2 * TIMEOUT_MS / 1000)
            return Fate.PASS

        proxy.judge = hold
        began = monotonic()
        outcomes = await buy_all(engine, sale, range(100))
        assert monotonic() - began < TIMEOUT_MS / 1000 + SLACK_S
        assert set(statuses(outcomes)) == {OutcomeUnknown, Overloaded}
        sent = {order for command in proxy.seen for order in command.order_ids}
        for buyer, status in enumerate(statuses(outcomes)):
            assert (status is OutcomeUnknown) == (id_of(sale, buyer) in sent)


async def test_aclose_under_load_with_a_stuck_server_answers_everything(
    server: EmbeddedServer, proxy: Proxy
) -> None:
    engine = Engine(proxy.url, timeout_ms=TIMEOUT_MS, batch_max=10)
    await engine.start()
    sale = await open_sale(engine)
    await buy(engine, sale, "first")
    with Stopped(server):
        calls = [asyncio.ensure_future(buy(engine, sale, n)) for n in range(100)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await engine.aclose()
        done, unanswered = await asyncio.wait(calls, timeout=0)
        assert not unanswered
        assert {type(call.exception()) for call in done} <= {OutcomeUnknown, Overloaded}
    await asyncio.sleep(0.1)
    assert held(server, sale) == {id_of(sale, "first")}


# -- the first call, and the other verbs -----------------------------------------------------------


async def test_many_first_calls_wait_no_longer_than_one(server: EmbeddedServer) -> None:
    """The lane is opened by the first order; on a stuck server nobody queues up to try it."""
    async with Engine(server.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        await engine.sale(sale)
        with Stopped(server):
            began = monotonic()
            outcomes = await buy_all(engine, sale, range(6))
            took_s = monotonic() - began
        assert set(statuses(outcomes)) <= {RedisUnavailable, OutcomeUnknown}
        assert took_s < TIMEOUT_MS / 1000 + SLACK_S


async def test_a_verb_that_was_sent_is_unknown_and_not_unsent(server: EmbeddedServer) -> None:
    async with Engine(server.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        order = (await buy(engine, sale, "first")).order
        assert order is not None
        with Stopped(server), pytest.raises(OutcomeUnknown):
            await engine.confirm(sale, order.id, "pay")
        again = await engine.confirm(sale, order.id, "pay")
        assert again.status in (Status.DONE, Status.ALREADY)


async def test_a_verbs_late_reply_answers_nobody_else(server: EmbeddedServer) -> None:
    async with Engine(server.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        one, two = [(await buy(engine, sale, buyer)).order for buyer in ("one", "two")]
        assert one is not None
        assert two is not None
        with Stopped(server):
            late = await asyncio.gather(
                *(engine.confirm(sale, one.id, f"pay{n}") for n in range(5)), return_exceptions=True
            )
        assert Outcome not in {type(answer) for answer in late}
        for _ in range(10):
            found = await engine.order(sale, two.id)
            assert found is not None
            assert found.id == two.id
            assert found.buyer == "btwo"
