"""The lane when connections break, and when the server is not itself, dies and comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import OutcomeUnknown
from seckill.keys import shard_keys
from seckill.order import Outcome
from seckill.status import Status
from tests.faults.proxy import Command, Fate, Proxy
from tests.faults.sales import buy, buy_all, held, id_of, open_sale, statuses


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("lane-faults")) as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.url) as listening:
        yield listening


@pytest.mark.parametrize("fate", [Fate.CUT_BEFORE, Fate.CUT_HALF, Fate.CUT_AFTER])
async def test_a_cut_batch_is_sent_again(server: EmbeddedServer, proxy: Proxy, fate: Fate) -> None:
    """Whether or not the server has seen it, each caller gets one answer and each order is one."""
    async with Engine(proxy.url, timeout_ms=20_000) as engine:
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
        assert len(held(server.url, sale)) == 101


@pytest.mark.parametrize("fate", [Fate.CUT_BEFORE, Fate.CUT_AFTER])
@pytest.mark.parametrize("verb", ["reserve", "release"])
async def test_a_sale_that_is_fenced_before_the_second_attempt(
    server: EmbeddedServer, proxy: Proxy, fate: Fate, verb: str
) -> None:
    """Nobody is told for certain that nothing was done, for the first attempt may have done it."""
    async with Engine(proxy.url, timeout_ms=20_000) as engine:
        sale = await open_sale(engine)
        order = (await buy(engine, sale, "first")).order
        assert order is not None
        began = False

        async def cut_and_fence(command: Command) -> Fate:
            nonlocal began
            is_it = bool(command.order_ids) or order.id.encode() in command.args
            if is_it and not began:
                began = True
                return fate
            if is_it:
                fenced = {"state": "fenced", "fenced_state": "open", "reason": "a test"}
                with redis.Redis.from_url(server.url) as client:
                    client.hset(shard_keys(sale)[0], mapping=fenced)
            return Fate.PASS

        proxy.judge = cut_and_fence
        if verb == "reserve" and fate is Fate.CUT_AFTER:
            # A known order is found on a fenced server, too.
            assert (await buy(engine, sale, "second")).status is Status.EXISTS
        elif verb == "reserve":
            with pytest.raises(OutcomeUnknown, match="stopped"):
                await buy(engine, sale, "second")
        else:
            with pytest.raises(OutcomeUnknown, match="stopped"):
                await engine.release(sale, order.id)
        # Whoever asks only now is told that it is.
        assert (await engine.release(sale, order.id)).status is Status.FENCED
        assert (await buy(engine, sale, "third")).status is Status.FENCED


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

        outcomes: list[Outcome | BaseException] = []

        async def shop(name: int) -> None:
            for number in range(10):
                sku = "scarce" if number % 2 else "plain"
                outcomes.append(await buy(engine, sale, f"{name}-{number}", sku))

        async with asyncio.timeout(30):
            await asyncio.gather(*map(shop, range(40)))
        assert set(statuses(outcomes)) <= {Status.CREATED, Status.EXISTS, Status.SOLD_OUT}
        accepted = {out.order.id for out in outcomes if isinstance(out, Outcome) and out.order}
        assert len(accepted) == 350
        assert held(server.url, sale) == accepted | {id_of(sale, "first")}


@pytest.mark.parametrize(
    "words",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "MOVED 3999 127.0.0.1:6381",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Errors writing to the AOF file: No space left on device",
    ],
    ids=lambda words: words.partition(" ")[0],
)
async def test_a_server_that_is_not_itself_is_asked_again(
    server: EmbeddedServer, proxy: Proxy, words: str
) -> None:
    async with Engine(proxy.url, timeout_ms=20_000) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        refused = 0

        async def refuse_twice(command: Command) -> Fate | bytes:
            nonlocal refused
            if command.order_ids and refused < 2:
                refused += 1
                return f"-{words}\r\n".encode()
            return Fate.PASS

        proxy.judge = refuse_twice
        outcomes = await buy_all(engine, sale, range(20))
        assert set(statuses(outcomes)) == {Status.CREATED}
        assert refused == 2
        assert len(held(server.url, sale)) == 21


async def test_a_lane_waits_for_a_server_that_is_away(server: EmbeddedServer, proxy: Proxy) -> None:
    """Connections are refused for a while; then the same batch goes through."""
    async with Engine(proxy.url, timeout_ms=30_000) as engine:
        sale = await open_sale(engine)
        await buy(engine, sale, "first")
        proxy.target = "unix:///nowhere"

        async def cut(command: Command) -> Fate:
            return Fate.CUT_BEFORE

        proxy.judge = cut
        calls = asyncio.ensure_future(buy_all(engine, sale, range(50)))
        began = monotonic()
        async with asyncio.timeout(20):
            while proxy.links < 4:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        links, took_s = proxy.links, monotonic() - began
        assert not calls.done()
        proxy.target = server.url

        async def pass_on(command: Command) -> Fate:
            return Fate.PASS

        proxy.judge = pass_on
        assert set(statuses(await calls)) == {Status.CREATED}
        assert links < 200 * took_s, "it tries again soon, and not without a pause"
        assert len(held(server.url, sale)) == 51


async def test_the_first_order_of_all_waits_as_well(server: EmbeddedServer, proxy: Proxy) -> None:
    """The lane is opened by its first order, which is no reason to give up sooner."""
    async with Engine(proxy.url, sweep_ms=0, timeout_ms=30_000) as engine:
        sale = await open_sale(engine)
        await engine.sale(sale)
        proxy.target = "unix:///nowhere"
        calls = asyncio.ensure_future(buy_all(engine, sale, range(5)))
        await asyncio.sleep(0.2)
        proxy.target = server.url
        assert statuses(await calls) == [Status.CREATED] * 5


async def more(outcomes: list[Outcome], count: int) -> None:
    """Waits until there are so many more than there are now."""
    goal = len(outcomes) + count
    async with asyncio.timeout(30):
        while len(outcomes) < goal:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_the_server_is_killed_and_restarted_under_load(tmp_path: Path) -> None:
    """Callers whose timeout is longer than the outage see no error."""
    with EmbeddedServer(tmp_path) as server:
        async with (
            Proxy(server.url) as proxy,
            Engine(proxy.url, timeout_ms=20_000) as engine,
        ):
            sale = await open_sale(engine)
            await buy(engine, sale, "first")
            stop = False
            outcomes: list[Outcome] = []

            async def shop(name: int) -> None:
                number = 0
                while not stop:
                    number += 1
                    outcomes.append(await buy(engine, sale, f"{name}-{number}"))

            shoppers = [asyncio.ensure_future(shop(name)) for name in range(40)]
            for _ in range(3):
                await more(outcomes, 100)
                server.kill()
                server.start()
                proxy.target = server.url
            await more(outcomes, 100)
            stop = True
            async with asyncio.timeout(30):
                await asyncio.gather(*shoppers)
            orders = [out.order.id for out in outcomes if out.order]
            assert len(orders) == len(outcomes) > 100
            assert len(set(orders)) == len(orders)
            assert held(server.url, sale) == {id_of(sale, "first"), *orders}
