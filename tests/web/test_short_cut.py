"""The way past the router answers as the router's way does."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import jwt
import pytest
from aiohttp import web

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.connection import Runner
from seckill.server.intake import INTAKE
from seckill.server.settings import Settings
from tests.support import make_item, make_sale
from tests.web.intake import trusting

SECRET = "s" * 40
BODY = '{"items":[{"sku":"a","quantity":1}]}'
SETTINGS = Settings.model_validate({"users": {"secrets": [SECRET]}, "limits": {"buyer_per_s": 0}})


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """Runner sets the garbage collector for a process of its own."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def token(buyer: str, life_s: int = 60) -> str:
    return jwt.encode({"sub": buyer, "exp": int(time.time()) + life_s}, SECRET)


@asynccontextmanager
async def served(app: web.Application, *, short: bool) -> AsyncIterator[tuple[int, list[str]]]:
    """The port, and the paths that were answered by the short cut."""
    taken: list[str] = []
    quick = app[INTAKE].short_cut
    if quick is not None:

        async def spy(request: web.Request, sale: str) -> web.StreamResponse:
            taken.append(request.path)
            return await quick(request, sale)

        app[INTAKE].short_cut = spy
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        runner = (
            Runner(app, [sock], SETTINGS.server) if short else web.AppRunner(app, access_log=None)
        )
        await runner.setup()
        if not short:
            await web.SockSite(runner, sock).start()
        try:
            yield sock.getsockname()[1], taken
        finally:
            await runner.cleanup()


async def ask(port: int, raw: str) -> tuple[str, dict[str, str], str]:
    """Status line, headers and body, without what differs from one order to the next."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw.encode())
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("HTTP/1.1 100"):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = dict(each.split(": ", 1) for each in rest)
            body = (await reader.readexactly(int(headers.get("Content-Length", 0)))).decode()
    finally:
        writer.close()
    headers.pop("Date")
    headers.pop("Content-Length", None)
    location = headers.pop("Location", "")
    if location:
        assert json.loads(body)["order"]["id"] == location.rpartition("/")[2]
        assert location.startswith("/v1/sales/")
    body = re.sub(r'"(id|sale|deadline_ms)":("[^"]*"|\d+)', r'"\1":0', body)
    return line, headers, body


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


def story(sale: str) -> list[tuple[str, bool]]:
    """Requests, and whether they are the short cut's."""
    plain = order(sale)
    chunked = re.sub(r"Content-Length: \d+", "Transfer-Encoding: chunked", plain)
    chunked = chunked.replace(BODY, f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n")
    escaped = f"%{ord(sale[0]):x}{sale[1:]}"
    old = plain.replace(token("ann"), token("ann", -60))
    return [
        (plain, True),
        (plain, True),
        (chunked, True),
        (order(sale, body='{"items":[{"sku":"a","quantity":2}]}'), True),
        (order(sale, query="?a=1"), True),
        (order(sale, buyer="bob", key="k2"), True),
        (order(sale, buyer="cat"), True),
        (order(sale, buyer="cat", body='{"items":[{"sku":"x","quantity":1}]}'), True),
        (order(sale, body="{"), True),
        (order(sale, body='{"items":[]}'), True),
        (order(sale, body='{"items":[{"sku":"a","quantity":0}]}'), True),
        (order(sale, key="b b"), True),
        (plain.replace("Idempotency-Key: k1\r\n", ""), True),
        (plain.replace("application/json", "text/plain"), True),
        (order(sale, more="Content-Encoding: gzip\r\n"), True),
        (order(sale, more="Idempotency-Key: k1\r\n"), True),
        (order(sale, more="Connection: close\r\n"), True),
        (re.sub(r"Authorization: .*\r\n", "", plain), True),
        (re.sub(r"Bearer \S+", "Bearer nonsense", plain), True),
        (old, True),
        (order("nope"), True),
        (order(escaped), False),
        (order("n" * 41), False),
        (order(sale, more="Expect: 100-continue\r\n"), False),
        (plain.replace("POST", "PUT", 1), False),
        (plain.replace("POST", "GET", 1), False),
        (plain.replace("/orders", "/orders/", 1), False),
    ]


async def test_both_ways_answer_alike(redis_server: EmbeddedServer) -> None:
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        said = []
        for short in (True, False):
            sale = make_sale(items=(make_item("a", total=2),))
            await engine.create(sale)
            await engine.open(sale.id)
            async with served(create_app(engine, SETTINGS), short=short) as (port, taken):
                answers = []
                for raw, quick in story(sale.id):
                    before = len(taken)
                    answers.append(await ask(port, raw))
                    assert len(taken) - before == (short and quick), raw
            said.append(answers)
        for (raw, _), quick, slow in zip(story("…"), *said, strict=True):
            assert quick == slow, raw
        lines = [line.split()[1] for line, *_ in said[0]]
        assert lines[:7] == ["201", "200", "200", "409", "200", "201", "409"]


async def test_a_mall_that_says_who_asks_goes_the_long_way(redis_server: EmbeddedServer) -> None:
    engine = Engine(redis_server.url)
    assert create_app(engine, SETTINGS, identify=trusting)[INTAKE].short_cut is None
    origins = SETTINGS.model_copy(
        update={"server": SETTINGS.server.model_copy(update={"cors_origins": ("https://a.b",)})}
    )
    assert create_app(engine, origins)[INTAKE].short_cut is None


async def test_what_fails_has_its_line(
    redis_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def reserve(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Engine, "reserve", reserve)
    async with (
        Engine(redis_server.url, durability="memory", sweep_ms=0) as engine,
        served(create_app(engine, SETTINGS), short=True) as (port, taken),
    ):
        line, headers, body = await ask(port, order("some-sale"))
    assert taken
    assert line.startswith("HTTP/1.1 500 ")
    assert headers["X-Request-Id"] in body
    (record,) = [r for r in caplog.records if r.name == "seckill.server"]
    assert record.__dict__["route"] == "/v1/sales/{sale}/orders"
    assert "some-sale" not in caplog.text
