"""What buyers see of sales and from where it comes, the clock, and the health of the intake."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.keys import SALES, shard_keys
from seckill.sale import Sale
from seckill.server.pages import Memory, Page
from seckill.snapshot import Snapshot
from tests.support import HOUR_MS, async_client, make_item, make_sale, travel
from tests.web.intake import Intake, intake_on


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new look is waited for, however long a busy machine takes for it."""
    monkeypatch.setattr("seckill.server.pages.PATIENCE_S", 60.0)


@pytest.fixture
def always_looking(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    """Nothing counts as fresh, so that a test need not wait for what it did to show."""
    for name in ("FRESH_S", "SETTLED_S"):
        monkeypatch.setattr(f"seckill.server.pages.{name}", 0.0)


class Passing:
    """Our monotonic clock, on which only that time passes which a test lets pass."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def __call__(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Passing:
    """What pages and the sales' clock go by."""
    clock = Passing()
    for module in ("pages", "clock"):
        monkeypatch.setattr(f"seckill.server.{module}.monotonic", clock)
    return clock


class Looks:
    """Counts the looks at Redis, and how many of them have ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.snapshots = 0
        self.lists = 0
        self.definitions = 0
        self.ended = 0
        snapshot, sales, definition = Engine.snapshot, Engine.sales, Engine.sale

        async def counted(engine: Engine, sale: str) -> Snapshot:
            self.snapshots += 1
            try:
                return await snapshot(engine, sale)
            finally:
                self.ended += 1

        async def counted_list(engine: Engine) -> list[str]:
            self.lists += 1
            try:
                return await sales(engine)
            finally:
                self.ended += 1

        async def counted_sale(engine: Engine, sale: str) -> Sale:
            self.definitions += 1
            return await definition(engine, sale)

        monkeypatch.setattr(Engine, "sale", counted_sale)
        monkeypatch.setattr(Engine, "snapshot", counted)
        monkeypatch.setattr(Engine, "sales", counted_list)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


async def test_a_sale_as_a_buyer_sees_it(intake: Intake) -> None:
    items = (
        make_item("a", total=1),
        make_item("b", list_price_fen=19_900, list_price_basis="近30天最低成交价"),
    )
    sale = await intake.open_sale(items=items, limit_per_order=2, limit_per_buyer=4)
    await intake.reserve(sale.id)
    answer = await intake.get(f"/v1/sales/{sale.id}")
    assert abs(int(answer.headers["Seckill-Time-Ms"]) - time.time() * 1000) < 60_000
    assert answer.json == {
        "id": sale.id,
        "title": "晚8点秒杀",
        "phase": "selling",
        "opens_ms": sale.opens_ms,
        "ends_ms": sale.ends_ms,
        "hold_ms": 900_000,
        "pay_ms": 900_000,
        "limit_per_order": 2,
        "limit_per_buyer": 4,
        "admission": None,
        "items": [
            {
                "sku": "a",
                "title": "商品 a",
                "price_fen": 9_900,
                "list_price_fen": None,
                "list_price_basis": None,
                "limit_per_buyer": 0,
                "sold_out": True,
            },
            {
                "sku": "b",
                "title": "商品 b",
                "price_fen": 9_900,
                "list_price_fen": 19_900,
                "list_price_basis": "近30天最低成交价",
                "limit_per_buyer": 0,
                "sold_out": False,
            },
        ],
    }


async def test_every_phase(intake: Intake, always_looking: None) -> None:
    async def phase(sale: str) -> str:
        shown: str = (await intake.get(f"/v1/sales/{sale}")).json["phase"]
        listed = [s for s in (await intake.get("/v1/sales")).json["sales"] if s["id"] == sale]
        assert [s["phase"] for s in listed] == [shown]
        return shown

    soon = datetime.now(UTC) + timedelta(hours=1)
    sale = make_sale({"a": 1}, opens_at=soon, ends_at=soon + timedelta(hours=1))
    await intake.engine.create(sale)
    assert await phase(sale.id) == "created"
    await intake.engine.open(sale.id)
    assert await phase(sale.id) == "not_started"
    await travel(intake.engine, sale.id, HOUR_MS)
    assert await phase(sale.id) == "selling"
    await intake.engine.pause(sale.id, "inner matters")
    assert await phase(sale.id) == "paused"
    assert b"inner matters" not in (await intake.get(f"/v1/sales/{sale.id}")).body
    await intake.engine.resume(sale.id)
    assert (await intake.reserve(sale.id)).http == 201
    await travel(intake.engine, sale.id, HOUR_MS)
    assert await phase(sale.id) == "ended"
    await intake.engine.close(sale.id)
    assert await phase(sale.id) == "closed"
    await intake.engine._expire(sale.id, 100)
    assert await phase(sale.id) == "settled"


async def test_the_list_comes_in_pages(
    intake: Intake, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seckill.server.pages.PAGE_SALES", 2)
    made = {(await intake.open_sale()).id for _ in range(5)}
    async with async_client(redis_server.url) as client:
        # A creation that was cut short: named, and not there.
        await client.sadd(SALES, "zz-never-made")
    seen: list[str] = []
    path = "/v1/sales"
    for _ in range(100):
        page = (await intake.get(path)).json
        assert len(page["sales"]) <= 2
        seen += [sale["id"] for sale in page["sales"]]
        if page["after"] is None:
            break
        path = f"/v1/sales?after={page['after']}"
    assert seen == sorted(set(seen))
    assert made <= set(seen)
    assert "zz-never-made" not in seen


@pytest.mark.usefixtures("clock")
async def test_a_storm_costs_one_look(intake: Intake, looks: Looks) -> None:
    sale = await intake.open_sale()
    for _ in range(3):
        pages = await asyncio.gather(*(intake.get(f"/v1/sales/{sale.id}") for _ in range(50)))
        assert {page.http for page in pages} == {200}
    assert (looks.snapshots, looks.lists) == (1, 1)
    lists = await asyncio.gather(*(intake.get(f"/v1/sales?after={n:040}") for n in range(50)))
    assert {page.http for page in lists} == {200}
    others = len(lists[0].json["sales"]) - 1
    assert (looks.snapshots, looks.lists) == (1 + others, 1)


@pytest.mark.usefixtures("clock")
async def test_made_up_sales_cost_little(intake: Intake, looks: Looks) -> None:
    answers = await asyncio.gather(*(intake.get(f"/v1/sales/made-up-{n}") for n in range(400)))
    for answer in answers:
        assert answer.is_problem(404, "unknown_sale")
        assert answer.headers["Cache-Control"] == "no-store"
    assert looks.lists == 1
    assert looks.definitions < 150
    assert (await intake.get("/v1/sales/%21")).is_problem(400, "invalid_input")


@pytest.mark.usefixtures("clock")
async def test_a_new_sale_is_found_at_once(intake: Intake, looks: Looks) -> None:
    await intake.get("/v1/sales")
    sale = await intake.open_sale()
    assert (await intake.get(f"/v1/sales/{sale.id}")).http == 200
    assert looks.lists == 1


@pytest.mark.usefixtures("patient")
async def test_a_page_is_at_most_a_second_old(intake: Intake, looks: Looks, clock: Passing) -> None:
    sale = await intake.open_sale({"a": 1})
    path = f"/v1/sales/{sale.id}"
    assert not (await intake.get(path)).json["items"][0]["sold_out"]
    await intake.reserve(sale.id)
    clock.passes(0.95)
    assert not (await intake.get(path)).json["items"][0]["sold_out"]
    clock.passes(0.1)
    page = await intake.get(path)
    assert page.json["items"][0]["sold_out"]
    assert looks.snapshots == 2
    assert "Age" not in page.headers


@pytest.mark.usefixtures("patient")
async def test_a_page_is_not_kept_beyond_the_opening(
    intake: Intake, looks: Looks, clock: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seckill.server.pages.FRESH_S", 7_200.0)
    opens_at = datetime.now(UTC) + timedelta(hours=1)
    sale = await intake.open_sale(opens_at=opens_at, ends_at=opens_at + timedelta(hours=2))
    path = f"/v1/sales/{sale.id}"
    assert (await intake.get(path)).json["phase"] == "not_started"
    # The test has come this far in less than ten minutes.
    clock.passes(3_000)
    assert (await intake.get(path)).json["phase"] == "not_started"
    assert looks.snapshots == 1
    await travel(intake.engine, sale.id, HOUR_MS)
    clock.passes(601)
    assert (await intake.get(path)).json["phase"] == "selling"
    assert looks.snapshots == 2


async def test_a_settled_sale_is_looked_at_rarely(
    intake: Intake, looks: Looks, clock: Passing
) -> None:
    sale = await intake.open_sale()
    await intake.engine.close(sale.id)
    await intake.engine._expire(sale.id, 100)
    path = f"/v1/sales/{sale.id}"
    assert (await intake.get(path)).json["phase"] == "settled"
    clock.passes(1.05)
    page = await intake.get(path)
    assert looks.snapshots == 1
    assert "Age" not in page.headers


async def test_not_modified(intake: Intake, always_looking: None) -> None:
    sale = await intake.open_sale()
    for path in (f"/v1/sales/{sale.id}", "/v1/sales", "/openapi.json"):
        first = await intake.get(path)
        etag = first.headers["ETag"]
        assert first.headers["Cache-Control"].startswith("public, max-age=")
        for sent in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = await intake.call("GET", path, headers={"If-None-Match": sent})
            assert (again.http, again.body) == (304, b"")
            assert again.headers["ETag"] == etag
            assert again.headers["Cache-Control"] == first.headers["Cache-Control"]
        for sent in ('"other"', etag.strip('"'), "", '"', "W/"):
            again = await intake.call("GET", path, headers={"If-None-Match": sent})
            assert (again.http, again.body) == (200, first.body)
        head = await intake.call("HEAD", path)
        assert (head.http, head.body) == (200, b"")
        assert head.headers["ETag"] == etag
        assert head.headers["Content-Length"] == str(len(first.body))
        head = await intake.call("HEAD", path, headers={"If-None-Match": etag})
        assert head.http == 304
    # What buyers buy does not change the page; that it is sold out does.
    path = f"/v1/sales/{sale.id}"
    etag = (await intake.get(path)).headers["ETag"]
    await intake.reserve(sale.id, a=1)
    assert (await intake.get(path)).headers["ETag"] == etag
    await intake.reserve(sale.id, "b2", a=9)
    assert (await intake.get(path)).headers["ETag"] != etag


async def test_an_old_page_is_better_than_none(
    redis_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    looks: Looks,
    clock: Passing,
) -> None:
    async with (
        # One that still waits for Redis when the others have their pages, and one that gives up.
        intake_on(redis_server.url, timeout_ms=60_000) as intake,
        intake_on(redis_server.url, timeout_ms=1_000) as hasty,
    ):
        sale = await intake.open_sale()
        paths = (f"/v1/sales/{sale.id}", "/v1/sales")
        fresh = [await intake.get(path) for path in paths]
        async with asyncio.timeout(30):
            while [(await hasty.get(path)).http for path in paths] != [200, 200]:
                clock.passes(2)
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            clock.passes(2)
            ended = looks.ended
            for path, before in zip(paths, fresh, strict=True):
                pages = await asyncio.gather(*(intake.get(path) for _ in range(50)))
                # Nobody has waited for what is still asked of Redis.
                assert looks.ended == ended
                for page in pages:
                    assert (page.http, page.body) == (200, before.body)
                    assert int(page.headers["Age"]) >= 1
                    assert "stale-if-error=30" in page.headers["Cache-Control"]
            monkeypatch.setattr("seckill.server.pages.STALE_S", 0.0)
            for path in paths:
                answer = await hasty.get(path)
                assert answer.code in ("outcome_unknown", "unavailable")
                assert answer.is_problem(503, answer.code)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        # After a failure there is a pause before the next look.
        assert (await hasty.get(paths[0])).http == 503
        async with asyncio.timeout(30):
            while (page := await hasty.get(paths[0])).http != 200:
                clock.passes(2)
        assert "Age" not in page.headers


@pytest.mark.usefixtures("patient")
async def test_what_is_gone_is_not_shown(
    intake: Intake, redis_server: EmbeddedServer, clock: Passing
) -> None:
    sale = await intake.open_sale()
    assert (await intake.get(f"/v1/sales/{sale.id}")).http == 200
    async with async_client(redis_server.url) as client:
        await client.delete(*shard_keys(sale.id))
    clock.passes(1.05)
    assert (await intake.get(f"/v1/sales/{sale.id}")).is_problem(404, "unknown_sale")


async def test_memory_is_bounded(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    async def look(key: str) -> Page:
        looked.append(key)
        return Page(fresh_until_s=time.monotonic() + 60, body=bytes(9_000), etag=key)

    memory = Memory(look)
    monkeypatch.setattr("seckill.server.pages.BYTES_MAX", 100_000)
    for n in range(50):
        await memory.get(str(n))
    assert await memory.get("49")
    assert len(looked) == 50
    kept = [n for n in range(50) if str(n) in memory]
    assert kept == list(range(40, 50))
    # The same again takes no more room.
    memory.outdate()
    for n in kept * 3:
        await memory.get(str(n))
    assert [n for n in range(50) if str(n) in memory] == kept


async def test_what_is_gone_is_forgotten() -> None:
    async def look(key: str) -> Page:
        if looks.pop():
            raise UnknownSale(key)
        return Page(fresh_until_s=0.0, body=b"", etag="")

    looks = [True, False]
    memory = Memory(look)
    await memory.get("s")
    assert "s" in memory
    with pytest.raises(UnknownSale):
        await memory.get("s")
    assert "s" not in memory


@pytest.mark.usefixtures("patient")
async def test_the_clock_is_the_sales(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, clock: Passing
) -> None:
    await intake.open_sale()
    asked = 0

    async def now_ms(engine: Engine) -> int:
        nonlocal asked
        asked += 1
        return await real(engine)

    real = Engine.now_ms
    monkeypatch.setattr(Engine, "now_ms", now_ms)
    answers = await asyncio.gather(*(intake.get("/v1/time") for _ in range(20)))
    assert asked == 1
    for answer in answers:
        assert abs(answer.json["now_ms"] - time.time() * 1000) < 60_000
    # A second later it asks again, and follows a clock that is not ours.

    async def ahead(engine: Engine) -> int:
        return await real(engine) + HOUR_MS

    monkeypatch.setattr(Engine, "now_ms", ahead)
    clock.passes(1.01)
    answer = await intake.get("/v1/time")
    assert abs(answer.json["now_ms"] - time.time() * 1000 - HOUR_MS) < 60_000


async def test_health(intake: Intake) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await intake.get(path)
        assert answer.http == 200
        assert answer.json == {"status": "ok"}
