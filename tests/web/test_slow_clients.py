"""Clients that are slow to ask or to listen are cut; those that are merely idle are not. And what
connection.py uses of aiohttp without being promised it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from seckill.server.connection import ACCEPT_MAX, Connection, Connections, Runner, Turns
from seckill.server.listen import listen_tcp
from seckill.server.settings import Server

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
WHOLE = HEAD + b"\r\n"
READ_S = 0.3


async def answer(request: web.Request) -> web.Response:
    await asyncio.sleep(float(request.query.get("wait_s", 0)))
    return web.Response(text="x" * int(request.query.get("chars", 1)))


def an_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/", answer)
    return app


class Site:
    """A running site and its connections."""

    def __init__(self, runner: Runner, port: int) -> None:
        self.runner = runner
        self.port = port

    @property
    def connections(self) -> Connections:
        assert isinstance(self.runner.server, Connections)
        return self.runner.server

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1024)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Site]:
    defaults = {"read_timeout_s": READ_S, "keepalive_s": 30.0, "drain_s": 3.0}
    sock = listen_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    runner = Runner(an_app(), [sock], Server(**(defaults | options)))
    await runner.setup()
    try:
        yield Site(runner, port)
    finally:
        await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What is said until the connection is closed."""
    async with asyncio.timeout(30):
        return await reader.read(-1)


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["at once", "after a request"])
@pytest.mark.parametrize("sent", [b"G", HEAD, HEAD + b"A: b\r\n\r"])
async def test_a_head_that_does_not_end(site: Site, before: bytes, sent: bytes) -> None:
    reader, writer = await site.connect()
    if before:
        writer.write(before)
        assert (await reader.read(1000)).startswith(b"HTTP/1.1 200 ")
    writer.write(sent)
    assert (await all_of(reader)).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    writer.close()


async def test_a_byte_now_and_then_is_no_excuse(site: Site) -> None:
    reader, writer = await site.connect()

    async def drip() -> None:
        for byte in HEAD * 100:
            writer.write(bytes([byte]))
            await asyncio.sleep(READ_S / 10)

    dripping = asyncio.create_task(drip())
    # What drips on after the end makes the connection a broken one.
    with contextlib.suppress(ConnectionError):
        assert (await all_of(reader)).startswith(b"HTTP/1.1 408 ")
    await until_open(site, 0)
    assert not dripping.done()
    dripping.cancel()
    writer.close()


async def test_whoever_is_quick_enough_is_answered_again_and_again() -> None:
    """All of them together take longer than one may."""
    async with serving(read_timeout_s=2.0) as site:
        reader, writer = await site.connect()
        for _ in range(8):
            writer.write(HEAD)
            await asyncio.sleep(0.3)
            writer.write(b"\r\n")
            assert (await reader.read(1000)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_slow_answer_is_not_the_clients_fault(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(b"GET /?wait_s=0.8 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.read(1000)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_client_that_does_not_read() -> None:
    async with serving(keepalive_s=READ_S) as site:
        reader, writer = await site.connect()
        writer.write(b"GET /?chars=30000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await until_open(site, 1)
        await until_open(site, 0)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(30_000_000)
        writer.close()


async def test_an_idle_connection_is_kept_as_long_as_it_is_said() -> None:
    async with serving(keepalive_s=READ_S) as site:
        for sent in (b"", WHOLE):
            reader, writer = await site.connect()
            writer.write(sent)
            said = await all_of(reader)
            assert said.startswith(b"HTTP/1.1 200 ") if sent else said == b""
            writer.close()


async def test_a_crowd_of_slow_clients_leaves_nothing_behind(site: Site) -> None:
    crowd = [await site.connect() for _ in range(300)]
    for _, writer in crowd:
        writer.write(HEAD)
    # Some finish, some go.
    for _, writer in crowd[:50]:
        writer.write(b"\r\n")
    for _, writer in crowd[50:100]:
        writer.close()
    for reader, _ in crowd[100:]:
        assert (await all_of(reader)).startswith(b"HTTP/1.1 408 ")
    heads = site.connections.heads
    await until(lambda: not heads._watched and heads._timer is None)
    await until_open(site, 50)
    for _, writer in crowd:
        writer.close()


async def test_who_has_gone_is_forgotten_at_once() -> None:
    async with serving(read_timeout_s=30.0) as site:
        _, writer = await site.connect()
        writer.write(HEAD)
        await until_open(site, 1)
        await until(lambda: len(site.connections.heads._watched) == 1)
        writer.close()
        await until_open(site, 0)
        assert len(site.connections.heads._watched) == 0


async def test_the_last_answer_says_so() -> None:
    """At the end: one that is idle, one whose answer is under way, one that has begun to ask, and
    one that has connected and not been taken."""
    async with serving(read_timeout_s=60.0, drain_s=60.0) as site:
        idle, busy, asking = [await site.connect() for _ in range(3)]
        busy[1].write(b"GET /?wait_s=0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        asking[1].write(HEAD)
        await until_open(site, 3)
        with socket.create_connection(("127.0.0.1", site.port)) as fresh:
            usual = site.connections.request_handler
            ending = asyncio.create_task(site.runner.cleanup())
            await until(lambda: site.connections.request_handler is not usual)
            with pytest.raises(ConnectionRefusedError):
                await site.connect()
            fresh.sendall(WHOLE)
            fresh.setblocking(False)
            idle[1].write(WHOLE)
            # Longer than an idle connection is kept at the end.
            await asyncio.sleep(1.2)
            asking[1].write(b"\r\n")
            async with asyncio.timeout(30):
                said = await asyncio.get_running_loop().sock_recv(fresh, 1000)
            assert b"Connection: close" in said
        for reader, _ in (idle, asking):
            said = await all_of(reader)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert b"Connection: close" in said
        assert (await all_of(busy[0])).startswith(b"HTTP/1.1 200 ")
        await ending
        for _, writer in (idle, busy, asking):
            writer.close()


async def test_who_has_nothing_to_say_does_not_hold_the_end() -> None:
    async with serving(drain_s=300.0) as site:
        _, writer = await site.connect()
        await until_open(site, 1)
        async with asyncio.timeout(30):
            await site.runner.cleanup()
        writer.close()


async def test_a_burst_is_shared() -> None:
    """Two that listen on one socket, as workers do, take turns."""
    sock = listen_tcp("127.0.0.1", 0)
    runners = [Runner(an_app(), [sock.dup()], Server(drain_s=0.1)) for _ in range(2)]
    clients = []
    for _ in range(6 * ACCEPT_MAX):
        client = socket.create_connection(sock.getsockname())
        clients.append(client)
    for runner in runners:
        await runner.setup()

    def counts() -> list[int]:
        return [len(runner.server.connections) for runner in runners if runner.server]

    await until(lambda: sum(counts()) == 6 * ACCEPT_MAX)
    assert counts() == [3 * ACCEPT_MAX, 3 * ACCEPT_MAX]
    for client in clients:
        client.close()
    for runner in runners:
        await runner.cleanup()
    sock.close()


async def test_out_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It complains, pauses, and takes whoever has waited."""
    monkeypatch.setattr("seckill.server.connection.PAUSE_S", 0.2)
    failures = [OSError(24, "Too many open files")]
    real = socket.socket.accept

    def accept(sock: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return real(sock)

    monkeypatch.setattr(socket.socket, "accept", accept)
    async with serving() as site:
        reader, writer = await site.connect()
        writer.write(WHOLE)
        assert (await reader.read(1000)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert "cannot take new connections for now: [Errno 24]" in caplog.text


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 - a client or a timer makes it true
            await asyncio.sleep(0.01)


async def until_open(site: Site, count: int) -> None:
    await until(lambda: len(site.connections.connections) == count)


async def test_what_is_used_of_aiohttp() -> None:
    """Not promised by aiohttp: a new version that does otherwise fails here."""
    async with serving(read_timeout_s=60.0) as site:
        await check_what_is_used(site)


async def check_what_is_used(site: Site) -> None:
    reader, writer = await site.connect()
    await until_open(site, 1)
    (connection,) = site.connections.connections
    assert isinstance(connection, Connection)
    await until(lambda: connection._waiter is not None)
    waiting = connection._waiter
    # Pending before a head is whole, done with it, and another one before the next.
    assert waiting is not None
    assert not waiting.done()
    writer.write(HEAD)
    await until(lambda: connection in site.connections.heads)
    assert connection._waiter is waiting
    writer.write(b"\r\n")
    assert (await reader.read(1000)).startswith(b"HTTP/1.1 200 ")
    assert connection._waiter is not waiting
    assert connection not in site.connections.heads
    # Called anew for each request.
    assert connection._request_handler is site.connections.request_handler

    async def other(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="from the other one")

    connection.answer_by(other)
    writer.write(WHOLE)
    assert b"from the other one" in await reader.read(1000)
    writer.close()
    assert inspect.iscoroutinefunction(web.AppRunner._make_server)
    assert issubclass(Turns, web.BaseSite)


async def test_what_follows_a_broken_head_is_not_read(site: Site) -> None:
    """aiohttp makes an error of every piece that follows the first, and keeps them all until it
    comes to answering."""
    reader, writer = await site.connect()
    while not site.connections.connections:  # noqa: ASYNC110 - aiohttp tells nobody
        await asyncio.sleep(0.01)
    (connection,) = site.connections.connections
    connection.data_received(b"GET / HTTP/1.1\r\nX: " + b"x" * 9_000 + b"\r\n\r\n")
    for _ in range(5):
        connection.data_received(b"y" * 65_536)
    assert len(connection._messages) == 1
    assert b" 400 Bad Request" in await all_of(reader)
    writer.transport.abort()
    await asyncio.sleep(0)


async def test_a_body_that_only_says_it_is_compressed_is_no_word_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody reads it either: aiohttp does, to know where the next request begins."""
    reader, writer = await site.connect()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
    writer.write(head + b"hello")
    assert (await reader.read(1000)).startswith(b"HTTP/1.1 405 ")
    # The next one is answered, so the last one is dealt with.
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"HTTP/1.1 200 " in await all_of(reader)
    writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
