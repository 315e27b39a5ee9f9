"""The runner takes every sale's events into the ledger, whatever goes away meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import LedgerUnavailable, UnknownSale
from seckill.keys import SALES, shard_keys, stream_key
from seckill.ledger import Ledger, run
from seckill.ledger.run import GROUP, LedgerRunner, Written
from seckill.order import Outcome, Wish
from seckill.sale import Sale
from seckill.status import Status
from tests.databases import DatabaseServer, _children
from tests.faults.harness import FragileServer
from tests.ledger.stories import differences, running, until
from tests.support import make_sale


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """On a server of its own: a runner takes all sales that are there."""
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as server:
        async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
            yield engine


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


@pytest.fixture
def client(engine: Engine) -> Any:
    with redis.Redis.from_url(engine.url) as client:
        yield client


async def sell(engine: Engine, sale: Sale, count: int, first: int = 0) -> None:
    """Orders for new buyers, of whom one in ten pays. What a restart left open is asked again."""
    wishes = [Wish(f"b{n}", "k", {"a": 1}, "room=1") for n in range(first, first + count)]
    outcomes: list[Any] = []
    async with asyncio.timeout(60):
        while not outcomes or not all(isinstance(outcome, Outcome) for outcome in outcomes):
            outcomes = await engine.reserve_many(sale.id, wishes)
    for outcome in outcomes[::10]:
        await engine.confirm(sale.id, outcome.order.id, "p")


async def caught_up(engine: Engine, ledger: Ledger, *sales: Sale) -> None:
    """Waits until every event is there, then compares all."""

    async def is_there() -> bool:
        for sale in sales:
            seq = (await engine.snapshot(sale.id)).seq
            try:
                if (await ledger.counts(sale.id))[0] < seq:
                    return False
            except LedgerUnavailable:
                return False
        return True

    await until(is_there)
    for sale in sales:
        assert await differences(ledger, engine, sale.id) == []


async def make(engine: Engine, total: int = 5_000) -> Sale:
    sale = make_sale({"a": total, "b": 10})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


def group_of(client: redis.Redis, sale: Sale) -> dict[str, Any]:
    (group,) = client.xinfo_groups(stream_key(sale.id))
    return group  # type: ignore[no-any-return]


async def run_once(engine: Engine, ledger: Ledger, **options: Any) -> Written:
    return await LedgerRunner(engine, ledger, once=True, **options).run()


async def test_several_sales_and_new_ones(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    early = [await make(engine) for _ in range(3)]
    async with running(engine, ledger) as runner:
        await asyncio.gather(*(sell(engine, sale, 300) for sale in early))
        await caught_up(engine, ledger, *early)
        late = await make(engine)
        await sell(engine, late, 100)
        await caught_up(engine, ledger, late)
        assert set(runner.sales) == {sale.id for sale in [*early, late]}
    for sale in [*early, late]:
        group = group_of(client, sale)
        # Nothing is left behind: no entry, and no name of a runner that has ended.
        assert (group["pending"], group["consumers"]) == (0, 0)
    assert runner.written.events == sum([(await engine.snapshot(s.id)).seq for s in [*early, late]])
    assert (runner.written.dead, runner.written.forked) == (0, ())


async def test_only_the_sales_that_are_named(engine: Engine, ledger: Ledger) -> None:
    mine, other = await make(engine), await make(engine)
    assert (await run_once(engine, ledger, sales=[mine.id])).events == 2
    assert [row["sale"] for row in await ledger.sales()] == [mine.id]
    with pytest.raises(UnknownSale):
        await run_once(engine, ledger, sales=[other.id, "no-such-sale"])


async def test_once(engine: Engine, ledger: Ledger) -> None:
    assert await run_once(engine, ledger) == Written()
    sale = await make(engine)
    await sell(engine, sale, 1_000)
    assert (await run_once(engine, ledger)).events == 1_102
    await caught_up(engine, ledger, sale)
    again = await run_once(engine, ledger)
    assert (again.events, again.batches, again.left) == (0, 0, 0)


async def test_two_runners_share_the_work(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sales = [await make(engine) for _ in range(2)]
    async with AsyncExitStack() as stack:
        two = [await stack.enter_async_context(running(engine, ledger)) for _ in range(2)]
        for part in range(10):
            await asyncio.gather(*(sell(engine, sale, 100, 100 * part) for sale in sales))
        await caught_up(engine, ledger, *sales)
    first, second = (runner.written.events for runner in two)
    assert first > 0 < second
    # Each event once: nobody did the other's work again.
    assert first + second == sum([(await engine.snapshot(sale.id)).seq for sale in sales])
    assert {group_of(client, sale)["pending"] for sale in sales} == {0}


async def test_stop_in_the_middle_leaves_nothing_pending(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale = await make(engine, total=20_000)
    wishes = [Wish(f"b{n}", "k", {"a": 1}) for n in range(18_000)]
    await engine.reserve_many(sale.id, wishes)
    async with running(engine, ledger) as runner:
        async with asyncio.timeout(60):
            while not runner.written.batches:  # noqa: ASYNC110 - in the midst of the work
                await asyncio.sleep(0)
    events, _ = await ledger.counts(sale.id)
    group = group_of(client, sale)
    assert (group["pending"], group["consumers"]) == (0, 0)
    assert 0 < events < 12_002
    assert events == int(group["last-delivered-id"].partition(b"-")[2])
    await run_once(engine, ledger)
    await caught_up(engine, ledger, sale)


async def test_what_a_dead_runner_had_taken(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale = await make(engine)
    await sell(engine, sale, 200)
    client.xgroup_create(stream_key(sale.id), GROUP, id="0")
    taken = client.xreadgroup(GROUP, "died", {stream_key(sale.id): ">"}, count=5)
    assert len(taken[0][1]) == 5
    left = await run_once(engine, ledger)
    # It could be alive for all that this one knows.
    assert left.left == 5
    async with running(engine, ledger, reclaim_ms=300):
        await caught_up(engine, ledger, sale)
    assert group_of(client, sale)["pending"] == 0


async def test_a_living_runner_is_not_robbed(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale = await make(engine)
    client.xgroup_create(stream_key(sale.id), GROUP, id="0")
    client.xreadgroup(GROUP, "alive", {stream_key(sale.id): ">"}, count=1)
    async with running(engine, ledger, reclaim_ms=20_000) as runner:
        await sell(engine, sale, 20)
        await until(lambda: runner.written.events >= 20)
        # Others may be pending too, until the runner has acknowledged its last.
        left = client.xpending_range(stream_key(sale.id), GROUP, "-", "+", 10, "alive")
        assert len(left) == 1


async def test_the_database_goes_and_comes_back(
    engine: Engine, database_server: DatabaseServer, client: redis.Redis, caplog: Any
) -> None:
    sale = await make(engine)
    async with database_server.database() as url, Ledger(url) as ledger:
        async with running(engine, ledger, reclaim_ms=1_000):
            await sell(engine, sale, 100)
            await caught_up(engine, ledger, sale)
            with caplog.at_level(logging.WARNING, "seckill.ledger"):
                database_server.stop(kill=True)
                await sell(engine, sale, 100, 100)
                await until(lambda: "falls behind" in caplog.text)
            database_server.start()
            await sell(engine, sale, 100, 200)
            await caught_up(engine, ledger, sale)
        assert group_of(client, sale)["pending"] == 0
    assert caplog.text.count("falls behind") < 10
    assert database_server.password not in caplog.text
    assert "INSERT" not in caplog.text


async def test_the_end_does_not_wait_for_a_database_that_is_away(
    engine: Engine, postgres: DatabaseServer, client: redis.Redis
) -> None:
    sale = await make(engine)
    async with postgres.database() as url, Ledger(url) as ledger:
        async with running(engine, ledger, reclaim_ms=60_000) as runner:
            await until(lambda: runner.written.events == 2)
            postgres.stop(kill=True)
            await sell(engine, sale, 100)
            await until(lambda: group_of(client, sale)["pending"] > 0)
        postgres.start()
        # It was taken by one that has ended, and is not lost.
        assert group_of(client, sale)["pending"] > 0
        async with running(engine, ledger, reclaim_ms=200):
            await caught_up(engine, ledger, sale)


@pytest.mark.slow
async def test_the_end_does_not_wait_for_a_database_that_hangs(
    engine: Engine,
    database_server: DatabaseServer,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    """Its processes are stopped: connections stand, and nothing answers."""
    monkeypatch.setattr(run, "COMMIT_S", 1.0)
    sale = await make(engine)
    async with database_server.database() as url, Ledger(url) as ledger:
        async with running(engine, ledger) as runner:
            await until(lambda: runner.written.events == 2)
            pids = [database_server.pid, *_children(database_server.pid)]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                await sell(engine, sale, 50)
                await until(lambda: group_of(client, sale)["pending"] > 0)
                runner.stop()
                await until(lambda: "took longer than 1 s" in caplog.text)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        async with running(engine, ledger, reclaim_ms=200):
            await caught_up(engine, ledger, sale)


async def test_once_does_not_wait_for_a_database_that_is_away(
    engine: Engine, postgres: DatabaseServer
) -> None:
    await make(engine)
    async with postgres.database() as url, Ledger(url) as ledger:
        postgres.stop(kill=True)
        with pytest.raises(LedgerUnavailable, match="does the database run"):
            await run_once(engine, ledger)


async def test_redis_goes_and_comes_back(tmp_path: Path, ledger: Ledger, caplog: Any) -> None:
    with FragileServer(tmp_path, appendfsync="always") as server:
        async with Engine(server.url, sweep_ms=0) as engine, running(engine, ledger):
            sale = await make(engine)
            for part in range(3):
                await sell(engine, sale, 100, 1_000 * part)
                with caplog.at_level(logging.WARNING, "seckill.ledger"):
                    server.crash()
                    await until(lambda: "falls behind" in caplog.text)
                caplog.clear()
                server.start()
                server.admit()
                await sell(engine, sale, 100, 1_000 * part + 500)
                await caught_up(engine, ledger, sale)


async def test_a_stream_that_was_made_anew(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    """With its group went the place in it; what is read twice is written once."""
    sale, other = await make(engine), await make(engine)
    key = stream_key(sale.id)
    async with running(engine, ledger):
        await sell(engine, sale, 20)
        await caught_up(engine, ledger, sale)
        entries: Any = client.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, key)
        client.delete(key)
        await sell(engine, other, 20)
        await caught_up(engine, ledger, other)
        for entry_id, fields in entries:
            client.execute_command("XADD", key, entry_id, *fields)
        await sell(engine, sale, 20, 20)
        await caught_up(engine, ledger, sale, other)


@pytest.mark.parametrize("harm", ["stream", "definition", "origin", "header", "type"])
async def test_a_damaged_sale_holds_up_no_other(
    engine: Engine, ledger: Ledger, client: redis.Redis, harm: str, caplog: Any
) -> None:
    bad, good = await make(engine), await make(engine)
    header = shard_keys(bad.id)[0]
    match harm:
        case "stream":
            client.delete(stream_key(bad.id))
        case "type":
            client.delete(stream_key(bad.id))
            client.set(stream_key(bad.id), "no stream")
        case "definition":
            client.hset(header, "definition", "{no json")
        case "origin":
            client.hset(header, "origin_ms", "soon")
        case "header":
            client.delete(header)
            client.set(header, "no hash")
    client.sadd(SALES, "no-such-sale")
    with caplog.at_level(logging.ERROR, "seckill.ledger"):
        async with running(engine, ledger) as runner:
            await sell(engine, good, 20)
            await caught_up(engine, ledger, good)
            assert runner.sales == (good.id,)
    assert caplog.text.count(f"sale '{bad.id}' is left out for now") == 1


async def test_a_forked_sale_is_left_out_and_sells_nothing(
    engine: Engine, ledger: Ledger, client: redis.Redis, caplog: Any
) -> None:
    """One made anew under the same id, one whose event the ledger has otherwise."""
    lost, edited, good = [await make(engine) for _ in range(3)]
    await run_once(engine, ledger)
    keys = client.keys(f"sk:{{{lost.id}:0}}:*")
    client.delete(*keys)
    assert (await engine.create(lost)).ok
    entries: Any = client.eval(
        "return redis.call('XRANGE', KEYS[1], '-', '+')", 1, stream_key(edited.id)
    )
    client.delete(stream_key(edited.id))
    for (entry_id, fields), value in zip(entries, (None, b"paused|by whom?"), strict=True):
        more = [fields[0], value or fields[1]]
        client.execute_command("XADD", stream_key(edited.id), entry_id, *more)
    before = {sale.id: await ledger.sale(sale.id) for sale in (lost, edited)}
    with caplog.at_level(logging.ERROR, "seckill.ledger"):
        async with running(engine, ledger) as runner:
            await sell(engine, good, 20)
            await caught_up(engine, ledger, good)
            await until(lambda: len(runner.written.forked) == 2)
            await sell(engine, good, 20, 20)
            await caught_up(engine, ledger, good)
    assert runner.written.forked == tuple(sorted((lost.id, edited.id)))
    assert runner.sales == (good.id,)
    assert {sale: await ledger.sale(sale) for sale in before} == before
    assert (await ledger.counts(edited.id))[0] == 2
    for sale, reason in ((lost, "made anew: "), (edited, "forked: event 2 ")):
        snapshot = await engine.snapshot(sale.id)
        assert (snapshot.state, snapshot.reason.startswith(reason)) == ("fenced", True)
        assert (await engine.reserve(sale.id, "b", "k", {"a": 1})).status is Status.FENCED
        # Told once, and acknowledged never.
        assert caplog.text.count(f"'{sale.id}', from event ") == 1
    assert group_of(client, edited)["pending"] > 0
