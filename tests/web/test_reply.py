"""An answer written in one piece says what aiohttp would have said."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web

from seckill.server.reply import PROBLEM, Plain
from tests.web.intake import serving


class Spy(Plain):
    """Notes which way it went."""

    ways: list[str] = []  # noqa: RUF012 - emptied by each test

    async def write_eof(self, data: bytes = b"") -> None:
        self.ways.append("whole" if self._to is not None else "aiohttp")
        await super().write_eof(data)


@pytest.fixture(autouse=True)
def _empty() -> None:
    Spy.ways.clear()


def app_of(*, hook: bool = False, **options: Any) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = Spy(b'{"a":1}', **options)
        if "touch" in request.query:
            response.headers["X-More"] = "1"
        if "cookie" in request.query:
            response.set_cookie("a", "1")
        return response

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-More"] = "1"

    app = web.Application()
    app.router.add_route("*", "/", answer)
    if hook:
        app.on_response_prepare.append(add)
    return app


async def talk(base: str, *requests: str) -> list[tuple[str, dict[str, str], bytes]]:
    """Status line, headers and body of each answer, asked on one connection."""
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answers = []
    try:
        writer.write("".join(requests).encode())
        async with asyncio.timeout(30):
            for request in requests:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:-2])
                size = 0 if request.startswith("HEAD") else int(headers["Content-Length"])
                answers.append((head[0], headers, await reader.readexactly(size)))
    finally:
        writer.close()
    return answers


GET = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = {
    "closing": "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "head": "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    "old": "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
    "touched": "GET /?touch HTTP/1.1\r\nHost: x\r\n\r\n",
    "cookie": "GET /?cookie HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize(
    "options",
    [{}, {"http": 201, "location": "/v1/x/%E4%B9%B0"}, {"http": 409, "media": PROBLEM}],
    ids=["plain", "location", "problem"],
)
async def test_both_ways_say_the_same(name: str, options: dict[str, Any]) -> None:
    async with serving(app_of(**options)) as base:
        ((line, headers, body),) = await talk(base, GET)
        ((line_of, headers_of, body_of),) = await talk(base, SLOW[name])
    assert Spy.ways == ["whole", "aiohttp"]
    added = {"Connection", "X-More", "Set-Cookie"}
    assert {k: v for k, v in headers_of.items() if k not in {*added, "Date"}} == {
        k: v for k, v in headers.items() if k != "Date"
    }
    assert "Date" in headers
    assert "Connection" not in headers
    assert line_of.split(" ", 1)[1] == line.split(" ", 1)[1]
    assert body == b'{"a":1}'
    assert body_of == (b"" if name == "head" else body)
    assert ("X-More" in headers_of) == (name == "touched")
    assert ("Set-Cookie" in headers_of) == (name == "cookie")


async def test_a_hook_of_the_mall_is_called() -> None:
    async with serving(app_of(hook=True)) as base:
        ((_, headers, _),) = await talk(base, GET)
    assert headers["X-More"] == "1"
    assert Spy.ways == ["aiohttp"]


async def test_many_on_one_connection_come_in_order() -> None:
    async with serving(app_of()) as base:
        answers = await talk(base, GET, SLOW["touched"], GET, SLOW["head"], GET)
    assert [headers.get("X-More") for _, headers, _ in answers] == [None, "1", None, None, None]
    assert Spy.ways == ["whole", "aiohttp", "whole", "aiohttp", "whole"]


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    """Its answers would fill the memory otherwise."""
    asked = 120_000
    async with serving(app_of()) as base:
        host, port = base.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, int(port)))
            sending = asyncio.create_task(loop.sock_sendall(client, GET.encode() * asked))
            answered = -1
            async with asyncio.timeout(60):
                while len(Spy.ways) != answered:
                    answered = len(Spy.ways)
                    await asyncio.sleep(0.5)
            # The kernel's buffers hold a part of them.
            assert 0 < answered < asked * 0.8
            sending.cancel()


async def test_a_client_that_has_gone_harms_nobody() -> None:
    async with serving(app_of()) as base:
        host, port = base.removeprefix("http://").split(":")
        for _ in range(20):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(GET.encode())
            writer.transport.abort()
        ((line, *_),) = await talk(base, GET)
    assert line.startswith("HTTP/1.1 200")
