"""A connection with the hot route on it lives and ends as any other, and harms nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from seckill.embedded import EmbeddedServer
from seckill.server.hot_route import HotConnection
from tests.web.hot import (
    BODY,
    TIME,
    Site,
    order,
    paused,
    question,
    serving,
    under_way,
    until,
)


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with serving(redis_server.url) as site:
        await site.known("ann", "bob")
        yield site


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
    monkeypatch.setattr("seckill.server.connection.LINGER_S", 60.0)
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
            await asyncio.sleep(0.3)
            assert len(site.connections.connections) == 1
            monkeypatch.setattr("seckill.server.connection.LINGER_S", 0.0)
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
    async with serving(redis_server.url, server={"read_timeout_s": 60.0}) as site:
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
        heads, connection = site.connections.heads, site.connection
        assert connection not in heads
        assert (await client.ask(order(sale.id, key="k9"))).http == 201
        assert site.hits == 1
        # Another one begins, with all of its time.
        began_s = asyncio.get_running_loop().time()
        client.send("P")
        await until(lambda: connection in heads)
        state, due_s = heads._watched[connection]
        assert due_s >= began_s + 60.0
        heads._watched[connection] = (state, 0.0)
        heads._look()
        assert (await client.answer()).http == 408


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


async def test_each_answer_begins_the_idle_time_anew(site: Site) -> None:
    sale, (queue, (ticket,)) = await site.open_sale(), await site.open_queue("ann")
    client, connection = await site.connect(), site.connection
    loop, keep_s = asyncio.get_running_loop(), site.intake.settings.server.keepalive_s
    for raw in (order(sale.id), question(queue.id, ticket), order(sale.id)):
        began_s = loop.time()
        connection._next_keepalive_close_time = 0.0
        await client.ask(raw)
        assert connection._next_keepalive_close_time >= began_s + keep_s
        assert connection._keepalive_handle is not None
    assert site.hits == 3


async def test_what_is_queued_at_the_end_is_answered(redis_server: EmbeddedServer) -> None:
    """The last answer is the one that says so, and no client asks in vain who asked before it."""
    for hot in (True, False):
        async with serving(redis_server.url, server={"hot_route": hot, "drain_s": 60.0}) as site:
            await site.known("ann")
            sale = await site.open_sale()
            client = await site.connect()
            async with paused(site):
                client.send(order(sale.id))
                await under_way(site)
                (connection,) = site.connections.connections
                client.send(TIME)
                await until(lambda connection=connection: connection._messages)
                usual = site.connections.request_handler
                ending = asyncio.create_task(site.runner.cleanup())
                await until(lambda u=usual, s=site: s.connections.request_handler is not u)
            first, second = [await client.answer() for _ in range(2)]
            assert (first.http, second.http) == (201, 200)
            assert "Connection" not in first.headers
            assert second.headers["Connection"] == "close"
            await client.ended()
            await ending
            assert site.hits == hot


async def test_a_flood_behind_an_order_is_read_no_further(site: Site) -> None:
    """aiohttp keeps 32 requests of a connection, and reads on when they have been answered."""
    sale = await site.open_sale()
    client, connection = await site.connect(), site.connection
    async with paused(site):
        client.send(order(sale.id))
        await under_way(site)
        for _ in range(100):
            client.send(TIME * 10)
        await until(lambda: len(connection._messages) == 32)
        await asyncio.sleep(0.05)
        assert len(connection._messages) == 32
    assert (await client.answer()).http == 201
    for _ in range(1_000):
        assert '"now_ms"' in (await client.answer()).body
    assert (await client.ask(order(sale.id, key="k2"))).http == 201
    assert site.hits == 2
