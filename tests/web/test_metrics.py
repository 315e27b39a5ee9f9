"""What a scrape shows is what was done: in one worker, in several, after one of them was killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import group_keys, shard_keys, stream_key
from seckill.sale import Sale
from seckill.server import create_app, problems
from seckill.server.families import FAMILIES
from seckill.server.metrics import LOOKS_MAX, SALES_MAX, SERIES_MAX, Metrics
from seckill.server.samples import DEAD_MAX
from seckill.server.settings import ApiKey, Settings
from seckill.stream import make_group
from tests.support import async_client, make_sale
from tests.web.intake import Client, Intake, serving
from tests.web.processes import serve, workers_of

# Buckets and sums have the labels of their histogram, and ``le``.
Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scrape:
    """A scrape that can be asked."""

    def __init__(self, text: str | bytes) -> None:
        self.text = text if isinstance(text, str) else text.decode()
        self.numbers: Numbers = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def __call__(self, name: str, /, **labels: str) -> float:
        return self.numbers[name, frozenset(labels.items())]

    def sum(self, name: str, **labels: str) -> float:
        """Over all labels that are not given."""
        return sum(
            value
            for (found, at), value in self.numbers.items()
            if found == name and labels.items() <= dict(at).items()
        )

    @property
    def counts(self) -> Numbers:
        """What may never fall."""
        ends = ("_total", "_count", "_bucket", "_sum")
        return {key: value for key, value in self.numbers.items() if key[0].endswith(ends)}


async def scrape(metrics: Metrics) -> Scrape:
    return Scrape(await metrics.render())


async def until_ready(metrics: Metrics, ready: bool) -> Scrape:
    """The first scrape that says so."""
    async with asyncio.timeout(60):
        while True:
            now = await scrape(metrics)
            if now("seckill_ready") == ready:
                return now
            await asyncio.sleep(0.1)


async def until_so(metrics: Metrics, is_so: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape of which it is so. The sales are looked at once a second, and those that
    could not be looked at within a second are not shown."""
    async with asyncio.timeout(60):
        while not is_so(now := await scrape(metrics)):  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.1)
    return now


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the sales, which may take as long as a busy machine needs for it."""
    monkeypatch.setattr("seckill.server.metrics.LOOK_S", 60.0)


@asynccontextmanager
async def started(engine: Engine, in_flight: int = 0) -> AsyncIterator[Metrics]:
    metrics = Metrics(engine)
    await metrics.start(lambda: in_flight, engine.now_ms)
    try:
        yield metrics
    finally:
        await metrics.aclose()


async def open_sale(engine: Engine, stock: dict[str, int] | None = None, **fields: Any) -> Sale:
    sale = make_sale(stock, **fields)
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


@pytest.fixture(autouse=True)
def _no_directory_from_outside(monkeypatch: Any) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
async def engine(redis_server: EmbeddedServer) -> AsyncIterator[Engine]:
    async with async_client(redis_server.url) as client:
        await client.flushall()
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        yield engine


@pytest.fixture(params=["alone", "shared"])
def mode(request: pytest.FixtureRequest, monkeypatch: Any, tmp_path: Path) -> str:
    """One process by itself, or a worker among others."""
    if request.param == "shared":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return str(request.param)


# -- one process ------------------------------------------------------------------------------


@pytest.mark.usefixtures("mode")
async def test_answers_and_orders(engine: Engine) -> None:
    async with started(engine, in_flight=7) as metrics:
        metrics.answered("reserve", "created", 0.0004)
        metrics.answered("reserve", "created", 0.02)
        metrics.answered("reserve", "sold_out", 30.0)
        metrics.answered("show", "ok", 0.001)
        metrics.ordered(["created", "created", "sold_out"])
        now = await scrape(metrics)
    assert now("seckill_answers_total", verb="reserve", code="created") == 2
    assert now("seckill_answers_total", verb="reserve", code="sold_out") == 1
    assert now("seckill_answers_total", verb="show", code="ok") == 1
    assert now("seckill_orders_total", code="created") == 4
    assert now("seckill_orders_total", code="sold_out") == 2
    assert now.sum("seckill_orders_total") == 6
    assert now("seckill_answer_seconds_count", verb="reserve") == 3
    assert now("seckill_answer_seconds_sum", verb="reserve") == pytest.approx(30.0204)
    for bound, count in (("0.0005", 1), ("0.01", 1), ("0.025", 2), ("10.0", 2), ("+Inf", 3)):
        assert now("seckill_answer_seconds_bucket", verb="reserve", le=bound) == count
    # On the bound is below it.
    assert now("seckill_answer_seconds_bucket", verb="show", le="0.001") == 1
    assert now("seckill_in_flight") == 7
    assert now("seckill_workers") == now("seckill_ready") == 1
    assert (now("seckill_worker_starts_total"), now("seckill_worker_ends_total")) == (1, 0)
    assert now("seckill_cpu_seconds_total") > 0
    if sys.platform == "linux":
        assert now("seckill_resident_bytes") > 10_000_000


@pytest.mark.usefixtures("mode")
async def test_failures(engine: Engine) -> None:
    """All of them from 0 on, because Prometheus misses the first of a series that begins at 1."""
    known = {code for code, http in _all_kinds().items() if http >= 500}
    assert {"internal", "busy", "outcome_unknown", "fenced", "gate_unavailable"} < known
    async with started(engine) as metrics:
        now = await scrape(metrics)
        assert {
            dict(at)["code"] for name, at in now.numbers if name == "seckill_failures_total"
        } == known
        assert now.sum("seckill_failures_total") == 0
        assert now("seckill_orders_total", code="created") == 0
        metrics.answered("reserve", "busy", 0.001)
        metrics.answered("show", "busy", 0.001)
        metrics.answered("show", "unknown_order", 0.001)
        metrics.ordered(["busy", "created", "fenced"])
        now = await scrape(metrics)
    assert now("seckill_failures_total", code="busy") == 3
    assert now("seckill_failures_total", code="fenced") == 1
    assert now.sum("seckill_failures_total") == 4


def _all_kinds() -> dict[str, int]:
    """Every kind of answer that some module of the intake declares."""
    kinds = list(problems.ANSWERS.values())
    for module in list(sys.modules.values()):
        if module.__name__.startswith("seckill.server"):
            kinds += [value for value in vars(module).values() if isinstance(value, problems.Kind)]
    return {kind.code: kind.http for kind in kinds}


@pytest.mark.usefixtures("mode")
async def test_numbers_go_on_after_a_scrape(engine: Engine) -> None:
    async with started(engine) as metrics:
        for total in range(1, 4):
            metrics.answered("reserve", "created", 0.001)
            now = await scrape(metrics)
            assert now("seckill_answers_total", verb="reserve", code="created") == total
            assert now("seckill_answer_seconds_count", verb="reserve") == total


@pytest.mark.usefixtures("mode", "patient")
async def test_every_family_is_shown_and_well_formed(engine: Engine) -> None:
    sale = await open_sale(engine, admission=Admission(mode="queue"))
    await engine.queue.join(sale.id, "b1")
    await make_group(engine._calls.client_of("sk:sales"), stream_key(sale.id), "mall")
    async with started(engine) as metrics:
        metrics.answered("reserve", "created", 0.001)
        metrics.answered("join", "created", 0.001)
        metrics.answered("place", "ok", 0.001)
        text = (await metrics.render()).decode()
    shown = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name for name in shown if not name.startswith("seckill_")} == set()
    for family in FAMILIES:
        assert shown[family.name].type == family.kind
        assert shown[family.name].documentation == family.help
        assert shown[family.name].samples, family.name
        for sample in shown[family.name].samples:
            assert set(sample.labels) - {"le"} == set(family.labels)
    if promtool := shutil.which("promtool"):
        done = subprocess.run(  # noqa: ASYNC221 - nothing else waits for this loop
            [promtool, "check", "metrics"],
            input=text,
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.usefixtures("mode")
async def test_codes_that_somebody_invents_are_bounded(engine: Engine) -> None:
    async with started(engine) as metrics:
        metrics.answered("reserve", "created", 0.001)
        for number in range(5_000):
            metrics.answered(f"verb-{number}", f"code-{number}", 0.001)
        metrics.answered("reserve", "created", 0.001)
        now = await scrape(metrics)
    series = [key for key in now.numbers if key[0] == "seckill_answers_total"]
    assert len(series) == SERIES_MAX + 1
    assert now("seckill_answers_total", verb="other", code="other") == 5_001 - SERIES_MAX
    assert now("seckill_answers_total", verb="reserve", code="created") == 2
    assert now.sum("seckill_answers_total") == now.sum("seckill_answer_seconds_count") == 5_002


async def test_lanes(engine: Engine) -> None:
    """Also of a lane that is gone: a sale that was lost and made anew gets a lane of its own."""
    sale = await open_sale(engine, {"a": 100})
    async with started(engine) as metrics:
        await asyncio.gather(*(engine.reserve(sale.id, f"b{n}", "k", {"a": 1}) for n in range(50)))
        lane = engine.lanes()[sale.id]
        before = await scrape(metrics)
        assert before("seckill_batch_orders_sum") == lane.orders == 50
        assert before("seckill_batch_orders_count") == lane.batches
        assert before("seckill_script_seconds_count") == lane.batches
        assert 0 < before("seckill_script_seconds_sum") < 10
        assert before("seckill_lane_depth") == before("seckill_lane_fill_ratio") == 0
        async with async_client(engine.url) as client:
            await client.delete(*shard_keys(sale.id))
        await open_sale(engine, {"a": 5}, id=sale.id)
        assert (await engine.reserve(sale.id, "b1", "other", {"a": 1})).ok
        assert engine.lanes()[sale.id] is not lane
        now = await scrape(metrics)
        assert now("seckill_batch_orders_sum") == 51
        assert now("seckill_batch_orders_count") == before("seckill_batch_orders_count") + 1


async def test_a_lane_that_fills(redis_server: EmbeddedServer) -> None:
    async with (
        Engine(redis_server.url, durability="memory", sweep_ms=0, lane_depth=40) as engine,
        started(engine) as metrics,
    ):
        sale = await open_sale(engine, {"a": 100})
        await engine.reserve(sale.id, "first", "k", {"a": 1})
        waiting = [engine.reserve(sale.id, f"b{n}", "k", {"a": 1}) for n in range(30)]
        tasks = [asyncio.create_task(wish) for wish in waiting]
        await asyncio.sleep(0)  # They have queued up, and no slot has run yet.
        depths = {sample.family.name: sample.value for sample in metrics._samples()}
        assert depths["seckill_lane_depth"] == 30
        assert depths["seckill_lane_fill_ratio"] == 0.75
        await asyncio.gather(*tasks)


# -- sales ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_sales(engine: Engine) -> None:
    sale = await open_sale(engine, {"a": 5, "b": 10})
    buyer = "b-7f3c"
    order = (await engine.reserve(sale.id, buyer, "k1", {"a": 2})).order
    assert order is not None
    assert (await engine.confirm(sale.id, order.id, "p1")).ok
    await engine.reserve(sale.id, buyer, "k2", {"b": 1})
    created = make_sale()
    await engine.create(created)
    async with started(engine) as metrics:
        now = await scrape(metrics)
    units = {
        state: now("seckill_sale_units", sale=sale.id, state=state)
        for state in ("available", "held", "confirmed")
    }
    assert units == {"available": 12, "held": 1, "confirmed": 2}
    assert now("seckill_sale_orders_total", sale=sale.id) == 2
    assert now("seckill_sale_phase", sale=sale.id, phase="selling") == 1
    assert now("seckill_sale_phase", sale=created.id, phase="created") == 1
    assert buyer not in now.text
    assert order.id not in now.text


async def test_who_reads_the_events(engine: Engine) -> None:
    """Each group of a sale: what it has not had, for how long, and its dead letters. A settled sale
    is shown for as long as somebody still owes it something."""
    sale = await open_sale(engine)
    await engine.reserve(sale.id, "u1", "k1", {"a": 1})
    async for batch in engine.events(sale.id, "mall", count=1):
        assert len(batch) == 1
        break  # Taken, and not acknowledged.
    await engine._calls.client_of("sk:sales").hset(group_keys(sale.id, "mall").dead, "1:sale", "{}")
    async with started(engine) as metrics:
        now = await until_so(metrics, lambda now: sale.id in now.text)
        at = {"sale": sale.id, "group": "mall"}
        assert now("seckill_group_unread_events", **at) == 2
        assert 0 < now("seckill_group_age_seconds", **at) < 120
        assert now("seckill_dead_letters", **at) == 1
        order = (await engine.reserve(sale.id, "u1", "k1", {"a": 1})).order
        assert order is not None
        await engine.release(sale.id, order.id)
        await engine.close(sale.id)
        name = "seckill_group_unread_events"
        await until_so(metrics, lambda now: sale.id in now.text and now(name, **at) == 5)


@pytest.mark.usefixtures("patient")
async def test_sales_are_bounded_and_those_that_sell_come_first(engine: Engine) -> None:
    for number in range(SALES_MAX + 5):
        await engine.create(make_sale(id=f"a-{number:02}"))
    selling = await open_sale(engine, id="z")
    async with started(engine) as metrics:
        now = await scrape(metrics)
    shown = [dict(at)["sale"] for name, at in now.numbers if name == "seckill_sale_orders_total"]
    assert len(shown) == SALES_MAX
    assert selling.id in shown


async def test_settled_sales_are_not_in_the_way(engine: Engine) -> None:
    """However many there are, each is looked at once."""
    for number in range(LOOKS_MAX):
        sale = await open_sale(engine, id=f"a-{number:03}")
        await engine.close(sale.id)
    selling = await open_sale(engine, id="z")
    async with started(engine) as metrics:
        assert "seckill_sale" not in (await scrape(metrics)).text
        now = await until_so(metrics, lambda now: "seckill_sale" in now.text)
    assert {dict(at)["sale"] for _, at in now.numbers if "sale" in dict(at)} == {selling.id}


async def test_redis_away(tmp_path: Path) -> None:
    """Readiness turns red, sales vanish, and everything else is still there, and soon."""
    with EmbeddedServer(tmp_path, appendfsync="no") as server:
        async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
            sale = await open_sale(engine)
            async with started(engine) as metrics:
                metrics.answered("reserve", "created", 0.001)
                await until_ready(metrics, True)
                now = await until_so(metrics, lambda now: sale.id in now.text)
                assert now("seckill_sale_phase", sale=sale.id, phase="selling") == 1
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    await until_ready(metrics, False)
                    now = await until_so(metrics, lambda now: sale.id not in now.text)
                    assert now("seckill_orders_total", code="created") == 1
                finally:
                    os.kill(server.pid, signal.SIGCONT)
                await until_ready(metrics, True)


# -- several workers --------------------------------------------------------------------------

_WORKER = """
import asyncio, json, sys
from seckill.engine import Engine
from seckill.server.metrics import Metrics

async def main(url, sale):
    async with Engine(url, durability="memory", sweep_ms=0) as engine:
        metrics = Metrics(engine)
        await metrics.start(lambda: 3, engine.now_ms)
        while line := await asyncio.to_thread(sys.stdin.readline):
            word, *rest = line.split()
            said = ""
            if word == "order":
                for number in range(int(rest[1])):
                    outcome = await engine.reserve(sale, f"{rest[0]}{number}", "k", {"a": 1})
                    metrics.answered("reserve", outcome.status.name.lower(), 0.004)
            elif word == "scrape":
                said = (await metrics.render()).decode()
            print(json.dumps(said), flush=True)
        await metrics.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


class Worker:
    """A process that orders and counts."""

    def __init__(self, folder: Path, url: str, sale: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", _WORKER, url, sale],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONWARNINGS": "error"},
        )

    def do(self, line: str) -> str:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()
        return str(json.loads(self.child.stdout.readline()))

    def scrape(self) -> Scrape:
        return Scrape(self.do("scrape"))

    async def until_counted(self, answers: int, orders: int) -> Scrape:
        """The first scrape with the answers of all workers and the orders of the sale: those are
        known to the second, or as soon as everybody gets a turn on a busy machine."""
        async with asyncio.timeout(60):
            while True:
                now = self.scrape()
                counted = now.sum("seckill_answers_total"), now.sum("seckill_sale_orders_total")
                if counted == (answers, orders):
                    return now
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> None:
        """As a worker ends that was told to."""
        self.child.communicate(timeout=60)
        assert self.child.returncode == 0


class Workers:
    def __init__(self, folder: Path, url: str, sale: str) -> None:
        self.folder, self._args = folder, (folder, url, sale)
        self.all: list[Worker] = []

    def start(self, count: int) -> list[Worker]:
        started = [Worker(*self._args) for _ in range(count)]
        self.all += started
        for worker in started:
            worker.do("hello")
        return started


@pytest.fixture
async def workers(
    redis_server: EmbeddedServer, engine: Engine, tmp_path: Path
) -> AsyncIterator[Workers]:
    sale = await open_sale(engine, {"a": 100})
    group = Workers(tmp_path, redis_server.url, sale.id)
    try:
        yield group
    finally:
        for worker in group.all:
            worker.kill()
            worker.child.communicate()


async def test_two_workers_are_one_intake(workers: Workers) -> None:
    one, two = workers.start(2)
    one.do("order x 30")
    two.do("order y 80")
    first, second = [await worker.until_counted(110, 100) for worker in (one, two)]
    for now in (first, second):
        assert now("seckill_orders_total", code="created") == 100
        assert now("seckill_orders_total", code="sold_out") == 10
        assert now("seckill_answer_seconds_count", verb="reserve") == 110
        assert now("seckill_answer_seconds_bucket", verb="reserve", le="0.005") == 110
        assert now("seckill_answer_seconds_bucket", verb="reserve", le="0.0025") == 0
        assert now("seckill_batch_orders_sum") == 110
        assert now("seckill_script_seconds_count") == now("seckill_batch_orders_count")
        assert now("seckill_workers") == 2
        assert now("seckill_in_flight") == 6
        assert now("seckill_ready") == 1
        assert now.sum("seckill_sale_orders_total") == 100
    # Whoever is scraped is up to date himself, and the other to the second.
    one.do("order z 5")
    assert one.scrape()("seckill_orders_total", code="sold_out") == 15


async def test_a_killed_worker_takes_no_numbers_with_it(workers: Workers) -> None:
    """No total falls, however a worker ends, and however many come after it."""
    one, two = workers.start(2)
    one.do("order x 30")
    two.do("order y 40")
    await two.until_counted(70, 70)
    before = await one.until_counted(70, 70)
    assert before("seckill_workers") == 2
    assert before("seckill_worker_starts_total") == 2
    one.kill()
    (three,) = workers.start(1)
    for worker in (two, three):
        now = worker.scrape()
        assert now("seckill_orders_total", code="created") == 70
        assert now("seckill_workers") == 2
        assert now("seckill_in_flight") == 6
        assert all(now.numbers[key] >= value for key, value in before.counts.items())
    three.do("order z 5")
    three.end()
    after = two.scrape()
    assert after("seckill_orders_total", code="created") == 75
    assert after("seckill_workers") == 1
    assert after("seckill_in_flight") == 3
    # One was killed and one has ended: started, but neither ended nor alive, is what has crashed.
    assert after("seckill_worker_starts_total") == 3
    assert after("seckill_worker_ends_total") == 1


_DEAD = """
import os, sys
from pathlib import Path
from seckill.server.samples import Family, Sample, Shared
from seckill.stream import make_group
from seckill.tally import Histogram
for number in range(int(sys.argv[2])):
    if not os.fork():
        store = Shared(Path(sys.argv[1], "seckill"))
        seconds = Histogram((1, 2))
        seconds.add(1.5)
        store.write([
            Sample(Family("seckill_orders", "counter", "?", ("code",)), ("created",), 10),
            Sample(Family("seckill_answer_seconds", "histogram", "?", ("verb",)), ("v",), seconds),
            Sample(Family("seckill_workers", "gauge", "?", (), "livesum"), (), 1),
        ])
        os._exit(0)
    os.wait()
"""


async def test_workers_that_die_all_night(workers: Workers) -> None:
    """Their numbers are kept, and their files are not."""
    (one,) = workers.start(1)
    dead = 0
    for more in (DEAD_MAX + 3, 2, DEAD_MAX + 1):
        await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _DEAD, str(workers.folder), str(more)],
            check=True,
            timeout=90,
        )
        dead += more
        for _ in range(2):
            now = one.scrape()
            assert now("seckill_orders_total", code="created") == 10 * dead
            assert now("seckill_answer_seconds_count", verb="v") == dead
            assert now("seckill_answer_seconds_bucket", verb="v", le="1.0") == 0
            assert now("seckill_answer_seconds_bucket", verb="v", le="2.0") == dead
            assert now("seckill_workers") == 1
            files = list((workers.folder / "seckill").iterdir())
            assert len([file for file in files if "past" in file.name]) == 2
            assert len(files) <= 2 * DEAD_MAX + 8, files


async def test_a_directory_that_cannot_be_written(
    engine: Engine, monkeypatch: Any, tmp_path: Path
) -> None:
    (tmp_path / "seckill").write_text("in the way")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(OSError, match="seckill"):
        async with started(engine):
            pass


async def test_gunicorn(engine: Engine) -> None:
    """The real thing: a worker is killed under load, gunicorn starts another, and every answer that
    was given a second before that is counted once, whoever is scraped."""
    sale = await open_sale(engine, {"a": 1_000})
    created = 0
    options = ("--redis", engine.url, "--durability", "memory", "--workers", "2")
    async with serve("--dev", *options) as intake:

        async def order(count: int) -> None:
            nonlocal created
            # A connection for each, so that both workers get some.
            async with aiohttp.TCPConnector(force_close=True) as connector:
                client = Client(
                    aiohttp.ClientSession(connector=connector, headers=intake.session.headers),
                    intake.base,
                )
                for _ in range(count):
                    created += 1
                    answer = await client.reserve(sale.id, f"b{created}", "k")
                    assert answer.code == "created"
                await client.session.close()

        async def settled(workers: int) -> Scrape:
            """When the other worker's last second is in."""
            async with asyncio.timeout(60):
                while True:
                    now = Scrape((await intake.get("/metrics")).body)
                    orders = now.sum("seckill_orders_total", code="created")
                    batched = now("seckill_batch_orders_sum")
                    assert max(orders, batched) <= created
                    if orders == batched == created and now("seckill_workers") == workers:
                        return now
                    await asyncio.sleep(0.1)

        await order(40)
        before = await settled(2)
        pids = workers_of(intake.child.pid)
        assert len(pids) == 2
        os.kill(pids.pop(), signal.SIGKILL)
        await asyncio.sleep(0.3)
        await order(20)
        now = await settled(2)
        assert created == 60
        assert all(now.numbers[key] >= value for key, value in before.counts.items())


# -- over HTTP --------------------------------------------------------------------------------

KEYS = {"sk_m": ("metrics",), "sk_a": ("admin", "backend")}


@pytest.fixture
def settings() -> Settings:
    return Settings(
        keys=tuple(
            ApiKey(
                name=key,
                hash=f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
                scopes=scopes,
            )
            for key, scopes in KEYS.items()
        )
    )


@pytest.fixture
async def client(engine: Engine, settings: Settings) -> AsyncIterator[Client]:
    async with (
        serving(create_app(engine, settings)) as base,
        aiohttp.ClientSession() as session,
    ):
        yield Client(session, base)


async def get_metrics(client: Client, key: str | None) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return await client.call("GET", "/metrics", headers=headers)


async def test_only_a_key_of_scope_metrics_reads_them(client: Client) -> None:
    assert (await get_metrics(client, None)).is_problem(401, "unauthenticated")
    assert (await get_metrics(client, "sk_wrong")).is_problem(401, "unauthenticated")
    assert (await get_metrics(client, "sk_a")).is_problem(403, "forbidden")
    answer = await get_metrics(client, "sk_m")
    assert answer.http == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert Scrape(answer.body)("seckill_ready") == 1


async def test_requests_are_counted(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 1})
    assert (await intake.reserve(sale.id, "b1")).code == "created"
    assert (await intake.reserve(sale.id, "b2")).code == "sold_out"
    assert (await intake.reserve(sale.id, "b3", "")).code == "invalid_input"
    batch = {
        "orders": [
            {"buyer": f"b{n}", "key": "k9", "items": [{"sku": "a", "quantity": 1}]}
            for n in range(3)
        ]
    }
    assert (await intake.post(f"/v1/sales/{sale.id}/orders:batch", batch)).http == 200
    assert (await intake.get("/nothing/here")).http == 404
    now = Scrape((await intake.get("/metrics")).body)
    assert now("seckill_answers_total", verb="reserve", code="created") == 1
    assert now("seckill_answers_total", verb="reserve", code="sold_out") == 1
    assert now("seckill_answers_total", verb="reserve_many", code="ok") == 1
    assert now("seckill_orders_total", code="sold_out") == 4
    assert now("seckill_orders_total", code="created") == 1
    assert now("seckill_in_flight") == 1  # This scrape itself.
    verbs = {dict(at).get("verb", "") for _, at in now.numbers}
    assert "nothing" not in "".join(verbs)
    assert not any(verb.startswith("_") for verb in verbs)
