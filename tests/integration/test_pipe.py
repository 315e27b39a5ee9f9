"""Calls that share two connections: many at once, cut, refused, forgotten, and never sent."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
import redis

from seckill.calls import CONNECTIONS
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import (
    EngineClosed,
    OutcomeUnknown,
    RedisUnavailable,
    ScriptFailed,
)
from seckill.keys import shard_keys
from seckill.order import Order, Outcome, State
from seckill.pipe import SLOTS
from seckill.scripts import script
from seckill.status import Status
from tests.faults.proxy import Command, Fate, Proxy
from tests.faults.sales import buy_all, open_sale, statuses

BEGIN = (script("begin_payment").sha.encode(), script("begin_payment").source.encode())
# Enough for a machine that has no time, and what is waited for where nobody is to answer.
TIMEOUT_MS = 30_000
SHORT_MS = 1_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("pipe")) as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.url) as listening:
        yield listening


def is_begin(command: Command) -> bool:
    return command.args[0] in (b"EVALSHA", b"EVAL") and command.args[1] in BEGIN


def begun_by(commands: list[Command]) -> list[str]:
    """The orders whose payment these commands begin. Keys come before them, and the format."""
    return [
        command.args[3 + int(command.args[2]) + 1].decode()
        for command in commands
        if is_begin(command)
    ]


async def orders_of(engine: Engine, sale: str, count: int) -> list[str]:
    outcomes = await buy_all(engine, sale, range(count))
    return [out.order.id for out in outcomes if isinstance(out, Outcome) and out.order]


async def begin_all(engine: Engine, sale: str, orders: list[str]) -> list[Outcome | BaseException]:
    return await asyncio.gather(
        *(engine.begin_payment(sale, order) for order in orders), return_exceptions=True
    )


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while not true():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.005)


async def test_many_wait_no_longer_than_one(proxy: Proxy) -> None:
    """Where answers take their time, all calls are on their way before the first answer is back."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        orders = await orders_of(engine, sale, 200)
        # Which takes a connection of the two now and then.
        await engine._roll.aclose()
        pipe = engine._calls.pipe(sale)
        await until(lambda: len(pipe._idle) == 2)
        proxy.replies_open.clear()
        calls = asyncio.ensure_future(begin_all(engine, sale, orders))
        # Whoever comes first leaves alone; all others leave with the second connection.
        await until(lambda: len(begun_by(proxy.passed)) == len(orders))
        assert not calls.done()
        proxy.replies_open.set()
        assert Counter(statuses(await calls)) == {Status.DONE: 200}


async def test_who_was_never_sent_is_told_so(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers, and there is room for ten calls a connection: the others are certain."""
    monkeypatch.setattr("seckill.pipe.BATCH_MAX", 10)
    async with (
        Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as patient,
        Engine(proxy.url, timeout_ms=SHORT_MS, sweep_ms=0) as engine,
    ):
        sale = await open_sale(patient)
        orders = await orders_of(patient, sale, 100)
        # Both connections are made, so that what hangs are the calls.
        early, orders = orders[:20], orders[20:]
        await begin_all(engine, sale, early)
        proxy.replies_open.clear()
        # A machine that stands still for their whole patience has sent nothing: once more, please.
        told: dict[str, Status | type[BaseException]] = {}
        while OutcomeUnknown not in told.values():
            told = dict(zip(orders, statuses(await begin_all(engine, sale, orders)), strict=True))
        assert set(told.values()) == {OutcomeUnknown, RedisUnavailable}
        assert Counter(told.values())[OutcomeUnknown] <= SLOTS * 10
        sure = {order for order, said in told.items() if said is RedisUnavailable}
        assert not sure & set(begun_by(proxy.seen))
        proxy.replies_open.set()
        again = await begin_all(patient, sale, orders)
        assert set(statuses(again)) <= {Status.DONE, Status.ALREADY}


async def test_a_call_without_a_connection_of_the_pool_was_never_sent(proxy: Proxy) -> None:
    async with Engine(proxy.url, timeout_ms=SHORT_MS, sweep_ms=0) as engine:
        calls = engine._calls
        client = calls.client_of("one")

        async def ask(names: list[str]) -> list[Any]:
            return await asyncio.gather(
                *(calls.attempt(lambda name=name: client.get(name)) for name in names),
                return_exceptions=True,
            )

        await ask([f"early-{n}" for n in range(CONNECTIONS)])
        proxy.replies_open.clear()
        names = [f"late-{n}" for n in range(2 * CONNECTIONS)]
        told: dict[str, Any] = {}
        while OutcomeUnknown not in told.values():
            told = dict(zip(names, statuses(await ask(names)), strict=True))
        assert set(told.values()) == {OutcomeUnknown, RedisUnavailable}
        assert Counter(told.values())[OutcomeUnknown] <= CONNECTIONS
        sure = {name for name, said in told.items() if said is RedisUnavailable}
        assert not sure & {command.args[-1].decode() for command in proxy.seen}
        proxy.replies_open.set()
        assert await ask(["again"]) == [None]


@pytest.mark.parametrize("fate", [Fate.CUT_BEFORE, Fate.CUT_HALF, Fate.CUT_AFTER])
async def test_a_cut_call_is_sent_again(proxy: Proxy, fate: Fate) -> None:
    """And so are all that were on that connection, each to one answer of its own."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        orders = await orders_of(engine, sale, 60)
        cut = 0

        async def cut_some(command: Command) -> Fate:
            nonlocal cut
            if is_begin(command) and cut < 3 and len(begun_by(proxy.seen)) % 20 == 0:
                cut += 1
                return fate
            return Fate.PASS

        proxy.judge = cut_some
        outcomes = await begin_all(engine, sale, orders)
        assert cut == 3
        assert set(statuses(outcomes)) <= {Status.DONE, Status.ALREADY}
        shown = [out.order.id for out in outcomes if isinstance(out, Outcome) and out.order]
        assert shown == orders, "each caller has the answer to its own call"


async def test_an_error_is_one_callers_alone(proxy: Proxy, server: EmbeddedServer) -> None:
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale, broken = await open_sale(engine), await open_sale(engine)
        orders = await orders_of(engine, sale, 20)
        (bad,) = await orders_of(engine, broken, 1)
        with redis.Redis.from_url(server.url) as client:
            client.delete(shard_keys(broken)[3])
            client.set(shard_keys(broken)[3], "no hash")
        links = proxy.links
        good, failed = await asyncio.gather(
            begin_all(engine, sale, orders),
            asyncio.gather(engine.begin_payment(broken, bad), return_exceptions=True),
        )
        assert Counter(statuses(good)) == {Status.DONE: 20}
        assert [type(error) for error in failed] == [ScriptFailed]
        assert proxy.links <= links + SLOTS, "nobody has hung up"


async def test_a_script_is_told_once_to_all_who_wait(proxy: Proxy, server: EmbeddedServer) -> None:
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        orders = await orders_of(engine, sale, 100)
        with redis.Redis.from_url(server.url) as client:
            client.script_flush()
        outcomes = await begin_all(engine, sale, orders)
        assert Counter(statuses(outcomes)) == {Status.DONE: 100}
        with_source = [c for c in proxy.passed if is_begin(c) and c.args[0] == b"EVAL"]
        assert 1 <= len(with_source) <= SLOTS


async def test_a_script_that_is_forgotten_again_and_again(proxy: Proxy) -> None:
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        (order,) = await orders_of(engine, sale, 1)
        forgotten = 0

        async def forget(command: Command) -> Fate | bytes:
            nonlocal forgotten
            if is_begin(command) and forgotten < 2:
                forgotten += 1
                return b"-NOSCRIPT No matching script.\r\n"
            return Fate.PASS

        proxy.judge = forget
        assert (await engine.begin_payment(sale, order)).status is Status.DONE
        assert [c.args[0] for c in proxy.seen if is_begin(c)] == [b"EVALSHA", b"EVAL", b"EVAL"]


async def test_a_server_that_is_no_master_any_more_is_left(proxy: Proxy) -> None:
    """What stands in front of it may lead to another one by now."""
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        (order,) = await orders_of(engine, sale, 1)
        links: list[int] = []

        async def demoted(command: Command) -> Fate | bytes:
            if is_begin(command):
                links.append(command.link)
                if len(links) == 1:
                    return b"-READONLY You can't write against a read only replica.\r\n"
            return Fate.PASS

        proxy.judge = demoted
        assert (await engine.begin_payment(sale, order)).status is Status.DONE
        assert len(set(links)) == 2


async def test_who_goes_away_harms_nobody(proxy: Proxy) -> None:
    async with Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0) as engine:
        sale = await open_sale(engine)
        orders = await orders_of(engine, sale, 40)
        proxy.replies_open.clear()
        calls = [asyncio.ensure_future(engine.begin_payment(sale, order)) for order in orders]
        await until(lambda: len(begun_by(proxy.passed)) == len(orders))
        for call in calls[::2]:
            call.cancel()
        proxy.replies_open.set()
        answers = await asyncio.gather(*calls[1::2])
        assert [out.order.id for out in answers if out.order] == orders[1::2]


async def test_a_connection_that_was_closed_meanwhile_is_no_doubt(tmp_path: Any) -> None:
    """The server ended between two calls: the second was certainly not sent."""
    with EmbeddedServer(tmp_path / "data") as server:
        engine = Engine(server.url, timeout_ms=SHORT_MS, sweep_ms=0)
        await engine.start()
        try:
            sale = await open_sale(engine)
            (order,) = await orders_of(engine, sale, 1)
            assert (await engine.begin_payment(sale, order)).status is Status.DONE
            server.stop()
            await asyncio.sleep(0)
            with pytest.raises(RedisUnavailable):
                await engine.confirm(sale, order, "pay")
        finally:
            await engine.aclose()


async def test_the_end_answers_everybody(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seckill.pipe.BATCH_MAX", 10)
    engine = Engine(proxy.url, timeout_ms=TIMEOUT_MS, sweep_ms=0)
    await engine.start()
    sale = await open_sale(engine)
    orders = await orders_of(engine, sale, 50)
    proxy.replies_open.clear()
    calls: list[Awaitable[Outcome]] = [
        asyncio.ensure_future(engine.begin_payment(sale, order)) for order in orders
    ]
    await until(lambda: len(begun_by(proxy.passed)) >= SLOTS)
    async with asyncio.timeout(TIMEOUT_MS / 2000):
        await engine.aclose()
        told = await asyncio.gather(*calls, return_exceptions=True)
    proxy.replies_open.set()
    assert {type(error) for error in told} == {OutcomeUnknown, EngineClosed}
    sure = {order for order, error in zip(orders, told, strict=True) if type(error) is EngineClosed}
    assert not sure & set(begun_by(proxy.seen))
    with pytest.raises(EngineClosed):
        await engine.begin_payment(sale, orders[0])


async def test_who_gave_up_while_it_connected_is_never_sent(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Told that nothing was sent, while others of the same batch still wait for the connection."""
    with EmbeddedServer(tmp_path_factory.mktemp("stopped"), appendfsync="no") as server:
        async with Engine(server.url, durability="memory", timeout_ms=1_500, sweep_ms=0) as engine:
            sale = await open_sale(engine)
            orders = await orders_of(engine, sale, 4)
            await asyncio.gather(*(engine.order(sale, order) for order in orders))
            with redis.Redis.from_url(server.url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            os.kill(server.pid, signal.SIGSTOP)

            async def pay(order: str, after_s: float) -> Outcome:
                await asyncio.sleep(after_s)
                return await engine.confirm(sale, order, f"paid-{order}")

            # The first two take both connections. When they give up, the last two are one batch,
            # and the first of these gives up long before the other.
            paying = [
                asyncio.ensure_future(pay(order, after_s))
                for order, after_s in zip(orders, (0.0, 0.05, 0.3, 1.4), strict=True)
            ]
            try:
                await asyncio.wait(paying[:3])
            finally:
                os.kill(server.pid, signal.SIGCONT)
            told = await asyncio.gather(*paying, return_exceptions=True)
            await asyncio.sleep(0.2)  # Nothing tells when what was never sent has not come.
            states = [found and found.state for found in await look_up(engine, sale, orders)]
    assert isinstance(told[2], RedisUnavailable)
    for said, state in zip(told, states, strict=True):
        assert (state is State.CONFIRMED) == isinstance(said, Outcome), (told, states)


async def look_up(engine: Engine, sale: str, orders: list[str]) -> list[Order | None]:
    """As soon as the server answers again."""
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while True:
            try:
                return [await engine.order(sale, order) for order in orders]
            except (RedisUnavailable, OutcomeUnknown):
                continue
