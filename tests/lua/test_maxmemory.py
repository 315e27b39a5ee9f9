"""A full server: what frees units and takes money goes on, what takes units is refused whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import ServerFull
from seckill.order import State
from seckill.status import Status
from tests.lua.core import Core, Wish
from tests.support import dump, make_sale, travel


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of its own, which the tests fill."""
    data_dir = tmp_path_factory.mktemp("small")
    with EmbeddedServer(data_dir, appendfsync="no", config={"maxmemory": "64mb"}) as server:
        yield server


@pytest.fixture
def small_client(small: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(small.url) as client:
        yield client
        client.config_set("maxmemory", "64mb")
        client.flushall()


@pytest.fixture
async def small_engine(small: EmbeddedServer) -> AsyncIterator[Engine]:
    async with Engine(small.url, durability="memory", sweep_ms=0) as engine:
        yield engine


def fill(client: redis.Redis) -> None:
    """Sets maxmemory below what is used, which is what a server that has filled up looks like."""
    client.config_set("maxmemory", "64mb")
    client.set("ballast", "x" * 4_000_000)
    client.config_set("maxmemory", "2mb")
    with pytest.raises(redis.OutOfMemoryError):
        client.set("more", "x")


def fill_to_the_brim(url: str, client: redis.Redis, name: str) -> None:
    """Writes values until the server refuses. The large ones go over a connection of their own: a
    server counts a connection's buffers too, and gives back what a large value took when it idles.
    """
    writes_max = 100_000

    def fill_with(kind: str, size: int, writer: redis.Redis) -> None:
        with suppress(redis.OutOfMemoryError):
            for i in range(writes_max):
                writer.set(f"{name}-{kind}-{i}", "x" * size)
            pytest.fail(f"{writes_max} values and not full")

    with redis.Redis.from_url(url) as once:
        fill_with("large", 1_000_000, once)
    fill_with("small", 400, client)


def make_room(client: redis.Redis) -> None:
    client.config_set("maxmemory", "64mb")


def refused_for_memory(error: redis.ResponseError) -> bool:
    return "maxmemory" in str(error)


def test_a_server_filled_to_the_brim(small: EmbeddedServer, small_client: redis.Redis) -> None:
    """The real thing, once: values are written until the server refuses."""
    core = Core(small_client).begin((10, 0))
    for i in range(4):
        core.hold(f"o{i}", f"b{i}")
    fill_to_the_brim(small.url, small_client, "first")
    before = core.dump()
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        core.reserve(Wish("o9", "bob"))
    assert core.dump() == before
    assert core.confirm("o0", "p1").status is Status.DONE
    assert core.release("o1").status is Status.DONE
    small_client.config_set("maxmemory", "80mb")  # travelling writes, too
    core.travel(100_000)
    small_client.config_set("maxmemory", "64mb")
    fill_to_the_brim(small.url, small_client, "again")
    assert core.expire().expired == 2


async def test_what_goes_on_and_what_is_refused(
    small_engine: Engine, small_client: redis.Redis
) -> None:
    engine = small_engine
    sale = make_sale({"a": 20})
    await engine.create(sale)
    await engine.open(sale.id)
    ids = []
    for i in range(6):
        outcome = await engine.reserve(sale.id, f"b{i}", "k", {"a": 1})
        assert outcome.order is not None
        ids.append(outcome.order.id)
    await engine.confirm(sale.id, ids[0], "p1")
    await engine.begin_payment(sale.id, ids[1])
    fill(small_client)

    before = dump(small_client, sale.id)
    with pytest.raises(ServerFull):
        await engine.reserve(sale.id, "new", "k", {"a": 1})
    with pytest.raises(ServerFull):
        await engine.add_stock(sale.id, "a", 1, key="k")
    with pytest.raises(ServerFull):
        await engine.create(make_sale())
    # What is known is found, and what is refused anyway is refused for its own reason.
    again = await engine.reserve(sale.id, "b2", "k", {"a": 1})
    assert again.status is Status.EXISTS
    assert (await engine.reserve(sale.id, "n", "k", {"a": 99})).status is Status.INSUFFICIENT
    assert dump(small_client, sale.id) == before

    assert (
        await engine.refund(sale.id, ids[0], "r1", return_units=True, return_limit=True)
    ).status is Status.DONE
    assert (await engine.pause(sale.id, "the server is full")).status is Status.DONE
    assert (await engine.resume(sale.id)).status is Status.DONE
    assert (await engine.begin_payment(sale.id, ids[2])).status is Status.DONE
    assert (await engine.confirm(sale.id, ids[1], "p1")).status is Status.DONE
    assert (await engine.confirm(sale.id, ids[2], "p1")).status is Status.DONE
    assert (await engine.confirm(sale.id, ids[2], "p2")).status is Status.DUPLICATE_PAYMENT
    assert (await engine.release(sale.id, ids[3])).status is Status.DONE
    make_room(small_client)  # travelling writes, too
    await travel(engine, sale.id, sale.hold_ms)
    fill(small_client)
    assert await engine._expire(sale.id, 100) == (Status.DONE, False)
    order = await engine.order(sale.id, ids[4])
    assert order is not None
    assert order.state is State.EXPIRED
    assert (await engine.confirm(sale.id, ids[4], "p1")).status is Status.CONFIRMED_LATE
    assert (await engine.close(sale.id)).status is Status.DONE
    snapshot = await engine.snapshot(sale.id)
    assert snapshot.state == "settled"
    stock = snapshot.stock["a"]
    assert (stock.available, stock.held, stock.confirmed, stock.total) == (17, 0, 3, 20)


async def test_a_retry_among_new_orders_finds_its_order(
    small_engine: Engine, small_client: redis.Redis
) -> None:
    """The server refuses a batch whole; who holds an order must not suffer for its neighbours."""
    engine = small_engine
    sale = make_sale({"a": 20})
    await engine.create(sale)
    await engine.open(sale.id)
    held = await engine.reserve(sale.id, "ann", "k", {"a": 1})
    fill(small_client)
    answers = await asyncio.gather(
        *(engine.reserve(sale.id, buyer, "k", {"a": 1}) for buyer in ("bob", "ann", "eve")),
        return_exceptions=True,
    )
    assert [type(answers[0]), type(answers[2])] == [ServerFull, ServerFull]
    assert not isinstance(answers[1], BaseException)
    assert (answers[1].status, answers[1].order) == (Status.EXISTS, held.order)


async def test_reserve_works_again_once_there_is_room(
    small_engine: Engine, small_client: redis.Redis
) -> None:
    engine = small_engine
    sale = make_sale({"a": 5})
    await engine.create(sale)
    await engine.open(sale.id)
    assert (await engine.reserve(sale.id, "ann", "k", {"a": 1})).status is Status.CREATED
    fill(small_client)
    for _ in range(3):
        with pytest.raises(ServerFull):
            await engine.reserve(sale.id, "bob", "k", {"a": 1})
    make_room(small_client)
    assert (await engine.reserve(sale.id, "bob", "k", {"a": 1})).status is Status.CREATED
    assert (await engine.snapshot(sale.id)).stock["a"].available == 3


async def test_a_full_server_refuses_a_batch_of_many_entries_whole(
    small_engine: Engine, small_client: redis.Redis
) -> None:
    core = Core(small_client).begin((200, 0))
    fill(small_client)
    before = core.dump()
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        core.reserve(*[Wish(f"o{i}", f"b{i}") for i in range(200)])
    assert core.dump() == before


@pytest.mark.parametrize("orders", [1, 200])
def test_a_server_that_fills_up_during_the_batch_still_takes_it_whole(
    small_client: redis.Redis, orders: int
) -> None:
    """Only a script's first write is refused, so a batch that has begun is not torn."""
    core = Core(small_client).begin((200, 0))
    used = int(small_client.info("memory")["used_memory"])  # type: ignore[index]
    taken = 0
    for margin in range(0, 400_000, 20_000):
        small_client.config_set("maxmemory", str(used + margin))
        wishes = [Wish(f"o{margin}-{i}", f"b{margin}-{i}", attrs="x" * 500) for i in range(orders)]
        before = core.dump()
        try:
            answers = core.reserve(*wishes)
        except redis.ResponseError as error:
            if not refused_for_memory(error) or core.dump() != before:
                raise
        else:
            assert set(answers) <= {Status.CREATED, Status.SOLD_OUT}
            taken += answers.count(Status.CREATED)
        assert core.stock() == (200 - taken, taken, 0, 200)
        core.events()
    assert taken
