"""What the tests of the intake share: an intake on a real socket with a client, in this process or
in one of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from seckill.engine import Engine
from seckill.sale import Sale
from seckill.server import create_app
from seckill.server.caller import Caller
from tests.support import make_sale

__all__ = ["Answer", "Client", "Intake", "intake_on", "serving", "trusting"]


async def trusting(request: web.Request) -> Caller:
    """Takes everybody for the mall's backend, which may name a buyer."""
    return _BACKEND


_BACKEND = Caller(scopes=frozenset({"backend", "admin", "metrics"}), name="tests")


class Answer:
    """A response whose body has been read."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.http = response.status
        self.headers = response.headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])

    def is_problem(self, http: int, code: str) -> bool:
        """Whether this is a well-formed problem of that kind; explains itself when it isn't."""
        document = self.json
        assert (self.http, document["code"]) == (http, code), (self.http, document)
        assert self.headers["Content-Type"] == "application/problem+json"
        assert document["type"] == f"urn:seckill:problem:{code}"
        assert document["status"] == http
        assert document["title"]
        assert ("Retry-After" in self.headers) == (http in (429, 503))
        assert b"Traceback" not in self.body
        return True


class Client:
    """Calls one intake the way the mall's backend does."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, self.base + path, **options) as response:
            return Answer(response, await response.read())

    async def get(self, path: str, buyer: str | None = None) -> Answer:
        return await self.call("GET", path, headers=_headers(buyer))

    async def post(
        self, path: str, body: Any = None, buyer: str | None = None, key: str | None = None
    ) -> Answer:
        """``body`` may be bytes, which are sent as they are, or anything for JSON."""
        headers = _headers(buyer)
        if key is not None:
            headers["Idempotency-Key"] = key
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        return await self.call("POST", path, data=data, headers=headers)

    async def reserve(
        self, sale: str, buyer: str = "b1", key: str = "k1", /, **items: int
    ) -> Answer:
        lines = [{"sku": sku, "quantity": n} for sku, n in (items or {"a": 1}).items()]
        return await self.post(f"/v1/sales/{sale}/orders", {"items": lines}, buyer, key)


class Intake(Client):
    """An intake in this process."""

    def __init__(self, session: aiohttp.ClientSession, base: str, engine: Engine) -> None:
        super().__init__(session, base)
        self.engine = engine

    async def open_sale(self, stock: dict[str, int] | None = None, **fields: Any) -> Sale:
        sale = make_sale(stock, **fields)
        assert (await self.engine.create(sale)).ok
        assert (await self.engine.open(sale.id)).ok
        return sale


def _headers(buyer: str | None) -> dict[str, str]:
    return {} if buyer is None else {"Seckill-Buyer": buyer}


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Serves an application on a port of its own."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    try:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield site.name
    finally:
        await runner.cleanup()


@asynccontextmanager
async def intake_on(url: str, **options: Any) -> AsyncIterator[Intake]:
    """An intake over a Redis that is there already."""
    usual = {"durability": "memory", "sweep_ms": 0, "timeout_ms": 30_000}
    engine = Engine(url, **(usual | options))
    async with (
        engine,
        serving(create_app(engine, identify=trusting)) as base,
        aiohttp.ClientSession() as session,
    ):
        yield Intake(session, base, engine)
