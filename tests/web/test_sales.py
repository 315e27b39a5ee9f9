"""What buyers see of sales, the clock, and the health of the intake."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import SALES
from tests.support import HOUR_MS, async_client, make_item, make_sale, travel
from tests.web.intake import Intake


async def test_a_sale_as_a_buyer_sees_it(intake: Intake) -> None:
    items = (
        make_item("a", total=1),
        make_item("b", list_price_fen=19_900, list_price_basis="近30天最低成交价"),
    )
    sale = await intake.open_sale(items=items, limit_per_order=2, limit_per_buyer=4)
    await intake.reserve(sale.id)
    document = (await intake.get(f"/v1/sales/{sale.id}")).json
    now_ms = document.pop("at_ms")
    assert abs(now_ms - time.time() * 1000) < 2_000
    assert document == {
        "id": sale.id,
        "title": "晚8点秒杀",
        "phase": "selling",
        "opens_ms": sale.opens_ms,
        "ends_ms": sale.ends_ms,
        "hold_ms": 900_000,
        "pay_ms": 900_000,
        "limit_per_order": 2,
        "limit_per_buyer": 4,
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


async def test_every_phase(intake: Intake) -> None:
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
    monkeypatch.setattr("seckill.server.sales.PAGE_SALES", 2)
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


async def test_the_clock_is_the_sales(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert abs(answer.json["now_ms"] - time.time() * 1000) < 2_000
    # A second later it asks again, and follows a clock that is not ours.
    monkeypatch.setattr("seckill.server.clock.FRESH_S", 0.0)

    async def ahead(engine: Engine) -> int:
        return await real(engine) + HOUR_MS

    monkeypatch.setattr(Engine, "now_ms", ahead)
    await asyncio.sleep(1.01)
    answer = await intake.get("/v1/time")
    assert abs(answer.json["now_ms"] - time.time() * 1000 - HOUR_MS) < 2_000


async def test_health(intake: Intake) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await intake.get(path)
        assert answer.http == 200
        assert answer.json == {"status": "ok"}
