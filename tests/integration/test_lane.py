"""The lane on a healthy server: batches, bounds, cancelled callers, error replies, the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from time import monotonic

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import EngineClosed, InvalidInput, Overloaded, ScriptFailed, ServerFull
from seckill.keys import shard_keys
from seckill.order import Outcome
from seckill.status import Status
from tests.faults.proxy import Command, Fate, Proxy
from tests.faults.sales import Answers, answers_of, buy, buy_all, held, id_of, open_sale, statuses
from tests.support import rewind

ONE = {"plain": 1}


# The disk of a busy machine may take its time.
PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("lane")) as running:
        yield running


class Gate:
    """A judge that holds every batch until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self._arrivals = asyncio.Semaphore(0)

    async def __call__(self, command: Command) -> Fate:
        if command.order_ids:
            self._arrivals.release()
            await self.opened.wait()
        return Fate.PASS

    async def reached(self) -> None:
        """Waits until one more batch stands before the gate."""
        await asyncio.wait_for(self._arrivals.acquire(), 30)


async def occupy_slots(gate: Gate, engine: Engine, sale: str) -> list[asyncio.Future[Outcome]]:
    """Two calls of which each holds one slot of the lane, until the gate is opened."""
    calls: list[asyncio.Future[Outcome]] = []
    for slot in range(2):
        calls.append(asyncio.ensure_future(buy(engine, sale, f"slot{slot}")))
        await gate.reached()
    return calls


# -- batches ---------------------------------------------------------------------------------------


async def test_a_lone_caller_waits_for_nobody(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        for buyer in range(20):
            assert (await buy(engine, sale, buyer)).status is Status.CREATED
        assert [len(batch) for batch in proxy.batches()] == [1] * 20


async def test_a_lone_caller_is_as_fast_as_the_bare_call(server: EmbeddedServer) -> None:
    """Against a timer hidden in the lane: the quickest of many is not far from a bare write."""
    async with Engine(server.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        client = engine._calls.client_of("bare")
        lane_s, bare_s = [], []
        # On a busy machine it takes a while until nobody has come between.
        for buyer in range(5_000):
            began = monotonic()
            await buy(engine, sale, buyer)
            between = monotonic()
            await client.eval("return redis.call('INCR', KEYS[1])", 1, "bare")
            lane_s.append(between - began)
            bare_s.append(monotonic() - between)
            if buyer >= 100 and min(lane_s) < 2 * min(bare_s) + 0.001:
                return
        pytest.fail(f"at best {min(lane_s)} s, and the bare call {min(bare_s)} s")


async def test_batches_grow_under_load(server: EmbeddedServer) -> None:
    async with (
        Proxy(server.url) as proxy,
        Engine(proxy.url, timeout_ms=PATIENCE_MS, batch_max=100) as engine,
    ):
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.judge = gate = Gate()
        # While both slots are busy, whoever comes waits for the next batch.
        calls = await occupy_slots(gate, engine, sale)
        calls += [asyncio.ensure_future(buy(engine, sale, buyer)) for buyer in range(230)]
        await asyncio.sleep(0.01)
        gate.opened.set()
        assert set(statuses(await answers_of(calls))) == {Status.CREATED}
        sizes = [len(batch) for batch in proxy.batches()]
        assert sizes[:3] == [1, 1, 1]
        assert max(sizes) == 100, "batch_max is the most a batch has"
        assert len(sizes) <= 6
        assert len(held(server.url, sale)) == 233


async def test_a_burst_is_shared_by_both_slots(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.judge = gate = Gate()
        calls = [asyncio.ensure_future(buy(engine, sale, buyer)) for buyer in range(200)]
        await gate.reached()
        await gate.reached()
        gate.opened.set()
        await answers_of(calls)
        sizes = [len(batch) for batch in proxy.batches()]
        assert sizes == [1, 100, 100]
        assert len({command.link for command in proxy.seen if command.order_ids}) == 2


async def in_one_batch(
    proxy: Proxy, engine: Engine, sale: str, buyers: list[object], sku: str = "plain"
) -> Answers:
    """Two batches may be executed in any order; here both slots are busy while these come."""
    await buy(engine, sale, "first")
    proxy.judge = gate = Gate()
    before = await occupy_slots(gate, engine, sale)
    calls = [asyncio.ensure_future(buy(engine, sale, buyer, sku)) for buyer in buyers]
    await asyncio.sleep(0)
    gate.opened.set()
    outcomes = await answers_of(calls)
    await answers_of(before)
    assert [len(batch) for batch in proxy.batches()] == [1, 1, 1, len(buyers)]
    return outcomes


async def test_the_first_come_are_first_in_the_batch(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine, scarce=5)
        outcomes = await in_one_batch(proxy, engine, sale, [*range(20)], "scarce")
        assert statuses(outcomes) == [Status.CREATED] * 5 + [Status.SOLD_OUT] * 15


async def test_a_double_click_in_one_batch_is_one_order(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        outcomes = await in_one_batch(proxy, engine, sale, ["same"] * 10)
        assert statuses(outcomes) == [Status.CREATED] + [Status.EXISTS] * 9
        assert len(held(server.url, sale)) == 4


async def test_a_double_click_is_one_order(server: EmbeddedServer) -> None:
    """Also when it comes in two batches, of which any may be the first."""
    async with Engine(server.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        outcomes = await buy_all(engine, sale, ["same"] * 10)
        assert Counter(statuses(outcomes)) == {Status.CREATED: 1, Status.EXISTS: 9}
        assert len(held(server.url, sale)) == 1


# -- bounds and cancelled callers ------------------------------------------------------------------


async def test_a_full_lane_says_so_at_once_and_sends_nothing(server: EmbeddedServer) -> None:
    options = {"lane_depth": 4, "timeout_ms": 60_000}
    async with Proxy(server.url) as proxy, Engine(proxy.url, **options) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.judge = gate = Gate()
        calls = await occupy_slots(gate, engine, sale)
        calls += [asyncio.ensure_future(buy(engine, sale, f"waits{n}")) for n in range(4)]
        await asyncio.sleep(0)
        async with asyncio.timeout(40):
            for turned_away in range(20):
                with pytest.raises(Overloaded) as refusal:
                    await buy(engine, sale, f"away{turned_away}")
                assert refusal.value.retry_after_ms > 0
        gate.opened.set()
        assert set(statuses(await answers_of(calls))) == {Status.CREATED}
        sent = {order for command in proxy.seen for order in command.order_ids}
        away = {id_of(sale, f"away{n}") for n in range(20)}
        assert len(sent) == 7
        assert not away & sent
        # The lane has room again.
        assert (await buy(engine, sale, "away0")).status is Status.CREATED


async def test_a_cancelled_caller_does_not_harm_its_batch(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.judge = gate = Gate()
        calls = [asyncio.ensure_future(buy(engine, sale, buyer)) for buyer in range(8)]
        await gate.reached()
        for call in calls[::3]:
            call.cancel()
        await asyncio.sleep(0.01)
        gate.opened.set()
        for buyer, status in enumerate(statuses(await answers_of(calls))):
            assert status is (Status.CREATED if buyer % 3 else asyncio.CancelledError)
        # It was on its way, so the order exists, and whoever asks again gets it.
        again = await buy(engine, sale, 0)
        assert again.status is Status.EXISTS
        assert again.order is not None
        assert again.order.id in held(server.url, sale)


async def test_a_caller_cancelled_while_it_waits_is_never_sent(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.judge = gate = Gate()
        calls = await occupy_slots(gate, engine, sale)
        gone = asyncio.ensure_future(buy(engine, sale, "gone"))
        stays = asyncio.ensure_future(buy(engine, sale, "stays"))
        await asyncio.sleep(0.01)
        gone.cancel()
        gate.opened.set()
        assert set(statuses(await answers_of([stays, *calls]))) == {Status.CREATED}
        assert id_of(sale, "gone") not in held(server.url, sale)


# -- error replies ---------------------------------------------------------------------------------


async def test_a_full_server_refuses_the_whole_batch_at_once(server: EmbeddedServer) -> None:
    async with Engine(server.url, timeout_ms=60_000) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1mb")
            try:
                # There is nothing to wait for.
                async with asyncio.timeout(40):
                    outcomes = await buy_all(engine, sale, range(50))
            finally:
                client.config_set("maxmemory", "0")
        assert set(statuses(outcomes)) == {ServerFull}
        assert len(held(server.url, sale)) == 1
        assert (await buy(engine, sale, 0)).status is Status.CREATED


@pytest.mark.parametrize("name", ["orders", "buyers", "holds", "events", "stock"])
async def test_a_damaged_key_fails_its_batch_and_the_lane_goes_on(
    server: EmbeddedServer, name: str
) -> None:
    async with Engine(server.url, timeout_ms=60_000) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        key = next(key for key in shard_keys(sale) if key.endswith(f":{name}"))
        with redis.Redis.from_url(server.url) as client:
            client.rename(key, "saved")
            client.set(key, "damaged")
            async with asyncio.timeout(40):
                outcomes = await buy_all(engine, sale, range(50))
            client.rename("saved", key)
        assert set(statuses(outcomes)) == {ScriptFailed}
        assert "WRONGTYPE" in str(outcomes[0])
        assert len(held(server.url, sale)) == 1, "a batch that failed has written nothing"
        again = await buy_all(engine, sale, range(50))
        assert set(statuses(again)) == {Status.CREATED}
        assert len(held(server.url, sale)) == 51


async def test_bad_input_reaches_no_batch(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        for items in ({}, {"plain": 0}, {"plain": -1}, {"plain": 10_001}):
            with pytest.raises(InvalidInput):
                await engine.reserve(sale, "b", "k", items)
        assert len(proxy.batches()) == 1


async def test_script_flush_is_not_noticed(server: EmbeddedServer) -> None:
    async with Engine(server.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        created = 0
        with redis.Redis.from_url(server.url) as client:
            # Between batches, and then from somewhere in the middle of them.
            for buyer in range(10):
                client.script_flush()
                created += (await buy(engine, sale, buyer)).status is Status.CREATED
            for wave in range(10):
                calls = [asyncio.ensure_future(buy(engine, sale, f"{wave}-{n}")) for n in range(80)]
                for _ in range(wave):
                    await asyncio.sleep(0)
                client.script_flush()
                created += statuses(await answers_of(calls)).count(Status.CREATED)
        assert created == 810
        assert len(held(server.url, sale)) == 810


async def test_script_flush_just_before_the_batch_again_and_again(server: EmbeddedServer) -> None:
    """Loading the script and calling it are two commands, and a flush may come between them."""
    async with Proxy(server.url) as proxy, Engine(proxy.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        with redis.Redis.from_url(server.url) as client:

            async def flush_first(command: Command) -> Fate:
                if command.order_ids:
                    client.script_flush()
                return Fate.PASS

            proxy.judge = flush_first
            assert (await buy(engine, sale, "second")).status is Status.CREATED
        assert len(held(server.url, sale)) == 2


# -- the server's time and the end -----------------------------------------------------------------


async def test_a_sale_made_anew_sells_at_once(server: EmbeddedServer) -> None:
    """A refusal of an unknown sale carries no time, so the lane must not learn from it."""
    async with Engine(server.url, timeout_ms=PATIENCE_MS) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        definition = await engine.sale(sale)
        with redis.Redis.from_url(server.url) as client:
            client.delete(*shard_keys(sale))
        assert (await buy(engine, sale, "nobody")).status is Status.UNKNOWN_SALE
        assert (await engine.create(definition)).status is Status.CREATED
        assert (await engine.open(sale)).ok
        assert (await buy(engine, sale, "again")).status is Status.CREATED


async def test_a_sale_resumed_after_a_clock_jump_sells_at_once(server: EmbeddedServer) -> None:
    """The refusal for the jump carries the sale's old time, which is not the server's."""
    async with Engine(server.url, timeout_ms=PATIENCE_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        with redis.Redis.from_url(server.url) as client:
            rewind(client, sale, 700_000)
            assert (await buy(engine, sale, "jumped")).status is Status.PAUSED
        assert (await engine.resume(sale)).ok
        assert (await buy(engine, sale, "again")).status is Status.CREATED


async def test_aclose_answers_everything(server: EmbeddedServer) -> None:
    engine = Engine(server.url, timeout_ms=PATIENCE_MS)
    await engine.start()
    sale = await open_sale(engine)
    await buy(engine, sale, "first")
    calls = [asyncio.ensure_future(buy(engine, sale, buyer)) for buyer in range(1_000)]
    await asyncio.sleep(0)
    await engine.aclose()
    done, open_calls = await asyncio.wait(calls, timeout=0)
    assert not open_calls
    assert {call.result().status for call in done} == {Status.CREATED}
    assert len(held(server.url, sale)) == 1_001
    with pytest.raises(EngineClosed):
        await buy(engine, sale, "late")


async def test_aclose_while_the_lane_opens_leaves_no_call_open(server: EmbeddedServer) -> None:
    async with Proxy(server.url) as proxy:
        engine = Engine(proxy.url, timeout_ms=PATIENCE_MS, sweep_ms=0)
        await engine.start()
        sale = await open_sale(engine)
        opening = asyncio.Event()

        async def slowly(command: Command) -> Fate:
            if command.args[0] == b"TIME":
                opening.set()
                await asyncio.sleep(0.05)
            return Fate.PASS

        proxy.judge = slowly
        before = asyncio.all_tasks()
        call = asyncio.ensure_future(buy(engine, sale, "first"))
        await opening.wait()
        await engine.aclose()
        outcome = (await answers_of([call]))[0]
        if isinstance(outcome, Outcome):
            assert id_of(sale, "first") in held(server.url, sale)
        else:
            assert isinstance(outcome, EngineClosed)
            assert held(server.url, sale) == set()
        await asyncio.sleep(0.05)
        left = {
            task
            for task in asyncio.all_tasks() - before
            if "Lane" in getattr(task.get_coro(), "__qualname__", "")
        }
        for task in left:
            task.cancel()
        assert not left, "a lane that opened during aclose lives on"
