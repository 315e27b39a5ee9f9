"""What stands around every handler: bounds, limits, ids."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.caller import Caller
from seckill.server.settings import Settings
from tests.web.intake import Intake, serving, trusting


async def buyer_by_header(request: web.Request) -> Caller:
    """As a user token would say it."""
    return Caller(buyer=request.headers["Authorization"].removeprefix("Bearer "))


@asynccontextmanager
async def intake_with(url: str, **settings: dict[str, Any]) -> AsyncIterator[Intake]:
    engine = Engine(url, durability="memory", sweep_ms=0)
    identify = settings.pop("identify", trusting)
    app = create_app(engine, Settings.model_validate(settings), identify=identify)  # type: ignore[arg-type]
    async with engine, serving(app) as base, aiohttp.ClientSession() as session:
        yield Intake(session, base, engine)


class Stuck:
    """An engine's ``order`` that waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        self.asked = 0
        stuck = self

        async def order(*_: Any, **__: Any) -> None:
            stuck.asked += 1
            await stuck.go.wait()

        monkeypatch.setattr(Engine, "order", order)

    async def reached(self, number: int) -> None:
        async with asyncio.timeout(30):
            while self.asked < number:  # noqa: ASYNC110 - counted by requests
                await asyncio.sleep(0.005)


ORDER = "/v1/sales/s/orders/00a1b2c3d4e5f60718293a4b"


async def test_one_request_too_many_is_told_at_once(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(monkeypatch)
    async with intake_with(redis_server.url, server={"max_in_flight": 3}) as intake:
        waiting = [asyncio.create_task(intake.get(ORDER)) for _ in range(3)]
        await stuck.reached(3)
        # These are told while the three still wait.
        async with asyncio.timeout(30):
            answer = await intake.get("/v1/time")
            assert answer.is_problem(503, "busy")
            # Whoever watches over the process is answered, or it would be ended under load.
            assert (await intake.get("/healthz")).http == 200
            assert (await intake.get("/readyz")).http == 200
            assert (await intake.get("/metrics")).http == 200
        stuck.go.set()
        assert [answer.http for answer in await asyncio.gather(*waiting)] == [404] * 3
        assert (await intake.get("/v1/time")).http == 200


async def test_a_buyer_who_asks_too_often(redis_server: EmbeddedServer) -> None:
    limits = {"buyer_per_s": 0.01, "buyer_burst": 3}
    async with intake_with(redis_server.url, limits=limits, identify=buyer_by_header) as intake:
        sale = await intake.open_sale()
        path = f"/v1/sales/{sale.id}/orders/00a1b2c3d4e5f60718293a4b"

        async def ask(buyer: str) -> Any:
            return await intake.call("GET", path, headers={"Authorization": f"Bearer {buyer}"})

        codes = [(await ask("ann")).code for _ in range(4)]
        assert codes == ["unknown_order"] * 3 + ["rate_limited"]
        refused = await ask("ann")
        assert refused.is_problem(429, "rate_limited")
        assert 70 <= int(refused.headers["Retry-After"]) <= 100
        assert (await ask("bob")).code == "unknown_order"


async def test_the_mall_is_not_limited(redis_server: EmbeddedServer) -> None:
    limits = {"buyer_per_s": 0.01, "buyer_burst": 1}
    async with intake_with(redis_server.url, limits=limits) as intake:
        sale = await intake.open_sale({"a": 100})
        answers = [await intake.reserve(sale.id, "ann", f"k{n}") for n in range(20)]
        assert {answer.http for answer in answers} == {201}


async def test_an_address_that_asks_too_often(redis_server: EmbeddedServer) -> None:
    limits = {"address_per_s": 0.01, "address_burst": 2}
    server = {"trusted_proxies": ["127.0.0.1"]}
    async with intake_with(redis_server.url, limits=limits, server=server) as intake:

        async def ask(address: str) -> Any:
            headers = {"X-Forwarded-For": address}
            return await intake.call("GET", "/v1/time", headers=headers)

        assert [(await ask("192.0.2.1")).http for _ in range(3)] == [200, 200, 429]
        assert (await ask("192.0.2.2")).http == 200
        assert (await intake.get("/healthz")).http == 200


async def test_an_ipv6_client_is_its_network(redis_server: EmbeddedServer) -> None:
    limits = {"address_per_s": 0.01, "address_burst": 2}
    server = {"trusted_proxies": ["127.0.0.1"]}
    async with intake_with(redis_server.url, limits=limits, server=server) as intake:

        async def ask(address: str) -> Any:
            headers = {"X-Forwarded-For": address}
            return await intake.call("GET", "/v1/time", headers=headers)

        codes = [(await ask(f"2001:db8:0:1::{n}")).http for n in range(4)]
        assert codes == [200, 200, 429, 429]
        assert (await ask("2001:db8:0:2::1")).http == 200


async def test_a_body_that_never_ends(redis_server: EmbeddedServer) -> None:
    async with intake_with(redis_server.url, server={"read_timeout_s": 0.3}) as intake:
        sale = await intake.open_sale()
        host, port = intake.base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /v1/sales/{sale.id}/orders HTTP/1.1\r\nHost: x\r\nSeckill-Buyer: ann\r\n"
            "Idempotency-Key: k\r\nContent-Type: application/json\r\n"
            "Content-Length: 50\r\n\r\n{".encode()
        )
        async with asyncio.timeout(30):
            answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert (await intake.engine.snapshot(sale.id)).orders == 0


async def test_every_request_can_have_a_line_and_an_id(
    redis_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with intake_with(redis_server.url, log={"requests": "all"}) as intake:
        sale = await intake.open_sale()
        with caplog.at_level(logging.INFO, logger="seckill"):
            answers = [await intake.reserve(sale.id, "the-buyer", "k1") for _ in range(2)]
            answers.append(await intake.get("/nope"))
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == 3
    records = [record.__dict__ for record in caplog.records]
    assert [record["request_id"] for record in records] == ids
    assert [record["route"] for record in records] == ["/v1/sales/{sale}/orders"] * 2 + ["/{tail}"]
    assert [record["code"] for record in records] == ["created", "exists", "not_found"]
    assert "the-buyer" not in caplog.text
    assert sale.id not in caplog.text


async def test_no_line_no_id(intake: Intake) -> None:
    sale = await intake.open_sale()
    assert "X-Request-Id" not in (await intake.reserve(sale.id)).headers


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/sales/s/orders", "POST"),
        ("POST", "/v1/time", "GET,HEAD"),
        ("PATCH", "/v1/sales/s", "GET,HEAD"),
    ],
)
async def test_a_method_that_a_path_does_not_have(
    intake: Intake, method: str, path: str, allow: str
) -> None:
    answer = await intake.call(method, path)
    assert answer.is_problem(405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(",")) == set(allow.split(","))
