"""The intake inside a mall's own application."""

from __future__ import annotations

import json

import aiohttp
import pytest
from aiohttp import web

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import EngineClosed
from seckill.server import create_app
from tests.support import make_sale
from tests.web.intake import Client, Intake, serving, trusting

BODY = json.dumps({"items": [{"sku": "a", "quantity": 1}]}).encode()


async def home(request: web.Request) -> web.Response:
    return web.Response(text="mall")


def mall_around(*engines: Engine) -> web.Application:
    mall = web.Application()
    mall.router.add_get("/", home)
    for number, engine in enumerate(engines):
        mall.add_subapp(f"/seckill/{number}", create_app(engine, identify=trusting))
    return mall


async def test_mounted(redis_server: EmbeddedServer) -> None:
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0)
    async with serving(mall_around(engine)) as base, aiohttp.ClientSession() as session:
        sale = make_sale()
        await engine.create(sale)
        await engine.open(sale.id)
        mall = Client(session, base)
        assert (await mall.get("/")).body == b"mall"
        intake = Client(session, f"{base}/seckill/0")
        assert (await intake.get("/readyz")).http == 200
        answer = await intake.reserve(sale.id)
        assert answer.http == 201
        # The way to the order leads through the mall.
        location = answer.headers["Location"]
        assert location.startswith("/seckill/0/v1/sales/")
        assert (await mall.get(location, "b1")).json == answer.json["order"]
        # Inside the prefix errors are ours, outside they are the mall's.
        assert (await intake.get("/nope")).is_problem(404, "not_found")
        assert (await intake.post("/v1/time")).is_problem(405, "method_not_allowed")
        assert (await mall.get("/nope")).body == b"404: Not Found"
        # The mall's limit for bodies is in force, and ours within it.
        path = f"/v1/sales/{sale.id}/orders"
        for size in (65_537, 1_000_000):
            answer = await intake.post(path, BODY.ljust(size), "b2", "k")
            assert answer.is_problem(413, "body_too_large")

            async def chunks(size: int = size) -> object:
                for _ in range(size // 8_192 + 1):
                    yield b" " * 8_192

            headers = {"Seckill-Buyer": "b2", "Idempotency-Key": "k"}
            headers["Content-Type"] = "application/json"
            answer = await intake.call("POST", path, data=chunks(), headers=headers)
            assert answer.is_problem(413, "body_too_large")
    # It was started with the mall, so it ended with it.
    with pytest.raises(EngineClosed):
        await engine.sales()


async def test_two_intakes_share_nothing(
    intake: Intake, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with EmbeddedServer(tmp_path_factory.mktemp("other"), appendfsync="no") as other:
        first, second = (
            Engine(url, durability="memory", sweep_ms=0) for url in (intake.engine.url, other.url)
        )
        sale = await intake.open_sale()
        async with serving(mall_around(first, second)) as base, aiohttp.ClientSession() as session:
            assert (await Client(session, f"{base}/seckill/0").reserve(sale.id)).http == 201
            answer = await Client(session, f"{base}/seckill/1").reserve(sale.id)
            assert answer.is_problem(404, "unknown_sale")


async def test_an_engine_that_was_started_stays_its_owners(intake: Intake) -> None:
    async with serving(mall_around(intake.engine)) as base, aiohttp.ClientSession() as session:
        assert (await Client(session, f"{base}/seckill/0").get("/readyz")).http == 200
    assert (await intake.get("/readyz")).http == 200
