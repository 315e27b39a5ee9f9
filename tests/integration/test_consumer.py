"""A mall's own function as a consumer: every event, in order per order, until it is taken."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.consumer import Consumer, Pace, Tally
from seckill.consumer.pace import Turns
from seckill.dead import Letter, with_letters
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, Refused, UnknownSale
from seckill.keys import group_keys, stream_key
from seckill.order import Order
from seckill.sale import Sale
from seckill.stream import Event, EventKind
from tests.children import child
from tests.conftest import MakeEngine, MakeSale
from tests.support import make_sale

QUICK = Pace(first_s=0.02, longest_s=0.1, probe_s=0.05)
"""Waits short enough for a test."""


class Worker:
    """What the mall's function was given. ``fail(event, attempt)`` may raise; attempts count from
    1. It is a fault when an event comes before one of the same order that it must wait for."""

    def __init__(self) -> None:
        self.fail: Callable[[Event, int], object] = lambda event, attempt: None
        self.taken: list[tuple[str, int]] = []
        self.attempts: Counter[tuple[str, int]] = Counter()
        self.busy = 0
        self.busy_max = 0
        self.slow_s = 0.0
        self._last: dict[tuple[str, str], int] = {}
        self.faults: list[str] = []

    async def handle(self, event: Event) -> None:
        name = (event.sale, event.seq)
        self.attempts[name] += 1
        self.busy += 1
        self.busy_max = max(self.busy, self.busy_max)
        try:
            result = self.fail(event, self.attempts[name])
            if isinstance(result, Awaitable):
                await result
            await asyncio.sleep(self.slow_s)
        finally:
            self.busy -= 1
        self.taken.append(name)
        line = (event.sale, event.order.id if event.order else "sale")
        version = event.order.version if event.order else event.seq
        before = self._last.get(line, 0)
        if version < before or (event.order and version > before + 1):
            self.faults.append(f"{name} came after version {before}")
        self._last[line] = version

    def seqs(self, sale: str) -> set[int]:
        return {seq for name, seq in self.taken if name == sale}


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    assert worker.faults == []


async def sell(engine: Engine, sale: Sale, count: int) -> list[Order]:
    """Paid orders: three events each."""
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, f"buyer-{n}", "k", {"a": 1}) for n in range(count))
    )
    orders = [outcome.order for outcome in outcomes if outcome.order]
    for order in orders:
        await engine.begin_payment(sale.id, order.id)
        await engine.confirm(sale.id, order.id, f"wx-{order.id}")
    return orders


async def run_once(
    engine: Engine, worker: Worker, sale: Sale, group: str = "mall", **options: Any
) -> Tally:
    given: dict[str, Any] = {"sales": (sale.id,), "once": True, "pace": QUICK} | options
    async with asyncio.timeout(60):
        return await Consumer(engine, group, worker.handle, **given).run()


@asynccontextmanager
async def running(engine: Engine, worker: Worker, **options: Any) -> AsyncIterator[Consumer]:
    consumer = Consumer(engine, "mall", worker.handle, **({"pace": QUICK} | options))
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        async with asyncio.timeout(60):
            await task


async def until(happened: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110 - what happens, happens in another process
            await asyncio.sleep(0.01)


async def letters_of(engine: Engine, sale: Sale, group: str = "mall") -> list[Letter]:
    return await with_letters(engine.url, sale.id, group, lambda dead: dead.letters())


def pending(client: redis.Redis, sale: Sale, group: str = "mall") -> int:
    summary: Any = client.xpending(stream_key(sale.id), group)
    return int(summary["pending"])


def is_held(event: Event, order: Order) -> bool:
    return event.kind is EventKind.HELD and event.order is not None and event.order.id == order.id


async def test_every_event_in_order(
    engine: Engine, open_sale: MakeSale, worker: Worker, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 60})
    await sell(engine, sale, 40)
    worker.slow_s = 0.001
    tally = await run_once(engine, worker, sale)
    assert tally == Tally(delivered=122)
    assert worker.seqs(sale.id) == set(range(1, 123))
    assert len(worker.taken) == 122
    assert 1 < worker.busy_max <= 32
    assert pending(client, sale) == 0
    assert client.exists(*group_keys(sale.id, "mall")) == 0
    assert (await run_once(engine, worker, sale)).delivered == 0


async def test_groups_do_not_touch_each_other(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale()
    good, bad = Worker(), Worker()

    def refuse(event: Event, attempt: int) -> None:
        raise Refused("never")

    bad.fail = refuse
    assert (await run_once(engine, bad, sale, "points")).dead == 1
    assert (await run_once(engine, good, sale, "mall")).delivered == 2
    assert [letter.seq for letter in await letters_of(engine, sale, "points")] == [1, 2]
    assert await letters_of(engine, sale, "mall") == []
    assert pending(client, sale, "points") == pending(client, sale, "mall") == 0


async def test_new_sales_and_new_events(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a server of its own, because it takes up every sale there is, and one that another test
    has trimmed or damaged may end it."""
    monkeypatch.setattr("seckill.consumer.runner.REFRESH_S", 0.05)
    with EmbeddedServer(tmp_path, appendfsync="no") as server:
        async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
            first, second = make_sale(), make_sale()
            await engine.create(first)
            await engine.open(first.id)
            async with running(engine, worker):
                await until(lambda: worker.seqs(first.id) == {1, 2})
                await engine.create(second)
                await engine.open(second.id)
                await sell(engine, first, 2)
                await sell(engine, second, 2)
                for sale in (first, second):
                    await until(lambda sale=sale: worker.seqs(sale.id) == set(range(1, 9)))


async def test_a_failure_is_tried_again(
    engine: Engine, open_sale: MakeSale, worker: Worker
) -> None:
    sale = await open_sale()
    await sell(engine, sale, 6)

    async def hang() -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        task.cancel()
        await task

    def fail(event: Event, attempt: int) -> object:
        if attempt > event.seq % 3:
            return None
        match event.seq % 5:
            case 0:
                raise KeyError("a bug")
            case 1:
                return hang()
            case 2:
                return cancelled()
            case 3:
                raise TimeoutError("its own")
        raise ConnectionError("the database is away")

    worker.fail = fail
    tally = await run_once(engine, worker, sale, timeout_s=0.6)
    count = 2 + 6 * 3
    assert worker.seqs(sale.id) == set(range(1, count + 1))
    assert (tally.delivered, tally.dead, tally.left) == (count, 0, 0)
    assert tally.failed == sum(seq % 3 for seq in range(1, count + 1))


class Poison(Exception):
    """Its text is long, and has what no terminal should be sent."""


async def test_a_poison_event_stops_nothing_else(
    engine: Engine, open_sale: MakeSale, worker: Worker, client: redis.Redis
) -> None:
    sale = await open_sale()
    orders = await sell(engine, sale, 4)

    def fail(event: Event, attempt: int) -> None:
        if is_held(event, orders[1]):
            raise Poison("no such\tSKU\n\x1b[31m in " + "the warehouse " * 1_000)

    worker.fail = fail
    tally = await run_once(engine, worker, sale, give_up_s=0.3)
    assert (tally.delivered, tally.dead, tally.left) == (2 + 3 * 3, 1, 0)
    dead, *parked = await letters_of(engine, sale)
    assert (dead.subject, dead.parked) == (orders[1].id, False)
    assert dead.attempts == worker.attempts[sale.id, dead.seq] > 1
    assert dead.cause.startswith("Poison: no such SKU [31m in the warehouse the")
    assert dead.cause.isprintable()
    assert len(dead.cause) <= 200
    assert [letter.parked for letter in parked] == [True, True]
    assert pending(client, sale) == 0

    # Repaired, and asked for beside the running consumer.
    worker.fail = lambda event, attempt: None
    async with running(engine, worker, sales=(sale.id,), lease_ms=1_000):
        await with_letters(engine.url, sale.id, "mall", lambda dead: dead.retry([orders[1].id]))
        await until(lambda: worker.seqs(sale.id) == set(range(1, 15)))
    assert client.exists(*group_keys(sale.id, "mall")) == 0


async def test_what_is_refused_is_not_tried_again(
    engine: Engine, open_sale: MakeSale, worker: Worker
) -> None:
    sale = await open_sale()
    orders = await sell(engine, sale, 2)

    def fail(event: Event, attempt: int) -> None:
        if is_held(event, orders[0]):
            raise Refused("blacklisted" if attempt == 1 else "")

    worker.fail = fail
    assert (await run_once(engine, worker, sale)).failed == 1
    (letter, *_) = await letters_of(engine, sale)
    assert (letter.cause, letter.attempts) == ("blacklisted", 1)


async def test_the_active_one_and_its_successor(
    make_engine: MakeEngine, engine: Engine, open_sale: MakeSale, worker: Worker
) -> None:
    sale = await open_sale({"a": 100})
    await sell(engine, sale, 20)
    other = await make_engine()
    options: dict[str, Any] = {"sales": (sale.id,), "lease_ms": 6_000}
    async with running(engine, worker, **options) as one, running(other, worker, **options) as two:
        await until(lambda: len(worker.seqs(sale.id)) == 62)
        assert bool(one.deliveries) != bool(two.deliveries)
        assert len(worker.taken) == 62
        busy, standby = (one, two) if one.deliveries else (two, one)
        assert standby.tally.delivered == 0
        busy.stop()
        await engine.pause(sale.id)
        await until(lambda: 63 in worker.seqs(sale.id))
        assert standby.tally.delivered == 1


_PROGRAM = """
import asyncio, sys
from seckill import Consumer, Engine
url, sale, out = sys.argv[1:4]
async def handle(event):
    with open(out, "a") as file:
        print(event.order.id if event.order else "sale", event.seq, file=file)
    await asyncio.sleep(0.002)
async def main():
    async with Engine(url, durability="memory", sweep_ms=0) as engine:
        await Consumer(engine, "mall", handle, sales=(sale,), in_flight=4, lease_ms=400).run()
asyncio.run(main())
"""


@pytest.mark.slow
async def test_killed_again_and_again(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, tmp_path: Path
) -> None:
    sale, out = await open_sale({"a": 100}), tmp_path / "handled"
    await sell(engine, sale, 100)
    out.touch()

    def handled() -> list[tuple[str, int]]:
        lines = (line.split() for line in out.read_text().splitlines())
        return [(line[0], int(line[1])) for line in lines]

    kills = (40, 120, 200, None)
    for kill_at in kills:
        async with child(
            *(sys.executable, "-c", _PROGRAM, engine.url, sale.id, out),
            env=os.environ | {"PYTHONWARNINGS": "error"},
        ):
            await until(
                lambda kill_at=kill_at: len({seq for _, seq in handled()}) >= (kill_at or 302)
            )
            if kill_at is None:
                await until(lambda: not pending(client, sale))
    done = handled()
    assert {seq for _, seq in done} == set(range(1, 303))
    # Some came twice, but in the end every order got its last event last.
    assert len(done) < 302 + len(kills) * 60
    last = dict(done)
    assert last == {name: max(seq for other, seq in done if other == name) for name in last}


async def test_what_other_workers_of_the_group_had_taken(
    engine: Engine, open_sale: MakeSale, worker: Worker, client: redis.Redis
) -> None:
    """A mall that has used Engine.events goes on with this, and loses nothing."""
    sale = await open_sale()
    await sell(engine, sale, 3)
    for name in ("one", "two"):
        batches = engine.events(sale.id, "mall", consumer=name, count=2)
        await anext(batches)
        await batches.aclose()
    assert pending(client, sale) == 4
    await run_once(engine, worker, sale)
    assert worker.seqs(sale.id) == set(range(1, 12))
    assert pending(client, sale) == 0


async def test_in_flight_is_a_bound(engine: Engine, open_sale: MakeSale, worker: Worker) -> None:
    sale = await open_sale({"a": 60})
    await sell(engine, sale, 30)
    worker.slow_s = 0.002
    await run_once(engine, worker, sale, in_flight=3)
    assert worker.busy_max == 3


async def test_stop_lets_what_runs_end(
    engine: Engine, open_sale: MakeSale, worker: Worker, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 60})
    await sell(engine, sale, 30)
    worker.slow_s = 0.2
    async with running(engine, worker, sales=(sale.id,), in_flight=4):
        await until(lambda: worker.busy == 4)
    assert worker.busy == 0
    assert len(worker.taken) == sum(worker.attempts.values())
    worker.slow_s = 0.0
    await run_once(engine, worker, sale)
    assert len(worker.taken) == 92


async def test_one_sale_does_not_wait_for_anothers_backlog() -> None:
    turns = Turns(1, QUICK)
    order: list[str] = []

    async def hold(sale: str) -> None:
        await turns.take(sale, new=True)
        order.append(sale)
        turns.give(sale, new=True)

    await turns.take("old", new=True)
    tasks = [asyncio.create_task(hold("old")) for _ in range(50)]
    tasks += [asyncio.create_task(hold(sale)) for sale in ("tonight", "tonight", "noon")]
    await asyncio.sleep(0)
    turns.give("old", new=True)
    await asyncio.wait(tasks)
    assert order[:5] == ["old", "tonight", "noon", "old", "tonight"]
    assert order[5:] == ["old"] * 48


async def async_function(event: Event) -> None:
    """Does nothing."""


class Handler:
    async def __call__(self, event: Event) -> None:
        """Does nothing."""


def plain_function(event: Event) -> None:
    """Is no coroutine function."""


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"handle": plain_function}, "handle"),
        ({"handle": None}, "handle"),
        ({"group": ""}, "group"),
        ({"group": "a b"}, "group"),
        ({"sales": "tonight"}, "sales"),
        ({"in_flight": 0}, "in_flight"),
        ({"in_flight": 2.0}, "in_flight"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"give_up_s": float("nan")}, "give_up_s"),
        ({"give_up_s": "1"}, "give_up_s"),
    ],
)
async def test_bad_arguments(engine: Engine, given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Consumer(engine, **({"group": "mall", "handle": async_function} | given))
    assert refusal.value.field == field


async def test_what_may_handle(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    partial = functools.partial(async_function)
    for number, handle in enumerate((async_function, Handler(), Handler().__call__, partial)):
        consumer = Consumer(engine, f"g{number}", handle, sales=(sale.id,), once=True)
        assert (await consumer.run()).delivered == 2


async def test_a_sale_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(UnknownSale):
        await Consumer(engine, "mall", async_function, sales=("no-such-sale",)).run()
