"""Orders on the hot route are answered as aiohttp's way answers them, and harm nobody."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from operator import eq
from typing import Any, Self

import hypothesis
import jwt
import pytest
import uvloop
from aiohttp import web
from hypothesis import strategies as st

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.queue import Queue
from seckill.sale import Sale
from seckill.server import create_app, hot_route
from seckill.server.connection import Connection, Connections, Runner
from seckill.server.hot_route import HotConnection
from seckill.server.intake import INTAKE
from seckill.server.settings import Settings
from seckill.shard import Shard
from tests.support import async_client, make_sale
from tests.web.intake import trusting

SECRET = "s" * 40
BODY = '{"items":[{"sku":"a","quantity":1}]}'
# What differs from one order, and from one ticket, to the next.
_OWN = re.compile(r'"(id|sale|deadline_ms|ticket|token|at_ms|eta_ms|expires_ms)":("[^"]*"|\d+)')
TIME = b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """Runner sets the garbage collector for a process of its own."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@cache
def token(buyer: str, life_s: int = 3_600) -> str:
    return jwt.encode({"sub": buyer, "exp": int(time.time()) + life_s}, SECRET)


def settings(**tables: dict[str, Any]) -> Settings:
    users = {"secrets": [SECRET]}
    return Settings.model_validate({"users": users, "limits": {"buyer_per_s": 0}} | tables)


def order(
    sale: str,
    *,
    buyer: str = "ann",
    key: str = "k1",
    body: str = BODY,
    more: str = "",
    query: str = "",
) -> str:
    return (
        f"POST /v1/sales/{sale}/orders{query} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {token(buyer)}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}"
    )


def question(sale: str, ticket: str, *, buyer: str = "ann", more: str = "") -> str:
    """Where does my ticket stand?"""
    return (
        f"GET /v1/sales/{sale}/tickets/me HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {token(buyer)}\r\nSeckill-Ticket: {ticket}\r\n{more}\r\n"
    )


class Answer:
    """What came back."""

    def __init__(self, head: str, body: str) -> None:
        self.line, *lines = head.strip().split("\r\n")
        self.http = int(self.line.split()[1])
        self.headers = dict(line.split(": ", 1) for line in lines)
        self.body = body

    def plain(self) -> tuple[str, dict[str, str], str]:
        """All of it but what differs from one order to the next."""
        headers = {name: value for name, value in self.headers.items() if name != "Date"}
        headers.pop("Content-Length", None)
        location = headers.pop("Location", "")
        if location:
            assert json.loads(self.body)["order"]["id"] == location.rpartition("/")[2]
            assert location.startswith("/v1/sales/")
        body = re.sub(_OWN, r'"\1":0', self.body)
        return self.line, headers, body


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: str | bytes) -> None:
        self.writer.write(raw.encode() if isinstance(raw, str) else raw)

    async def answer(self, *, bodiless: bool = False) -> Answer:
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("HTTP/1.1 100"):
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            found = re.search(r"Content-Length: (\d+)", head)
            length = int(found[1]) if found and not bodiless else 0
            body = (await self.reader.readexactly(length)).decode()
        return Answer(head, body)

    async def ask(self, raw: str | bytes) -> Answer:
        self.send(raw)
        return await self.answer()

    async def ended(self) -> None:
        """Waits for the end, before which nothing more is said."""
        async with asyncio.timeout(30):
            assert await self.reader.read(-1) == b""


class Site:
    """An intake that is served by itself, with a sale that sells."""

    def __init__(self, engine: Engine, runner: Runner, port: int) -> None:
        self.engine = engine
        self.runner = runner
        self.port = port
        self.intake = runner.app[INTAKE]
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def hits(self) -> int:
        return self.intake.metrics.hot_orders + self.intake.metrics.hot_places

    @property
    def connections(self) -> Connections:
        assert isinstance(self.runner.server, Connections)
        return self.runner.server

    @property
    def connection(self) -> HotConnection:
        (connection,) = self.connections.connections
        assert isinstance(connection, HotConnection)
        return connection

    async def connect(self) -> Client:
        """A client, and the server is waiting for what it says."""
        before = set(self.connections.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        await until(lambda: set(self.connections.connections) - before)
        await asyncio.sleep(0.01)
        return Client(reader, writer)

    async def open_sale(self, units: int = 1_000) -> Sale:
        sale = make_sale({"a": units})
        await self.engine.create(sale)
        await self.engine.open(sale.id)
        # Its lane is opened by the first order.
        assert (await self.engine.reserve(sale.id, "first", "k", {"a": 1})).ok
        return sale

    async def open_queue(self, *buyers: str, **fields: Any) -> tuple[Sale, list[str]]:
        """A sale that nobody is called in yet, and the tickets of these buyers."""
        opens_at = datetime.now(UTC) + timedelta(hours=2)
        defaults = {"opens_at": opens_at, "ends_at": opens_at + timedelta(hours=1)}
        admission = Admission(mode="queue")
        sale = make_sale({"a": 10}, **(defaults | fields), admission=admission)
        await self.engine.create(sale)
        await self.engine.open(sale.id)
        places = [(await self.engine.queue.join(sale.id, buyer)).place for buyer in buyers]
        return sale, [place.ticket for place in places if place is not None]

    async def known(self, *buyers: str) -> None:
        """Makes these buyers' tokens known."""
        client = await self.connect()
        for buyer in buyers:
            await client.ask(
                "GET /v1/sales/s/orders/00a1b2c3d4e5f60718293a4b HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Bearer {token(buyer)}\r\n\r\n"
            )
        client.writer.close()
        await until(lambda: not self.connections.connections)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


async def until(is_so: Any) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 - a client or a timer makes it true
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(url: str, **tables: dict[str, Any]) -> AsyncIterator[Site]:
    chosen = settings(**tables)
    async with Engine(url, durability="memory", sweep_ms=0, timeout_ms=60_000) as engine:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        runner = Runner(create_app(engine, chosen), [sock], chosen.server)
        await runner.setup()
        site = Site(engine, runner, sock.getsockname()[1])
        try:
            yield site
        finally:
            site.hang_up()
            await runner.cleanup()


@asynccontextmanager
async def paused(site: Site) -> AsyncIterator[None]:
    """Redis decides nothing meanwhile."""
    async with async_client(site.engine.url) as client:
        await client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        try:
            yield
        finally:
            await client.execute_command("CLIENT", "UNPAUSE")


async def under_way(site: Site, count: int = 1) -> None:
    await until(lambda: site.intake.in_flight == count)


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with serving(redis_server.url) as site:
        await site.known("ann", "bob")
        yield site


def story(sale: str) -> list[tuple[str, bool]]:
    """Requests, and whether they are the hot route's."""
    plain = order(sale)
    chunked = re.sub(r"Content-Length: \d+", "Transfer-Encoding: chunked", plain)
    chunked = chunked.replace(BODY, f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n")
    return [
        (plain, True),
        (plain, True),
        (order(sale, body='{"items":[{"sku":"a","quantity":2}]}'), True),
        (order(sale, buyer="bob", key="k2"), True),
        (order(sale, key="k3", body='{"items":[{"sku":"x","quantity":1}]}'), True),
        (order(sale, key="k4", body='{"items":[{"sku":"a","quantity":3}]}'), True),
        (order(sale, body="{"), True),
        (order(sale, body='{"items":[]}'), True),
        (order(sale, body='{"items":[{"sku":"a","quantity":0}]}'), True),
        (order(sale, key="b b"), True),
        (plain.replace("Host", "hOST").replace("Idempotency-Key", "idempotency-key"), True),
        (order(sale, query="?a=1"), False),
        (order(sale, buyer="eve", key="k5"), False),
        (order(sale, buyer="eve", key="k6"), True),
        (plain.replace("Idempotency-Key: k1\r\n", ""), False),
        (plain.replace("application/json", "text/plain"), False),
        (plain.replace("application/json", "application/json; charset=utf-8"), False),
        (order(sale, more="Content-Encoding: gzip\r\n"), False),
        (order(sale, more="Content-Encoding: identity\r\n"), False),
        (order(sale, more="Idempotency-Key: k1\r\n"), False),
        (order(sale, more=f"Authorization: Bearer {token('bob')}\r\n"), False),
        (order(sale, more="Seckill-Buyer: bob\r\n"), False),
        (order(sale, more="Expect: 100-continue\r\n"), False),
        (order(sale, more="Upgrade: h2c\r\n"), False),
        (order(sale, body=" " * 70_000 + BODY), False),
        (chunked, False),
        (re.sub(r"Authorization: .*\r\n", "", plain), False),
        (re.sub(r"Bearer \S+", "Bearer nonsense", plain), False),
        (plain.replace(token("ann"), token("ann", -60)), False),
        (order("nope"), False),
        (order(f"%{ord(sale[0]):x}{sale[1:]}"), False),
        (order("n" * 41), False),
        (plain.replace("POST", "PUT", 1), False),
        (plain.replace("POST", "GET", 1), False),
        (plain.replace("/orders", "/orders/", 1), False),
        (plain.replace("POST ", "POST http://x", 1), False),
        (order(sale, more="Connection: close\r\n"), False),
        (plain.replace("HTTP/1.1", "HTTP/1.0"), False),
        (order(sale, more="Connection: keep-alive\r\n").replace("HTTP/1.1", "HTTP/1.0"), False),
    ]


async def test_both_ways_answer_alike(redis_server: EmbeddedServer) -> None:
    said = []
    for hot in (True, False):
        async with serving(redis_server.url, server={"hot_route": hot}) as site:
            await site.known("ann", "bob")
            sale = await site.open_sale(units=4)
            client, answers = await site.connect(), []
            for raw, is_hot in story(sale.id):
                before = site.hits
                answer = await client.ask(raw)
                answers.append(answer.plain())
                assert site.hits - before == (hot and is_hot), raw
                if not is_hot:
                    # aiohttp may end it.
                    client.writer.close()
                    client = await site.connect()
            assert site.intake.in_flight == 0
            counted = {
                key: answers.count
                for key, answers in site.intake.metrics._answers.items()
                if key[0] == "reserve"
            }
        said.append((answers, counted))
    for (raw, _), quick, slow in zip(story("…"), said[0][0], said[1][0], strict=True):
        assert quick == slow, raw
    assert said[0][1] == said[1][1]
    lines = [line.split()[1] for line, *_ in said[0][0]]
    assert lines[:6] == ["201", "200", "409", "201", "422", "409"]


def questions(sale: str, plain: str, tickets: list[str]) -> list[tuple[str, bool]]:
    """The same for questions of ann and bob for their places; ``plain`` is a sale without any."""
    mine, bobs = tickets
    good = question(sale, mine)
    return [
        (good, True),
        (question(sale, bobs, buyer="bob"), True),
        (question(sale, bobs), True),
        (question(sale, "x"), True),
        (question(sale, ""), True),
        (question(sale, "秒"), True),
        (good.replace("Seckill-Ticket", "seckill-ticket").replace("Host", "hOST"), True),
        (question(sale, mine, more="Content-Type: text/plain\r\n"), True),
        (question(sale, mine, more="Idempotency-Key: k\r\n"), True),
        (question(sale, mine, more="Content-Length: 0\r\n"), True),
        (question(sale, mine, more="If-None-Match: *\r\nRange: bytes=0-1\r\n"), True),
        (question(sale, mine, buyer="eve"), False),
        (question(sale, mine, buyer="eve"), True),
        (question(sale, mine, more=f"Seckill-Ticket: {mine}\r\n"), False),
        (good.replace(f"Seckill-Ticket: {mine}\r\n", ""), False),
        (question(sale, mine, more="Seckill-Buyer: bob\r\n"), False),
        (question(sale, mine, more=f"Authorization: Bearer {token('bob')}\r\n"), False),
        (question(sale, mine, more="Expect: 100-continue\r\n"), False),
        (question(sale, mine, more="Upgrade: h2c\r\n"), False),
        (question(sale, mine, more="Content-Encoding: identity\r\n"), False),
        (question(sale, mine, more="Content-Length: 2\r\n") + "{}", False),
        (question(sale, mine, more="Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", False),
        (re.sub(r"Authorization: .*\r\n", "", good), False),
        (re.sub(r"Bearer \S+", "Bearer nonsense", good), False),
        (good.replace(token("ann"), token("ann", -60)), False),
        (question(plain, mine), False),
        (question("none", mine), False),
        (good.replace("/me", "/me?a=1"), False),
        (good.replace("/me", "/me/"), False),
        (good.replace("/me", "/m%65"), False),
        (good.replace("GET ", "GET http://x"), False),
        (good.replace("GET", "HEAD", 1), False),
        (good.replace("GET", "POST", 1), False),
        (question(sale, mine, more="Connection: close\r\n"), False),
        (good.replace("HTTP/1.1", "HTTP/1.0"), False),
        (good.replace("GET", "DELETE", 1), False),
        (good, True),
        (order(sale), True),
    ]


async def test_places_are_told_alike(redis_server: EmbeddedServer) -> None:
    said = []
    for hot in (True, False):
        async with serving(redis_server.url, server={"hot_route": hot}) as site:
            await site.known("ann", "bob")
            plain = await site.open_sale()
            sale, tickets = await site.open_queue("ann", "bob")
            # The lane of its orders is opened by the first.
            assert not (await site.engine.reserve(sale.id, "ann", "k", {"a": 1})).ok
            client, answers = await site.connect(), []
            for raw, is_hot in questions(sale.id, plain.id, tickets):
                before = site.hits
                client.send(raw)
                answer = await client.answer(bodiless=raw.startswith("HEAD"))
                answers.append(answer.plain())
                assert site.hits - before == (hot and is_hot), raw
                if not is_hot:
                    client.writer.close()
                    client = await site.connect()
            assert site.intake.in_flight == 0
            counted = {
                key: answers.count
                for key, answers in site.intake.metrics._answers.items()
                if key[0] in ("place", "leave")
            }
        said.append((answers, counted))
    asked = questions("…", "…", ["…", "…"])
    for (raw, _), quick, slow in zip(asked, said[0][0], said[1][0], strict=True):
        assert quick == slow, raw
    assert said[0][1] == said[1][1]
    lines = [line.split()[1] for line, *_ in said[0][0]]
    assert lines[:4] == ["200", "200", "404", "404"]


async def test_a_queue_that_was_not_seen_for_a_while(site: Site) -> None:
    """What would have to be guessed is asked, by orders as well."""
    sale, (ticket,) = await site.open_queue("ann", opens_at=datetime.now(UTC))
    assert (await site.engine.reserve(sale.id, "ann", "k", {"a": 1})).ok is False
    client = await site.connect()
    shard = site.engine.at_hand(sale.id)
    assert shard is not None
    assert shard.queue is not None
    for raw in (question(sale.id, ticket), order(sale.id)):
        before = site.hits
        shard.queue._looked_s -= 60
        assert (await client.ask(raw)).http < 500
        assert site.hits == before
        assert (await client.ask(raw)).http < 500
        assert site.hits == before + 1


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


async def test_places_among_other_requests(site: Site) -> None:
    sale, (ticket,) = await site.open_queue("ann")
    asked, plain = question(sale.id, ticket), await site.open_sale()
    client = await site.connect()
    for _ in range(40):
        assert '"waiting"' in (await client.ask(asked)).body
    assert site.hits == 40
    # Several in one read are aiohttp's, in their order.
    client.send(asked.encode() + TIME + asked.encode())
    answers = [await client.answer() for _ in range(3)]
    assert ["now_ms" in answer.body for answer in answers] == [False, True, False]
    assert site.hits == 40
    # So is what comes while an order is under way, and what comes in parts.
    async with paused(site):
        client.send(order(plain.id))
        await under_way(site)
        client.send(asked)
        await asyncio.sleep(0.05)
    assert [(await client.answer()).http for _ in range(2)] == [201, 200]
    client.send(asked[:50])
    await asyncio.sleep(0.02)
    assert (await client.ask(asked[50:])).http == 200
    assert site.hits == 41


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


async def test_a_connection_with_an_order_under_way_is_not_idle(
    redis_server: EmbeddedServer,
) -> None:
    async with serving(redis_server.url, server={"keepalive_s": 1.0}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        client = await site.connect()
        async with paused(site):
            client.send(order(sale.id))
            await asyncio.sleep(1.5)
            assert site.intake.in_flight == 1
        assert (await client.answer()).http == 201
        await asyncio.sleep(0.15)
        assert (await client.ask(order(sale.id, key="k2"))).http == 201
        assert site.hits == 2
        # And then it is.
        await client.ended()


@pytest.mark.parametrize("drain_s", [60.0, 0.05], ids=["drained", "shut down"])
async def test_an_end_waits_for_orders(
    redis_server: EmbeddedServer, drain_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seckill.server.connection.LINGER_S", 2.0)
    async with serving(redis_server.url, server={"drain_s": drain_s}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        client, idle, silent = [await site.connect() for _ in range(3)]
        async with paused(site):
            client.send(order(sale.id))
            await under_way(site)
            ending = asyncio.create_task(site.runner.cleanup())
            await asyncio.sleep(0.3)
            assert not ending.done()
            if drain_s > 1:
                # An idle connection's last answer is aiohttp's.
                idle.send(TIME)
                assert (await idle.answer()).headers["Connection"] == "close"
        answer = await client.answer()
        assert answer.http == 201
        assert answer.headers["Connection"] == "close"
        await client.ended()
        if drain_s > 1:
            # Others may still have something to say.
            assert len(site.connections.connections) == 1
        await silent.ended()
        await ending
        assert site.hits == 1


async def test_what_follows_an_order_waits_for_its_turn(site: Site) -> None:
    sale = await site.open_sale()
    client = await site.connect()
    second = order(sale.id, key="k2")
    async with paused(site):
        client.send(order(sale.id))
        await under_way(site)
        client.send(TIME)
        await asyncio.sleep(0.05)
        client.send(second[:50])
        await asyncio.sleep(0.05)
        assert len(site.connection._messages) == 1
    answers = [await client.answer() for _ in range(2)]
    client.send(second[50:])
    answers.append(await client.answer())
    assert [answer.http for answer in answers] == [201, 200, 201]
    assert "now_ms" in answers[1].body
    assert json.loads(answers[2].body)["order"]["buyer"] == "ann"


async def test_several_in_one_read(site: Site) -> None:
    sale = await site.open_sale()
    client = await site.connect()
    client.send(order(sale.id).encode() + TIME + order(sale.id, key="k2").encode())
    assert [(await client.answer()).http for _ in range(3)] == [201, 200, 201]
    assert site.hits == 0
    # One, and a part of the next.
    third = order(sale.id, key="k3")
    client.send(third + TIME.decode()[:20])
    assert (await client.answer()).http == 201
    client.send(TIME[20:])
    assert (await client.answer()).http == 200
    assert site.hits == 1


async def test_many_on_one_connection(site: Site) -> None:
    """aiohttp's parser counts what it has read and nobody has taken, and stops at 32."""
    sale = await site.open_sale()
    client = await site.connect()
    for number in range(40):
        assert (await client.ask(order(sale.id, key=f"k{number}"))).http == 201
    assert site.hits == 40
    client.send(order(sale.id, key="last").encode() + TIME)
    assert [(await client.answer()).http for _ in range(2)] == [201, 200]


async def test_parts_go_aiohttps_way(redis_server: EmbeddedServer) -> None:
    async with serving(redis_server.url, server={"read_timeout_s": 1.5}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        client = await site.connect()
        for number, at in enumerate((1, 40, -len(BODY), -1)):
            raw = order(sale.id, key=f"k{number}")
            client.send(raw[:at])
            await asyncio.sleep(0.02)
            assert (await client.ask(raw[at:])).http == 201
        assert site.hits == 0
        # The watch over the parts is over.
        assert site.connection not in site.connections.heads
        assert (await client.ask(order(sale.id, key="k9"))).http == 201
        assert site.hits == 1
        # Another one begins.
        began_s = time.monotonic()
        assert (await client.ask("P")).http == 408
        assert time.monotonic() - began_s > 1.0


async def test_a_client_that_goes(site: Site) -> None:
    sale = await site.open_sale()
    client = await site.connect()
    handling = site.connection._task_handler
    async with paused(site):
        client.send(order(sale.id))
        await under_way(site)
        client.writer.transport.abort()
        await until(lambda: not site.connections.connections)
        assert site.intake.in_flight == 1
    await under_way(site, 0)
    assert handling is not None
    assert handling.done()
    again = await site.connect()
    answer = await again.ask(order(sale.id))
    assert (answer.http, json.loads(answer.body)["code"]) == (200, "exists")
    assert site.hits == 2


async def test_a_client_that_does_not_read(site: Site) -> None:
    sale = await site.open_sale()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", site.port))
        await until(lambda: site.connections.connections)
        connection = site.connection
        assert connection.transport is not None
        served = connection.transport.get_extra_info("socket")
        served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        connection.transport.set_write_buffer_limits(1)
        await asyncio.sleep(0.01)
        sent = 0
        while not connection.writing_paused:
            await loop.sock_sendall(sock, order(sale.id, key=f"k{sent}").encode())
            sent += 1
            await until(lambda sent=sent: site.hits == sent)  # type: ignore[misc]
        for extra in range(5):
            await loop.sock_sendall(sock, order(sale.id, key=f"more{extra}").encode())
            await asyncio.sleep(0.02)
        # One more is done, and its answer waits.
        async with asyncio.timeout(30):
            while (await site.engine.snapshot(sale.id)).stock["a"].held < 1 + sent + 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert site.hits == sent
        assert (await site.engine.snapshot(sale.id)).stock["a"].held == 1 + sent + 1
        said = b""
        while said.count(b"HTTP/1.1 201 ") < sent + 5 or not said.endswith(b"}"):
            async with asyncio.timeout(30):
                said += await loop.sock_recv(sock, 65_536)
        assert (await site.engine.snapshot(sale.id)).stock["a"].held == 1 + sent + 5


async def test_before_aiohttp_has_come_round(site: Site) -> None:
    """It answers, and only a moment later waits again."""
    sale = await site.open_sale()
    for more in (b"", TIME):
        client = await site.connect()
        (connection,) = (c for c in site.connections.connections if isinstance(c, HotConnection))
        before = site.hits
        taken = site.connections.requests_count
        connection.data_received(TIME)
        while site.connections.requests_count == taken:  # noqa: ASYNC110 - step by step
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        while connection._request_in_progress:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert connection.waiter is None
        connection.data_received(order(sale.id, key=f"k{before}").encode())
        if more:
            connection.data_received(more)
        answers = [await client.answer() for _ in range(3 if more else 2)]
        assert [answer.http for answer in answers] == [200, 201, 200][: len(answers)]
        assert site.hits - before == (not more)
        client.writer.close()
        await until(lambda: not site.connections.connections)


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


async def test_a_sale_made_anew(site: Site) -> None:
    sale = await site.open_sale()
    client = await site.connect()
    assert (await client.ask(order(sale.id))).http == 201
    async with async_client(site.engine.url) as redis:
        await redis.delete(*shard_keys(sale.id))
    anew = make_sale({"b": 1, "a": 2}, id=sale.id)
    async with Engine(site.engine.url, durability="memory", sweep_ms=0) as other:
        await other.create(anew)
        await other.open(sale.id)
    assert (await client.ask(order(sale.id, key="k2"))).http == 201
    assert site.hits == 2
    # Its lane is new as well.
    assert (await client.ask(order(sale.id, key="k3"))).http == 201
    assert (await client.ask(order(sale.id, key="k4"))).http == 409
    assert site.hits == 4


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
        runner = Runner(app, [], settings().server)
        await runner.setup()
        assert runner.server is not None
        assert type(runner.server()) is (Connection if add else HotConnection), add
        await runner.cleanup()


async def test_another_aiohttp(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(hot_route._USED, web.RequestHandler, ("_waiter", "_gone", "_too"))
    assert create_app(Engine(redis_server.url), settings())[INTAKE].hot_route is None
    assert [record.getMessage() for record in caplog.records] == [
        "the hot route is off: this aiohttp has no RequestHandler._gone, RequestHandler._too"
    ]


class Twin(threading.Thread):
    """The same intake twice, with and without the hot route, on an event loop of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._ready = threading.Event()
        self.sales: list[str] = []
        self.queues: list[str] = []
        self.tickets: list[str] = []
        self.ports: list[int] = []
        self.hits: list[int] = []

    def run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        async with AsyncExitStack() as stack:
            sites = []
            for hot in (True, False):
                # What is not finished is soon ended.
                server = {"hot_route": hot, "read_timeout_s": 0.5, "keepalive_s": 0.8}
                site = await stack.enter_async_context(serving(self._url, server=server))
                await site.known("ann", "bob")
                self.sales.append((await site.open_sale(units=100_000)).id)
                queue, tickets = await site.open_queue("ann")
                self.queues.append(queue.id)
                self.tickets += tickets
                self.ports.append(site.port)
                sites.append(site)
            self._ready.set()
            await self._over.wait()
            self.hits = [site.hits for site in sites]

    def __enter__(self) -> Self:
        self.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(60)

    def ask(self, which: int, pieces: list[bytes]) -> tuple[list[tuple[Any, ...]], bool]:
        """What is said to these pieces, and whether that is all of it.

        aiohttp forgets the requests that come in one read with one that it can't make sense of, and
        of a head that does not end it depends on the reads, too, whether it is watched. Whoever
        goes on sending to a server that has hung up may never see what that has said before.
        """
        said, whole = b"", True
        with socket.create_connection(("127.0.0.1", self.ports[which]), timeout=60) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for piece in pieces:
                    sock.sendall(piece)
                    time.sleep(0.002)
                while got := sock.recv(65_536):
                    said += got
            except ConnectionError:
                whole = False
        for own in (self.sales[which], self.queues[which], self.tickets[which]):
            said = said.replace(own.encode(), b"S" * len(own))
        # What differs between any two sales. Masked here and not in what is read of it, because the
        # length that a HEAD is told belongs to no body, and so what follows is read as one.
        said = re.sub(rb"\b[0-9a-f]{24}\b|\b\d{13}\b", lambda found: b"0" * len(found[0]), said)
        answers = list(_told(said.decode()))
        if not whole:
            answers = answers[:-1]
        elif not answers or answers[-1][0] in _BROKEN:
            answers, whole = answers[:-1], False
        return answers, whole


_BROKEN = ("HTTP/1.0 400 Bad Request", "HTTP/1.1 408 Request Timeout")


def _told(said: str) -> Iterator[tuple[Any, ...]]:
    while said:
        head, _, said = said.partition("\r\n\r\n")
        line, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
        length = int(headers.pop("content-length", 0))
        body, said = said[:length], said[length:]
        headers.pop("date", None)
        if "text/plain" in headers.get("content-type", ""):
            body = ""  # aiohttp quotes what it had read when it could make no sense of it.
        body = re.sub(r'"(deadline_ms|server_ms|now_ms|at_ms|eta_ms)":\d+', r'"\1":0', body)
        # Ids are digests of the sale's name, among others.
        text = [re.sub(r"00[0-9a-f]{22}", "ORDER", part) for part in (str(headers), body)]
        yield (line, length, *text)


NAMES = st.sampled_from(["ann", "bob", "eve"])
BODIES = st.sampled_from(
    [
        *[BODY.encode()] * 20,
        b'{"items":[{"sku":"a","quantity":2},{"sku":"a","quantity":1}]}',
        b'{"items":[{"sku":"a","quantity":1}],"attrs":"\xe4\xb9\xb0"}',
        b'{"items":[{"sku":"x","quantity":1}]}',
        b'{"items":[{"sku":"a","quantity":0}]}',
        b'{"items":[],"more":1}',
        b'{"items":"\xff"}',
        b"[",
        b"",
    ]
)
PATHS = st.sampled_from(
    [
        *["/v1/sales/SALE/orders"] * 40,
        *("/v1/sales/SALE/orders?", "/v1/sales/SALE/orders#a", "/v1/sales/SALE/%6frders"),
        *("/v1/sales/none/orders", "/v1/sales//orders", "//v1/sales/SALE/orders"),
        *("/v1/sales/SALE/orders:batch", "http://x/v1/sales/SALE/orders", "*"),
    ]
)
# Not an upgrade that nobody wants: aiohttp may lose what follows it at once.
MORE = st.sampled_from(
    [
        *[""] * 30,
        *("X-A: b\r\n", "X-A:b \r\n", "Expect: 100-continue\r\n", "Expect: x\r\n"),
        *("Connection: keep-alive\r\n", "Upgrade: h2c\r\n"),
        *("Upgrade: websocket\r\n", "Content-Encoding: identity\r\n", "Seckill-Buyer: bob\r\n"),
        *("Idempotency-Key: k\r\n", "Host: y\r\n", "Content-Length: 3\r\n", " folded\r\n"),
        *("Transfer-Encoding: identity\r\n", "Seckill-Proof: 1\r\n", "Content-Type: a/b\r\n"),
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """An order, or nearly."""
    body = draw(BODIES)
    framing = f"Content-Length: {len(body)}\r\n"
    if draw(st.integers(0, 9)) == 0:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        framing = "Transfer-Encoding: chunked\r\n"
    kind = draw(
        st.sampled_from(["application/json"] * 20 + ["application/json;charset=utf-8", "a/b"])
    )
    scheme = draw(st.sampled_from(["Bearer"] * 20 + ["bearer", "Basic"]))
    lines = [
        "Host: x\r\n",
        f"Authorization: {scheme} {token(draw(NAMES))}\r\n",
        f"Idempotency-Key: {draw(st.sampled_from([*['KEY'] * 12, 'a b', '']))}\r\n",
        f"Content-Type: {kind}\r\n",
        framing,
        draw(MORE),
    ]
    if draw(st.integers(0, 4)) == 0:
        lines = draw(st.permutations(lines))
    if draw(st.integers(0, 9)) == 0:
        del lines[draw(st.integers(0, len(lines) - 1))]
    if draw(st.integers(0, 9)) == 0:
        lines = [line.lower() if "Bearer" not in line else line for line in lines]
    method = draw(st.sampled_from(["POST"] * 30 + ["PUT", "GET"]))
    version = draw(st.sampled_from(["1.1"] * 30 + ["1.0"]))
    head = f"{method} {draw(PATHS)} HTTP/{version}\r\n{''.join(lines)}\r\n"
    return head.encode() + body


TICKETS = st.sampled_from([*["TICKET"] * 20, "", "x", "A" * 28])
PLACES = st.sampled_from(
    [
        *["/v1/sales/QUEUE/tickets/me"] * 30,
        *(
            "/v1/sales/QUEUE/tickets/me?",
            "/v1/sales/QUEUE/tickets/me#a",
            "/v1/sales/SALE/tickets/me",
        ),
        *(
            "/v1/sales/none/tickets/me",
            "/v1/sales/QUEUE/tickets/m%65",
            "http://x/v1/sales/QUEUE/tickets/me",
        ),
    ]
)


@st.composite
def inquiries(draw: st.DrawFn) -> bytes:
    """A question for a place, or nearly."""
    lines = [
        "Host: x\r\n",
        f"Authorization: Bearer {token(draw(NAMES))}\r\n",
        f"Seckill-Ticket: {draw(TICKETS)}\r\n",
        draw(MORE),
    ]
    if draw(st.integers(0, 4)) == 0:
        lines = draw(st.permutations(lines))
    if draw(st.integers(0, 9)) == 0:
        del lines[draw(st.integers(0, len(lines) - 1))]
    method = draw(st.sampled_from(["GET"] * 30 + ["HEAD", "POST"]))
    version = draw(st.sampled_from(["1.1"] * 30 + ["1.0"]))
    return f"{method} {draw(PLACES)} HTTP/{version}\r\n{''.join(lines)}\r\n".encode()


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """What is sent on one connection, and where it is cut into pieces."""
    kinds = st.sampled_from([st.just(TIME), *[requests()] * 3, *[inquiries()] * 2])
    parts = [draw(draw(kinds)) for _ in range(3)]
    raw = b"".join(parts)
    cuts = [len(parts[0]), len(parts[0] + parts[1]), len(raw)]
    if draw(st.integers(0, 3)) == 0:
        cuts = draw(st.lists(st.integers(0, len(raw)), max_size=4))
    if draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + 1 :]
    last = b"GET /v1/time HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    return raw + last, sorted(cuts)


@pytest.fixture(scope="module")
def twin(redis_server: EmbeddedServer) -> Iterator[Twin]:
    with Twin(redis_server.url) as twin:
        yield twin
    assert twin.hits[0] > 10
    assert twin.hits[1] == 0


_KEYS = count()


@pytest.fixture(scope="module")
def _quiet() -> Iterator[None]:
    """aiohttp has a traceback for each request that it can't make sense of."""
    log = logging.getLogger("aiohttp.server")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)


def _filled(piece: bytes, own: dict[bytes, bytes]) -> bytes:
    for name, value in own.items():
        piece = piece.replace(name, value)
    return piece


@pytest.mark.usefixtures("_quiet")
@hypothesis.settings(max_examples=120, deadline=None)
@hypothesis.given(conversations())
def test_whatever_is_sent(twin: Twin, conversation: tuple[bytes, list[int]]) -> None:
    raw, cuts = conversation
    # As long as the sale's name, so that lengths stay; and a key that nobody has used.
    key = b"k%010d" % next(_KEYS)
    said = []
    for which, sale in enumerate(twin.sales):
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        own = {b"SALE": sale.encode(), b"QUEUE": twin.queues[which].encode(), b"KEY": key}
        own[b"TICKET"] = twin.tickets[which].encode()
        named = [_filled(piece, own) for piece in pieces]
        said.append(twin.ask(which, [piece for piece in named if piece]))
    (quick, quick_whole), (slow, slow_whole) = said
    if quick_whole and slow_whole:
        assert quick == slow
    else:
        assert all(map(eq, quick, slow))
