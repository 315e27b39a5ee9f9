"""What the tests of the hot route share: an intake that is served by itself, as `seckill serve`
does it, and clients that write bytes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt

from seckill.admission import Admission
from seckill.engine import Engine
from seckill.sale import Sale
from seckill.server import create_app
from seckill.server.connection import Connections, Runner
from seckill.server.hot_route import HotConnection
from seckill.server.intake import INTAKE
from seckill.server.settings import Settings
from tests.support import async_client, make_sale

__all__ = [
    "BODY",
    "SECRET",
    "TIME",
    "Answer",
    "Client",
    "Site",
    "collector",
    "order",
    "paused",
    "question",
    "serving",
    "settings",
    "token",
    "under_way",
    "until",
]

SECRET = "s" * 40
BODY = '{"items":[{"sku":"a","quantity":1}]}'
TIME = b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n"
# What differs from one order, and from one ticket, to the next.
_OWN = re.compile(r'"(id|sale|deadline_ms|ticket|token|at_ms|eta_ms|expires_ms)":("[^"]*"|\d+)')


@contextmanager
def collector() -> Iterator[None]:
    """Runner sets the garbage collector for a process of its own; this sets it back."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@cache
def token(buyer: str, life_s: int = 3_600) -> str:
    return jwt.encode({"sub": buyer, "exp": int(time.time()) + life_s}, SECRET)


def settings(**tables: Any) -> Settings:
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
    """Waits for it, longer than any machine should take."""
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 - a client or a timer makes it true
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(url: str, **tables: Any) -> AsyncIterator[Site]:
    """An intake with these settings, over a Redis that is there already."""
    chosen = settings(**tables)
    with collector():
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
    """Waits until so many requests have no answer yet."""
    await until(lambda: site.intake.in_flight == count)
