"""What waits for a later round of the event loop is not forgotten when its client goes, its time is
over or the end comes; and a socket's messages wait as requests do.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.order import order_id
from tests.support import async_client, make_sale
from tests.web.hot import TIME, Client, Site, order, paused, serving, token, under_way, until
from tests.web.processes import process_on
from tests.web.rounds import connect, held, held_units, send_in_parts

WAYS = pytest.mark.parametrize("hot", [True, False], ids=["hot", "aiohttp"])


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with serving(redis_server.url) as site:
        await site.known("ann")
        yield site


@pytest.mark.parametrize("wholly", [False, True], ids=["half", "wholly"])
async def test_a_client_that_asks_and_closes(redis_server: EmbeddedServer, *, wholly: bool) -> None:
    """What it asked is done, and not in the next round only."""
    for hot in (True, False):
        async with serving(redis_server.url, server={"hot_route": hot}) as site:
            await site.known("ann")
            sale = await site.open_sale()
            (client,) = await connect(site, 1)
            (connection,) = site.connections._open()
            async with held(site):
                await send_in_parts(client, connection, order(sale.id))
                if wholly:
                    client.writer.close()
                else:
                    client.writer.write_eof()
                await until(lambda: not site.connections.connections)
                async with asyncio.timeout(30):
                    while not await held_units(site, sale.id):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            await under_way(site, 0)
            assert await held_units(site, sale.id) == 1
            assert site.hits == hot


async def test_a_client_that_is_cut_off(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """It has no answer and can have none. It asks again."""
    sale = await site.open_sale()
    client, other = await connect(site, 2)
    async with held(site) as waiting:
        client.send(order(sale.id))
        await until(lambda: len(waiting) == 1)
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await until(lambda: len(site.connections.connections) == 1)
        assert waiting[0]._later is None  # It holds nothing until its turn comes.
        other.send(TIME)
        await until(lambda: len(waiting) == 2)
    assert (await other.answer()).http == 200
    assert not waiting
    assert await held_units(site, sale.id) == 0
    assert (await other.ask(order(sale.id))).http == 201
    assert not caplog.records


# -- sockets --------------------------------------------------------------------------------------


def frame(op: str, name: int) -> bytes:
    text = json.dumps({"op": op, "id": name}).encode()
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


async def heard(client: Client) -> int:
    """The id of the next message."""
    async with asyncio.timeout(30):
        kind, length = await client.reader.readexactly(2)
        assert kind == 0x81
        if length == 126:
            (length,) = struct.unpack("!H", await client.reader.readexactly(2))
        name: int = json.loads(await client.reader.readexactly(length))["id"]
    return name


async def test_a_socket_whose_messages_wait(site: Site) -> None:
    sale = await site.open_sale()
    upgrade = (
        f"GET /v1/sales/{sale.id}/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        f"Authorization: Bearer {token('ann')}\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    (client,) = await connect(site, 1)
    (connection,) = site.connections._open()
    third = frame("time", 3)
    async with held(site) as waiting:
        await send_in_parts(client, connection, upgrade[:70], upgrade[70:], frame("time", 1))
        await send_in_parts(client, connection, frame("time", 2), third[:4])
    assert (await client.answer()).http == 101
    assert [await heard(client) for _ in range(2)] == [1, 2]
    async with held(site) as waiting:
        parts = [frame("time", name) for name in range(4, 40)]
        await send_in_parts(client, connection, third[4:], *parts)
        assert len(waiting) == 1
    assert [await heard(client) for _ in range(37)] == list(range(3, 40))


# -- timers and the end ---------------------------------------------------------------------------


async def test_what_waits_is_not_idle(redis_server: EmbeddedServer) -> None:
    async with serving(redis_server.url, server={"keepalive_s": 0.5}) as site:
        async with held(site):
            client, silent = await connect(site, 2)
            client.send(TIME)
            await silent.ended()
            # It has been there for as long as the other one, and again.
            await asyncio.sleep(0.6)
            assert len(site.connections.connections) == 1
        assert (await client.answer()).http == 200
        # And then it is.
        await client.ended()


@WAYS
async def test_the_rest_of_a_head_came_in_time(redis_server: EmbeddedServer, *, hot: bool) -> None:
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        (client,) = await connect(site, 1)
        (connection,) = site.connections._open()
        heads = site.connections.heads
        for rest in (TIME[9:], TIME[9:20]):
            client.send(TIME[:9])
            await until(lambda: connection in heads)
            async with held(site):
                await send_in_parts(client, connection, rest)
                # Its time is over.
                heads._watched[connection] = (connection.waiter, 0.0)
                heads._look()
            assert (await client.answer()).http == (200 if rest.endswith(b"\r\n\r\n") else 408)
        await client.ended()


@WAYS
async def test_what_waits_at_the_end_is_answered(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, *, hot: bool
) -> None:
    """And the end waits for it, much longer than for those who have nothing to say."""
    monkeypatch.setattr("seckill.server.connection.LINGER_S", 0.05)
    async with serving(redis_server.url, server={"hot_route": hot, "drain_s": 60.0}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        clients = await connect(site, 3)
        async with held(site) as waiting:
            clients[0].send(order(sale.id))
            clients[1].send(TIME)
            clients[2].send(order(sale.id, key="k2") + TIME.decode())
            await until(lambda: len(waiting) == 3)
            ending = asyncio.create_task(site.runner.cleanup())
            await asyncio.sleep(0.3)
            assert not ending.done()
        for client, http in zip(clients, (201, 200, 201), strict=True):
            answer = await client.answer()
            assert (answer.http, answer.headers["Connection"]) == (http, "close")
            await client.ended()
        assert await held_units(site, sale.id) == 2
        await ending


@pytest.mark.slow
async def test_a_process_that_ends_in_a_crowd(redis_server: EmbeddedServer) -> None:
    """On uvloop: all have asked before it was told to end, and most of them wait."""
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        sale = make_sale({"a": 300})
        await engine.create(sale)
        await engine.open(sale.id)
        async with process_on(redis_server.url) as intake:
            port = int(intake.base.rpartition(":")[2])
            clients = [
                Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(300)
            ]
            # The last one is known there, so all are.
            assert (await clients[-1].ask(TIME)).http == 200
            for number, client in enumerate(clients):
                client.send(order(sale.id, key=f"k{number}", more="Seckill-Buyer: ann\r\n"))
            intake.signal(signal.SIGTERM)
            for number, client in enumerate(clients):
                answer = await client.answer()
                assert answer.http == 201
                order_of = json.loads(answer.body)["order"]
                assert order_of["id"] == order_id(sale.id, "ann", f"k{number}")
                await client.ended()
                client.writer.close()
            assert await intake.ended(60) == 0
        assert (await engine.snapshot(sale.id)).stock["a"].held == 300


async def test_what_waits_behind_an_order_at_the_end_is_answered(
    redis_server: EmbeddedServer,
) -> None:
    """As it is when it does not have to wait for a round: see test_hot_route_connection.py."""
    async with serving(redis_server.url, server={"drain_s": 60.0}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        (client,) = await connect(site, 1)
        (connection,) = site.connections._open()
        async with paused(site):
            client.send(order(sale.id))
            await under_way(site)
            async with held(site):
                await send_in_parts(client, connection, TIME)
                usual = site.connections.request_handler
                ending = asyncio.create_task(site.runner.cleanup())
                await until(lambda: site.connections.request_handler is not usual)
                async with async_client(site.engine.url) as redis:
                    await redis.execute_command("CLIENT", "UNPAUSE")
                first = await client.answer()
        try:
            second = await client.answer()
        finally:
            await ending
        assert (first.http, second.http) == (201, 200)
        assert "Connection" not in first.headers
        assert second.headers["Connection"] == "close"
        await client.ended()
