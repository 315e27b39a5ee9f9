"""``seckill pause`` and ``seckill resume``: the big red button, also when nothing else works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import SALES, shard_keys
from seckill.status import Status
from tests.cli.conftest import Ran, run_seckill
from tests.support import make_sale

MANY = 30


class Hall:
    """A server of its own, because --all means all: nobody else's sales may be there."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.url = server.url
        self.folder = folder
        self.client = redis.Redis.from_url(self.url)

    def run(self, *args: str) -> Ran:
        return run_seckill(*args, "--redis", self.url, cwd=self.folder)

    async def open_sales(self, count: int) -> list[str]:
        async with Engine(self.url, sweep_ms=0) as engine:
            sales = [make_sale({"a": 100_000}) for _ in range(count)]
            for sale in sales:
                await engine.create(sale)
                await engine.open(sale.id)
            return sorted(sale.id for sale in sales)

    async def call(self, verb: Callable[[Engine], Any]) -> Any:
        async with Engine(self.url, sweep_ms=0, durability="memory") as engine:
            return await verb(engine)

    def states(self, sales: list[str]) -> set[bytes]:
        return {self.client.hget(shard_keys(sale)[0], "state") for sale in sales}  # type: ignore[misc]


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with EmbeddedServer(tmp_path / "data") as server:
        hall = Hall(server, tmp_path)
        yield hall
        hall.client.close()


async def test_thirty_sales_under_load(hall: Hall) -> None:
    sales = await hall.open_sales(MANY)
    async with Engine(hall.url, sweep_ms=0) as engine:
        accepted: list[float] = []
        refused: set[Status] = set()
        over = asyncio.Event()

        async def buy(number: int) -> None:
            order = 0
            while not over.is_set():
                order += 1
                sale = sales[(number + order) % MANY]
                outcome = await engine.reserve(sale, f"b{number}", f"k{order}", {"a": 1})
                if outcome.ok:
                    accepted.append(time.monotonic())
                else:
                    refused.add(outcome.status)
                    await asyncio.sleep(0.005)

        crowd = [asyncio.create_task(buy(number)) for number in range(60)]
        while len(accepted) < 500:
            await asyncio.sleep(0.01)
        done = await asyncio.to_thread(hall.run, "pause", "--all", "--reason", "价格有误")
        ended_s = time.monotonic()
        await asyncio.sleep(0.2)
        over.set()
        await asyncio.gather(*crowd)
        snapshots = [await engine.snapshot(sale) for sale in sales]
    assert (done.code, done.err) == (0, "")
    said = sorted(done.out.splitlines())
    assert said == [f"✓ sale {sale}: pause: done" for sale in sales]
    assert {(one.state, one.reason) for one in snapshots} == {("paused", "价格有误")}
    assert refused == {Status.PAUSED}
    assert max(accepted) <= ended_s


async def test_again_and_back(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    first = await asyncio.to_thread(hall.run, "pause", "--all")
    again = await asyncio.to_thread(hall.run, "pause", "--all", "--json")
    assert (first.code, again.code) == (0, 0)
    assert {one["status"] for one in again.data["sales"]} == {"already"}
    assert [one["sale"] for one in again.data["sales"]] == sales
    back = await asyncio.to_thread(hall.run, "resume", "--all")
    assert (back.code, back.out.count("resume: done")) == (0, 3)
    assert hall.states(sales) == {b"open"}
    nothing = await asyncio.to_thread(hall.run, "resume", "--all")
    assert (nothing.code, nothing.out) == (0, "no sale of this server is paused\n")


async def test_resume_takes_up_only_what_this_button_stopped(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    await hall.call(lambda engine: engine.pause(sales[0], "库存核对"))
    await asyncio.to_thread(hall.run, "pause", "--all")
    back = await asyncio.to_thread(hall.run, "resume", "--all")
    assert back.code == 0
    assert f"sale {sales[0]}: resume: stays paused, for another reason: 库存核对" in back.out
    assert hall.states(sales[:1]) == {b"paused"}
    assert hall.states(sales[1:]) == {b"open"}
    named = await asyncio.to_thread(hall.run, "resume", "--all", "--reason", "库存核对")
    assert named.code == 0
    assert hall.states(sales) == {b"open"}


async def test_sales_that_do_not_sell(hall: Hall) -> None:
    created, closed, running = make_sale(), make_sale(), make_sale()

    async def prepare(engine: Engine) -> None:
        for sale in (created, closed, running):
            await engine.create(sale)
        await engine.close(closed.id)
        await engine.open(running.id)

    await hall.call(prepare)
    hall.client.sadd(SALES, "listed-only")
    done = await asyncio.to_thread(hall.run, "pause", "--all", "--json")
    assert done.code == 0
    assert {one["sale"]: one["status"] for one in done.data["sales"]} == {
        created.id: "not_open",
        running.id: "done",
    }


async def test_on_a_server_that_an_engine_would_refuse(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    used = hall.client.info("memory")["used_memory"]
    for name, value in (
        ("maxmemory", used - 100_000),
        ("appendfsync", "everysec"),
        ("maxmemory-policy", "volatile-lru"),
    ):
        hall.client.config_set(name, value)
    with pytest.raises(redis.OutOfMemoryError):
        hall.client.set("more", "x")
    assert (await asyncio.to_thread(hall.run, "sale", "pause", sales[0])).code == 1
    hall.client.script_flush()
    done = await asyncio.to_thread(hall.run, "pause", "--all")
    assert (done.code, done.out.count("pause: done"), done.err) == (0, 3, "")
    assert hall.states(sales) == {b"paused"}


async def test_one_that_cannot_be_paused_stops_no_other(hall: Hall) -> None:
    sales = await hall.open_sales(4)
    hall.client.delete(shard_keys(sales[1])[4])
    hall.client.set(shard_keys(sales[1])[4], "not a list")
    done = await asyncio.to_thread(hall.run, "pause", "--all")
    assert done.code == 1
    assert done.out.count("pause: done") == 3
    assert f"seckill: sale {sales[1]}: pause: " in done.err
    assert "WRONGTYPE" in done.err
    assert done.err.endswith(f"seckill: pause failed for 1: {sales[1]}\n")
    assert hall.states([sales[0], *sales[2:]]) == {b"paused"}
    told = await asyncio.to_thread(hall.run, "pause", "--all", "--json")
    assert (told.code, told.data["ok"], told.err) == (1, False, "")


async def test_by_name(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    done = await asyncio.to_thread(hall.run, "pause", *sales[:2], sales[0])
    assert (done.code, done.out.count("pause: done")) == (0, 2)
    assert hall.states(sales[2:]) == {b"open"}
    unknown = await asyncio.to_thread(hall.run, "pause", sales[2], "nope")
    assert unknown.code == 1
    assert "sale nope: pause: no such sale on this server" in unknown.err
    assert hall.states(sales) == {b"paused"}
    assert (await asyncio.to_thread(hall.run, "resume", sales[0])).code == 0
    assert hall.states(sales[:1]) == {b"open"}


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ((), 2, "SALE: is not named; name the sales, or give --all"),
        (("--all", "x"), 2, "SALE: is given beside --all"),
        (("a b",), 2, "SALE: 'a b' holds ' '"),
        (("--all", "--reason", "x" * 201), 2, "--reason: is too long"),
        (("--all", "--redis", "redis://127.0.0.1:1"), 1, "no Redis answers there"),
    ],
)
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_bad_input(tmp_path: Path, verb: str, args: tuple[str, ...], code: int, text: str) -> None:
    url = () if "--redis" in args else ("--redis", "redis://127.0.0.1:1")
    done = run_seckill(verb, *args, *url, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
