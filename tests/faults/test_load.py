"""The load and the consumers as processes, against a real server that crashes: what they log is
read, and a sound engine is called valid, with every witness.

SECKILL_FAULT_SEED repeats a run's choice of moments (not its scheduling).
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.ledger import Ledger
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from tests.databases import PostgresServer
from tests.faults.checker import Report, Verdict, check
from tests.faults.checker_report import rule_of
from tests.faults.checker_witness import (
    SeenLedger,
    ledger_problems,
    read_ledger,
    read_sightings,
)
from tests.faults.harness import ROOT, FragileServer
from tests.faults.history import Call, History
from tests.faults.observed import Observed, observe
from tests.faults.sales import busy_sale, buy

PATIENCE_S = 60.0
CRASHES = 3
# More, if none of them has met a call under way.
CRASHES_MAX = 20
VERBS = {"reserve", "look", "begin_payment", "confirm", "release", "refund", "add_stock"}
_T = TypeVar("_T")


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("SECKILL_FAULT_SEED") or random.randrange(1_000_000))
    print(f"SECKILL_FAULT_SEED={seed}")
    return seed


class Process:
    """One of the processes, until it is told to end."""

    def __init__(self, module: str, url: str, sale: str, log: Path, *arguments: object) -> None:
        self.log = log
        command = [sys.executable, "-m", f"tests.faults.{module}", url, sale, str(log)]
        command += map(str, arguments)
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)

    @property
    def at_work(self) -> bool:
        """Whether it has got through to the server."""
        assert self._process.poll() is None, f"{self.log.stem} has died; it says why on stderr"
        return self.log.stat().st_size > 0

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def finish(self) -> None:
        """Lets it end."""
        self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, f"{self.log.stem} has died; it says why on stderr"


class Stage:
    """A sale on a fragile server, and whoever plays with it."""

    def __init__(self, server: FragileServer, folder: Path, seed: int, stack: ExitStack) -> None:
        self.server = server
        self.sale = "busy"
        self.history = History()
        self._folder = folder
        self._seed = seed
        self._stack = stack
        self.loads: list[Process] = []
        self.consumers: list[Process] = []
        self.killed: list[Process] = []
        run(open_busy(server.url, self.sale))

    def load(self) -> Process:
        """One more load."""
        number = len(self.loads) + 1
        log = self._folder / f"load-{number}.jsonl"
        log.touch()
        arguments = (self._seed + number, 16, "aof", "--pace-ms", 20)
        process = Process("load", self.server.url, self.sale, log, *arguments)
        self._stack.callback(process.kill)
        self.loads.append(process)
        return process

    def consumer(self) -> Process:
        """One more consumer of one group."""
        name = f"consumer-{len(self.consumers) + 1}"
        log = self._folder / f"{name}.jsonl"
        log.touch()
        process = Process("consume", self.server.url, self.sale, log, "mall", name, "aof")
        self._stack.callback(process.kill)
        self.consumers.append(process)
        return process

    def read(self) -> History:
        """The calls up to now."""
        for load in self.loads:
            self.history.read(load.log)
        return self.history

    def all_at_work(self) -> bool:
        """Whether all who are alive have got through to the server at least once."""
        alive = [each for each in (*self.loads, *self.consumers) if each not in self.killed]
        return all(each.at_work for each in alive)

    def wait_for_orders(self, number: int) -> None:
        """Waits until so many more are accepted."""
        goal = self.read().accepted + number
        wait_for(f"{number} orders", lambda: self.read().accepted >= goal)

    def judge(self) -> Report:
        """What all witnesses say, while no caller reaches the server."""
        history = self.read()
        run(write_ledger(self.server.inside_url, self.ledger_url, self.sale))
        seen = observe(self.server.inside_url, self.sale)
        sightings = read_sightings(each.log for each in self.consumers)
        return check(history, seen, ledger=self.book(), sightings=sightings)

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self._folder}/ledger.db"

    def book(self) -> SeenLedger:
        return run(read_ledger(self.ledger_url, self.sale))

    def seen(self) -> Observed:
        return observe(self.server.inside_url, self.sale)


def wait_for(what: str, reached: Callable[[], bool]) -> None:
    """Waits for a cause, for as long as it may take on a slow machine."""
    until_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < until_s, f"waited in vain for {what}"
        time.sleep(0.02)


def run(work: Awaitable[_T]) -> _T:
    async def wait() -> _T:
        return await work

    return asyncio.run(wait())


def quiet_engine(url: str) -> Engine:
    """One that sweeps nothing and has all the time of a slow machine."""
    return Engine(url, durability="memory", sweep_ms=0, timeout_ms=30_000)


async def open_busy(url: str, sale: str) -> None:
    async with quiet_engine(url) as engine:
        assert (await engine.create(busy_sale(sale))).ok
        assert (await engine.open(sale)).ok


async def write_ledger(url: str, ledger_url: str, sale: str) -> None:
    """Lets the engine's own ledger catch up."""
    async with (
        quiet_engine(url) as engine,
        Ledger(ledger_url) as ledger,
    ):
        await LedgerRunner(engine, ledger, sales=(sale,), once=True).run()


@contextmanager
def a_stage(folder: Path, seed: int) -> Iterator[Stage]:
    with ExitStack() as stack:
        server = stack.enter_context(FragileServer(folder, appendfsync="always"))
        yield Stage(server, folder, seed, stack)


@pytest.mark.slow
def test_a_busy_evening_over_crashes_is_valid_by_every_witness(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with a_stage(tmp_path, seed) as stage:
        for _ in range(2):
            stage.load()
            stage.consumer()
        for crash in range(CRASHES_MAX):
            if crash >= CRASHES and stage.history.unknown:
                break
            stage.wait_for_orders(100)
            if crash == 1:
                # Whoever is killed leaves calls open, and events that another consumer takes over.
                stage.killed = [stage.loads[0], stage.consumers[0]]
                for process in stage.killed:
                    process.kill()
                stage.load()
                stage.consumer()
                stage.wait_for_orders(20)
            wait_for("whoever was started", stage.all_at_work)
            time.sleep(rng.uniform(0.0, 0.2))
            stage.server.crash()
            stage.server.start()
            report = stage.judge()
            assert report.verdict is Verdict.VALID, report.problems[:10]
            stage.server.admit()
        wait_for("an order that lapsed", lambda: kinds(stage)["expired"] > 0)
        wait_for("every kind of call", lambda: verbs(stage.read()) == VERBS)
        for load in stage.loads[1:]:
            load.finish()
        events = set(range(1, stage.seen().seq + 1))
        wait_for("the consumers", lambda: stage.seen().acked.get("mall", set()) >= events)
        for consumer in stage.consumers[1:]:
            consumer.finish()
        report = stage.judge()
        assert report.verdict is Verdict.VALID, report.problems[:10]
        assert report.notes == report.listed == ()
        told = Counter((call.verb, call.answer) for call in every_call(stage.history))
        print(sorted(told.items()), kinds(stage))
        # No call was left open by any load but by the one that was killed.
        assert stage.history.unknown > 0
        left = {call.process for call in every_call(stage.history) if not call.answer}
        assert left <= {"load-1#1"}
        assert set(stage.book().orders) == set(stage.seen().orders)


def kinds(stage: Stage) -> Counter[str]:
    return Counter(event.kind for event in stage.seen().events)


def verbs(history: History) -> set[str]:
    return {call.verb for call in every_call(history)}


def every_call(history: History) -> list[Call]:
    return [*history.stock, *(call for calls in history.orders.values() for call in calls)]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A load sweeps every sale that it finds, and so it gets a server of its own."""
    with EmbeddedServer(tmp_path / "data", appendfsync="no") as server:
        yield server


def test_a_load_answers_every_call_before_it_ends(
    own_server: EmbeddedServer, tmp_path: Path, seed: int
) -> None:
    server, sale = own_server, "load-that-ends"
    run(open_busy(server.url, sale))
    arguments = (server.url, sale, tmp_path / "load.jsonl", seed, 8, "memory")
    load = Process("load", *arguments)
    history = History()

    def accepted() -> bool:
        if load.log.exists():
            history.read(load.log)
        return history.accepted >= 20

    wait_for("20 orders", accepted)
    load.finish()
    history.read(load.log)
    assert not history.damage
    assert not [call for call in every_call(history) if not call.answer]
    assert check(history, observe(server.url, sale)).verdict is Verdict.VALID
    # A second load in the same log would count its calls from one again.
    again = Process("load", *arguments)
    with pytest.raises(AssertionError, match="has died"):
        again.finish()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_ledger_is_read_as_it_is(engine: Engine, tmp_path: Path, kind: str) -> None:
    """And what is changed there is found."""
    sale = f"read-{kind}"
    await open_busy(engine.url, sale)
    for number in range(5):
        got = await buy(engine, sale, number, "plenty")
        assert got.order is not None
        await engine.confirm(sale, got.order.id, f"p{number}")
    await engine.add_stock(sale, "few", 3, key="more")
    seen = observe(engine.url, sale)
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{tmp_path}/ledger.db"
        if kind == "postgresql":
            url = await stack.enter_async_context(stack.enter_context(PostgresServer()).database())
        await write_ledger(engine.url, url, sale)
        book = await read_ledger(url, sale)
        assert [event.seq for event in book.events] == list(range(1, seen.seq + 1))
        assert list(ledger_problems(book, seen, seen.events)) == []
        assert set(book.orders) == set(seen.orders)
        # What the ledger has acknowledged, and does not have.
        del book.events[3]
        seen = observe(engine.url, sale)
        assert seen.acked["ledger"] == set(range(1, seen.seq + 1))
        assert [rule_of(each) for each in ledger_problems(book, seen, seen.events)] == ["ledger"]


@pytest.mark.slow
def test_a_sale_that_was_rebuilt_is_judged_by_its_ledger(
    own_server: EmbeddedServer, tmp_path: Path, seed: int
) -> None:
    """What it had before is in the ledger only; whoever was told of it must find it there."""
    sale, book_url = "rebuilt", f"sqlite:///{tmp_path}/ledger.db"
    run(open_busy(own_server.url, sale))
    history = History()
    for number in (1, 2):
        log = tmp_path / f"load-{number}.jsonl"
        log.touch()
        load = Process("load", own_server.url, sale, log, seed + number, 8, "memory")
        goal = history.accepted + 30

        def accepted(log: Path = log, goal: int = goal) -> bool:
            history.read(log)
            return history.accepted >= goal

        wait_for("30 orders", accepted)
        load.finish()
        history.read(log)
        run(write_ledger(own_server.url, book_url, sale))
        if number == 1:
            run(lose_and_rebuild(own_server.url, book_url, sale))
    seen, book = observe(own_server.url, sale), run(read_ledger(book_url, sale))
    assert seen.events[0].kind == "rebuilt"
    report = check(history, seen, ledger=book)
    assert report.verdict is Verdict.VALID, report.problems[:10]
    assert "may be lost" in report.notes[0]
    assert check(history, seen).verdict is Verdict.UNKNOWN
    # Nobody has what the ledger has not.
    lost = next(event for event in book.events if event.kind == "held")
    book.events = [event for event in book.events if event.subject != lost.subject]
    assert check(history, seen, ledger=book).verdict is Verdict.INVALID


async def lose_and_rebuild(url: str, book_url: str, sale: str) -> None:
    async with quiet_engine(url) as engine, Ledger(book_url) as ledger:
        await engine._calls.client_of("sk:sales").delete(*shard_keys(sale))
        assert (await rebuild(engine, ledger, sale)).done
        assert (await engine.resume(sale)).ok


async def test_what_a_sale_holds_is_read_as_it_stands(engine: Engine) -> None:
    """Every field of a record and an event is where the checker looks for it."""
    sale = busy_sale("read-raw")
    await engine.create(sale)
    await engine.open(sale.id)
    got = await engine.reserve(sale.id, "ann", "k", {"some": 2, "plenty": 1}, attrs="a|b")
    assert got.order is not None
    await engine.confirm(sale.id, got.order.id, "p1")
    await engine.confirm(sale.id, got.order.id, "p2")
    await engine.refund(sale.id, got.order.id, "r1", return_units=True, return_limit=False)
    await buy(engine, sale.id, 1, "few")
    seen = observe(engine.url, sale.id)
    record = seen.orders[got.order.id]
    assert (record.state, record.version, record.units, record.buyer) == (
        *("f", 4),
        {"0": 1, "1": 2},
        "ann",
    )
    assert (record.payments, record.refund) == (("p1", "p2"), "r1,1,0")
    assert seen.origin_ms + record.deadline_ms == got.order.deadline_ms
    assert [event.kind for event in seen.events] == [
        *("created", "opened", "held", "confirmed", "refund_due", "refunded", "held")
    ]
    assert seen.events[3].detail == "p1"
    assert seen.events[-1].at_ms >= seen.events[0].at_ms
    assert seen.buyers["ann"] == ({"0": 1, "1": 2}, 0)
    assert (seen.sale.hold_ms, seen.sale.items[1].limit, seen.sale.max_lapsed) == (800, 2, 2)
