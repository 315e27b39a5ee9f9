"""On the hot route the rules are those of aiohttp's way: tokens, limits, counts, log lines."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.queue import Queue
from seckill.server import create_app
from seckill.server.connection import Connection, Runner
from seckill.server.hot_route import HotConnection
from seckill.server.intake import INTAKE
from seckill.shard import Shard
from tests.web.hot import (
    SECRET,
    Site,
    collector,
    order,
    paused,
    question,
    serving,
    settings,
    token,
    under_way,
)
from tests.web.intake import trusting


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with serving(redis_server.url) as site:
        await site.known("ann", "bob")
        yield site


async def test_how_often_a_place_may_be_asked(redis_server: EmbeddedServer) -> None:
    said = []
    for hot in (True, False):
        limits = {"buyer_per_s": 0.01, "buyer_burst": 3}
        async with serving(redis_server.url, limits=limits, server={"hot_route": hot}) as site:
            await site.known("ann")
            sale, (ticket,) = await site.open_queue("ann")
            client = await site.connect()
            answers = [await client.ask(question(sale.id, ticket)) for _ in range(4)]
            said.append([answer.http for answer in answers])
            assert answers[-1].headers["Retry-After"] == "100"
            assert site.hits == 4 * hot
            assert site.intake.in_flight == 0
    assert said == [[200, 200, 429, 429]] * 2


async def test_a_place_that_fails_has_its_line(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sale, (ticket,) = await site.open_queue("ann")
    client = await site.connect()

    def broken(*_: object) -> None:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "place_of", broken)
        answer = await client.ask(question(sale.id, ticket))
    assert answer.http == 500
    assert answer.headers["X-Request-Id"] in answer.body
    (record,) = [r for r in caplog.records if r.name == "seckill.server"]
    assert record.__dict__["route"] == "/v1/sales/{sale}/tickets/me"
    assert ticket not in caplog.text
    assert (await client.ask(question(sale.id, ticket))).http == 200
    assert (site.hits, site.intake.in_flight) == (2, 0)


async def test_how_often_a_buyer_may_ask(redis_server: EmbeddedServer) -> None:
    said = []
    for hot in (True, False):
        limits = {"buyer_per_s": 0.01, "buyer_burst": 4}
        async with serving(redis_server.url, limits=limits, server={"hot_route": hot}) as site:
            await site.known("ann")  # That is one.
            sale = await site.open_sale()
            client = await site.connect()
            answers = [await client.ask(order(sale.id, key=f"k{n}")) for n in range(5)]
            said.append([answer.http for answer in answers])
            assert 70 <= int(answers[-1].headers["Retry-After"]) <= 100
            assert json.loads(answers[-1].body)["code"] == "rate_limited"
            assert site.hits == 5 * hot
    assert said == [[201, 201, 201, 429, 429]] * 2


async def test_one_too_many(redis_server: EmbeddedServer) -> None:
    async with serving(redis_server.url, server={"max_in_flight": 1}) as site:
        await site.known("ann", "bob")
        sale = await site.open_sale()
        first, second = await site.connect(), await site.connect()
        async with paused(site):
            first.send(order(sale.id))
            await under_way(site)
            answer = await second.ask(order(sale.id, buyer="bob"))
            assert (answer.http, json.loads(answer.body)["code"]) == (503, "busy")
            assert answer.headers["Retry-After"] == "1"
        assert (await first.answer()).http == 201
        assert (await second.ask(order(sale.id, buyer="bob"))).http == 201
        assert site.hits == 3
        assert site.intake.in_flight == 0


@pytest.mark.parametrize("name", ["submit", "outcome"])
async def test_what_fails_has_its_line(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    sale = await site.open_sale()
    client = await site.connect()

    def broken(*_: object) -> None:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Shard, name, broken)
        answer = await client.ask(order(sale.id))
    assert answer.http == 500
    assert answer.headers["X-Request-Id"] in answer.body
    (record,) = [r for r in caplog.records if r.name == "seckill.server"]
    assert record.__dict__["route"] == "/v1/sales/{sale}/orders"
    assert sale.id not in caplog.text
    assert (await client.ask(order(sale.id, key="k2"))).http == 201
    assert site.hits == 2
    assert site.intake.in_flight == 0


async def test_every_order_has_a_line_if_wanted(
    redis_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "seckill.requests")
    async with serving(redis_server.url, log={"requests": "all"}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        caplog.clear()
        answer = await (await site.connect()).ask(order(sale.id))
        assert site.hits == 1
    (record,) = [r for r in caplog.records if r.name == "seckill.requests"]
    assert record.__dict__["code"] == "created"
    assert answer.headers["X-Request-Id"] == record.__dict__["request_id"]


async def test_who_must_see_every_request_does(redis_server: EmbeddedServer) -> None:
    engine = Engine(redis_server.url)
    off: list[dict[str, dict[str, Any]]] = [
        {"server": {"hot_route": False}},
        {"server": {"cors_origins": ["https://a.b"]}},
        {"limits": {"address_per_s": 1}},
        {"gate": {"work_bits": 1, "secrets": [SECRET]}},
    ]
    for tables in off:
        assert create_app(engine, settings(**tables))[INTAKE].hot_route is None, tables
    assert create_app(engine, settings(), identify=trusting)[INTAKE].hot_route is None
    assert create_app(engine, settings())[INTAKE].hot_route is not None

    @web.middleware
    async def mine(request: web.Request, handler: Any) -> web.StreamResponse:
        return await handler(request)  # type: ignore[no-any-return]

    async def hook(request: web.Request, response: web.StreamResponse) -> None:
        pass

    for add in ("middlewares", "on_response_prepare", ""):
        app = create_app(Engine(redis_server.url, durability="memory"), settings())
        if add:
            getattr(app, add).append(mine if add == "middlewares" else hook)
        with collector():
            runner = Runner(app, [], settings().server)
            await runner.setup()
            assert runner.server is not None
            assert type(runner.server()) is (Connection if add else HotConnection), add
            await runner.cleanup()


async def test_a_token_that_runs_out(redis_server: EmbeddedServer) -> None:
    """Its time is looked at each time, however often it was good."""
    async with serving(redis_server.url, users={"secrets": [SECRET], "leeway_s": 0}) as site:
        sale = await site.open_sale()
        client = await site.connect()
        answers = []
        # A busy machine may take longer over the first answer than a token lives.
        for life_s in (3, 10, 30):
            raw = order(sale.id).replace(token("ann"), token("ann", life_s))
            begun = len(answers)
            async with asyncio.timeout(90):
                while len(answers) == begun or answers[-1].http != 401:
                    answers.append(await client.ask(raw))
                    await asyncio.sleep(0.1)
            assert json.loads(answers[-1].body)["code"] == "token_expired"
            if len(answers) > begun + 1:
                break
        assert site.hits == len(answers) > begun + 1


async def test_the_hit_rate_can_be_read(redis_server: EmbeddedServer) -> None:
    """As docs/observability.md says: of all orders that came one by one, and of all questions."""
    key = "sk_" + "k" * 43
    digest = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    keys = [{"name": "prometheus", "hash": digest, "scopes": ["metrics"]}]
    async with serving(redis_server.url, keys=keys) as site:
        await site.known("ann")
        sale, (queue, (ticket,)) = await site.open_sale(), await site.open_queue("ann")
        client = await site.connect()
        for number in range(3):
            assert (await client.ask(order(sale.id, key=f"k{number}"))).http == 201
        assert (await client.ask(order(sale.id, key="last", query="?a"))).http == 201
        for more in ("", "Expect: 100-continue\r\n"):
            assert (await client.ask(question(queue.id, ticket, more=more))).http == 200
        said = await client.ask(
            f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
        )
    assert said.http == 200, said.body
    numbers = dict(line.rsplit(" ", 1) for line in said.body.splitlines() if line[:1] != "#")
    assert float(numbers["seckill_hot_orders_total"]) == 3
    assert float(numbers['seckill_answers_total{code="created",verb="reserve"}']) == 4
    assert float(numbers["seckill_hot_place_queries_total"]) == 1
    assert float(numbers['seckill_place_queries_total{code="ok"}']) == 2
