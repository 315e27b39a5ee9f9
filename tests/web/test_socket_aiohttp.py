"""What a socket uses of aiohttp, and what becomes of it without that."""

from __future__ import annotations

import pytest

from seckill.embedded import EmbeddedServer
from seckill.server.socket_session import Session
from tests.web.socket_site import ITEMS, site_on, token


async def test_messages_are_taken_as_they_are_parsed(redis_server: EmbeddedServer) -> None:
    async with site_on(redis_server.url) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id) as talk:
            assert (await talk.ask("time"))["status"] == 200
            (session,) = site.sockets._open
            assert session._queue is not None, "this aiohttp lacks what Session._tap uses"


async def test_they_are_received_where_that_is_not_possible(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "_tap", lambda self, socket: False)
    async with site_on(redis_server.url) as site:
        sale = await site.open_sale({"a": 100})
        async with site.talk(sale.id, proof="") as talk:
            await talk.send("hello", token=token("ann"))
            for number in range(30):
                await talk.send("buy", key=f"k{number}", items=ITEMS)
            answers = [await talk.hear() for _ in range(31)]
            assert sorted(answer["status"] for answer in answers) == [200] + [201] * 30
            (session,) = site.sockets._open
            assert session._queue is None
            await talk.socket.ping()
            await talk.socket.send_bytes(b"x")
            assert await talk.ended() == 1003
        async with site.talk(sale.id) as talk:
            await talk.socket.send_str("x" * 70_000)
            assert await talk.ended() == 1009
        async with site.talk(sale.id) as talk:
            assert (await talk.ask("time"))["status"] == 200
            await talk.socket.close()
            assert talk.socket.close_code == 1000
        async with site.talk(sale.id) as talk:
            await talk.ask("time")
            await site.sockets.drain(10)
            assert await talk.ended() == 1001
