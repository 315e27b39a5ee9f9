"""``seckill pause`` and ``seckill resume``: the big red button, also when nothing else works."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis

from seckill.cli import main, pause
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import SALES, shard_keys
from seckill.status import Status
from tests.cli.conftest import Ran, run_seckill
from tests.support import make_sale

MANY = 30


class Hall:
    """A server of its own, because --all means all: nobody else's sales may be there."""

    def __init__(self, server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = server.url
        self.capsys = capsys
        self.client = redis.Redis.from_url(self.url)

    async def run(self, *args: str) -> Ran:
        """In this process, but beside the test's loop: what else would be slow is the import."""

        def run() -> int:
            with mock.patch.object(sys, "argv", ["seckill", *args, "--redis", self.url]):
                return main()

        code = await asyncio.to_thread(run)
        return Ran(code, *self.capsys.readouterr())

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
def hall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Hall]:
    with EmbeddedServer(tmp_path / "data") as server:
        hall = Hall(server, capsys)
        yield hall
        hall.client.close()


async def test_thirty_sales_under_load(hall: Hall, tmp_path: Path) -> None:
    sales = await hall.open_sales(MANY)
    async with Engine(hall.url, sweep_ms=0) as engine:
        accepted = 0
        refused: set[Status] = set()
        under_way, over = asyncio.Event(), asyncio.Event()

        async def buy(number: int) -> None:
            nonlocal accepted
            order = 0
            while not over.is_set():
                order += 1
                sale = sales[(number + order) % MANY]
                outcome = await engine.reserve(sale, f"b{number}", f"k{order}", {"a": 1})
                if outcome.ok:
                    accepted += 1
                    if accepted == 500:
                        under_way.set()
                else:
                    refused.add(outcome.status)
                    await asyncio.sleep(0.005)

        crowd = [asyncio.create_task(buy(number)) for number in range(60)]
        await under_way.wait()
        done = await asyncio.to_thread(
            run_seckill, "pause", "--all", "--reason", "价格有误", "--redis", hall.url, cwd=tmp_path
        )
        sold = sum([(await engine.snapshot(sale)).orders for sale in sales])
        await asyncio.sleep(0.2)
        over.set()
        await asyncio.gather(*crowd)
        snapshots = [await engine.snapshot(sale) for sale in sales]
    assert (done.code, done.err) == (0, "")
    said = sorted(done.out.splitlines())
    assert said == [f"✓ sale {sale}: pause: done" for sale in sales]
    assert {(one.state, one.reason) for one in snapshots} == {("paused", "价格有误")}
    assert refused == {Status.PAUSED}
    # Nothing was sold any more when the command had ended.
    assert accepted == sum(one.orders for one in snapshots) == sold


async def test_again_and_back(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    first = await hall.run("pause", "--all")
    again = await hall.run("pause", "--all", "--json")
    assert (first.code, again.code) == (0, 0)
    assert {one["status"] for one in again.data["sales"]} == {"already"}
    assert [one["sale"] for one in again.data["sales"]] == sales
    back = await hall.run("resume", "--all")
    assert (back.code, back.out.count("resume: done")) == (0, 3)
    assert hall.states(sales) == {b"open"}
    nothing = await hall.run("resume", "--all")
    assert (nothing.code, nothing.out) == (0, "no sale of this server is paused\n")


async def test_resume_takes_up_only_what_this_button_stopped(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    await hall.call(lambda engine: engine.pause(sales[0], "库存核对"))
    await hall.run("pause", "--all")
    back = await hall.run("resume", "--all")
    assert back.code == 0
    assert f"sale {sales[0]}: resume: stays paused, for another reason: 库存核对" in back.out
    assert hall.states(sales[:1]) == {b"paused"}
    assert hall.states(sales[1:]) == {b"open"}
    named = await hall.run("resume", "--all", "--reason", "库存核对")
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
    done = await hall.run("pause", "--all", "--json")
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
    assert (await hall.run("sale", "pause", sales[0])).code == 1
    hall.client.script_flush()
    done = await hall.run("pause", "--all")
    assert (done.code, done.out.count("pause: done"), done.err) == (0, 3, "")
    assert hall.states(sales) == {b"paused"}


async def test_one_that_cannot_be_paused_stops_no_other(hall: Hall) -> None:
    sales = await hall.open_sales(4)
    hall.client.delete(shard_keys(sales[1])[4])
    hall.client.set(shard_keys(sales[1])[4], "not a list")
    done = await hall.run("pause", "--all")
    assert done.code == 1
    assert done.out.count("pause: done") == 3
    assert f"seckill: sale {sales[1]}: pause: " in done.err
    assert "WRONGTYPE" in done.err
    assert done.err.endswith(f"seckill: pause failed for 1: {sales[1]}\n")
    assert hall.states([sales[0], *sales[2:]]) == {b"paused"}
    told = await hall.run("pause", "--all", "--json")
    assert (told.code, told.data["ok"], told.err) == (1, False, "")


async def test_by_name(hall: Hall) -> None:
    sales = await hall.open_sales(3)
    done = await hall.run("pause", *sales[:2], sales[0])
    assert (done.code, done.out.count("pause: done")) == (0, 2)
    assert hall.states(sales[2:]) == {b"open"}
    unknown = await hall.run("pause", sales[2], "nope")
    assert unknown.code == 1
    assert "sale nope: pause: no such sale on this server" in unknown.err
    assert hall.states(sales) == {b"paused"}
    assert (await hall.run("resume", sales[0])).code == 0
    assert hall.states(sales[:1]) == {b"open"}


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ((), 2, "SALE: is not named; name the sales, or give --all"),
        (("--all", "x"), 2, "SALE: is given beside --all"),
        (("a b",), 2, "SALE: 'a b' holds ' '"),
        (("--all", "--reason", "x" * 201), 2, "--reason: is too long"),
    ],
)
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_bad_input(tmp_path: Path, verb: str, args: tuple[str, ...], code: int, text: str) -> None:
    done = run_seckill(verb, *args, "--redis", "redis://127.0.0.1:1", cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert text in done.err


async def test_a_server_that_is_away(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "PATIENCE_S", 0.2)
    hall.url = "redis://127.0.0.1:1"
    done = await hall.run("pause", "--all")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("seckill: no Redis answers there: ")
    named = await hall.run("pause", "a", "b")
    assert named.code == 1
    assert named.err.endswith("seckill: pause failed for 2: a, b\n")
