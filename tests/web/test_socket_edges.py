"""Sockets: who leaves while he is being made out, what a log's line is called, strange origins."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest
from aiohttp import web

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app
from seckill.server.caller import Caller
from seckill.server.problems import UNAUTHENTICATED, Problem
from seckill.server.sockets import SOCKETS
from tests.support import make_sale
from tests.web.hot import serving, settings, token, until

GONE = 5


async def test_who_leaves_while_he_is_made_out_is_not_kept(redis_server: EmbeddedServer) -> None:
    asked, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def who(request: web.Request) -> Caller:
        if "Authorization" not in request.headers:
            raise Problem(UNAUTHENTICATED)
        asked.release()
        await go_on.wait()
        return Caller(request.headers["Authorization"].split()[1])

    async with Engine(redis_server.url, durability="memory") as engine:
        sale = make_sale({"a": 10})
        await engine.create(sale)
        app = create_app(engine, settings(), identify=who)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        sockets = app[SOCKETS]
        async with aiohttp.ClientSession() as client, asyncio.timeout(60):
            for number in range(GONE):
                url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/sales/{sale.id}/socket"
                talk = await client.ws_connect(url)
                await talk.send_json({"op": "hello", "id": 1, "token": f"buyer-{number}"})
                await asked.acquire()
                assert talk._response.connection is not None
                assert talk._response.connection.transport is not None
                talk._response.connection.transport.abort()
            await until(lambda: not sockets._open)
            go_on.set()
            await until(lambda: not sockets.intake.in_flight and not sockets._tasks)
        assert (len(sockets._buyers), len(sockets._by_buyer)) == (0, 0)
        await runner.cleanup()


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "http://x:99999999"])
async def test_an_origin_that_is_none(redis_server: EmbeddedServer, origin: str) -> None:
    async with serving(redis_server.url) as site:
        sale = await site.open_sale()
        client = await site.connect()
        answer = await client.ask(
            f"GET /v1/sales/{sale.id}/socket HTTP/1.1\r\nHost: y\r\nOrigin: {origin}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert answer.http == 403


async def test_an_answer_names_its_line_in_the_log(
    redis_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(redis_server.url, log={"requests": "all"}) as site:
        sale = await site.open_sale(10)
        url = f"http://127.0.0.1:{site.port}/v1/sales/{sale.id}/socket"
        headers = {"Authorization": f"Bearer {token('ann')}"}
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(url, headers=headers) as talk,
        ):
            for message in ({"op": "time", "id": 1}, {"op": "result", "id": 2, "order": "00" * 12}):
                await talk.send_json(message)
                answer = await talk.receive_json()
                assert answer.get("request_id"), answer
