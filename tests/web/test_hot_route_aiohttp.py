"""What the hot route uses of aiohttp without being promised it. If this fails, see ``TRY``."""

from __future__ import annotations

import asyncio
import logging
import re
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http import HttpRequestParser, RawRequestMessage

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app, hot_route
from seckill.server.connection import Connection
from seckill.server.intake import INTAKE
from tests.web.hot import BODY, TIME, Client, Site, order, paused, serving, settings, until

TRY = f"""aiohttp {aiohttp.__version__} does otherwise than server/hot_route.py counts on.
To try a version of aiohttp:
  1. Read what has changed in aiohttp/web_protocol.py, base_protocol.py and _http_parser.pyx since
     the last version in _TRIED, and change HotConnection with it.
  2. pytest tests/web tests/properties/test_hot_route.py
  3. SECKILL_SOAK_SECONDS=600 pytest -m soak tests/properties/test_hot_route.py
  4. Then raise the end of _TRIED in server/hot_route.py, and for a new minor version the bound of
     aiohttp in pyproject.toml.
Until then the intake works, without the hot route: it writes one line to the log and costs more.
"""


@contextmanager
def counted_on() -> Iterator[None]:
    """Whatever fails within says what to do."""
    try:
        yield
    except (AssertionError, AttributeError, TypeError, TimeoutError) as error:
        pytest.fail(f"{error}\n\n{TRY}")


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    # aiohttp's way alone: what it does by itself is looked at.
    async with serving(redis_server.url, server={"hot_route": False}) as site:
        await site.known("ann")
        yield site


async def connect(site: Site) -> tuple[Client, Connection]:
    client = await site.connect()
    (connection,) = site.connections.connections
    assert isinstance(connection, Connection)
    await until(lambda: connection._waiter is not None)
    return client, connection


def test_this_aiohttp_was_tried() -> None:
    with counted_on():
        assert hot_route._strange(aiohttp.__version__) == ""


def test_the_range_of_the_package() -> None:
    """No older one is installed than was tried, and no later minor version."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (wanted,) = [
        each
        for each in project["project"]["optional-dependencies"]["server"]
        if each.startswith("aiohttp")
    ]
    (first, (major, minor, _)) = hot_route._TRIED
    assert wanted == f"aiohttp>={'.'.join(map(str, first))},<{major}.{minor + 1}", TRY


@pytest.mark.parametrize(
    "version", ["3.12.15", "3.14.3", "3.14.6", "3.15.0", "4.0.0", "3.14.5.dev0", "3.14.5rc1", ""]
)
async def test_another_aiohttp(
    redis_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    monkeypatch.setattr(hot_route, "_TRIED", ((3, 14, 4), (3, 14, 5)))
    monkeypatch.setattr(aiohttp, "__version__", version)
    assert create_app(Engine(redis_server.url), settings())[INTAKE].hot_route is None
    assert [record.getMessage() for record in caplog.records] == [
        f"the hot route is off: it was tried with aiohttp 3.14.4 to 3.14.5, and this is {version}"
    ]
    assert caplog.records[0].levelname == "WARNING"


async def test_without_a_name(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(hot_route._USED, web.RequestHandler, ("_waiter", "_gone", "_too"))
    async with serving(redis_server.url) as site:
        assert site.intake.hot_route is None
        await site.known("ann")
        sale = await site.open_sale()
        assert (await (await site.connect()).ask(order(sale.id))).http == 201
        assert site.hits == 0
    assert [record.getMessage() for record in caplog.records] == [
        "the hot route is off: this aiohttp has no RequestHandler._gone, RequestHandler._too"
    ]


@pytest.mark.parametrize(
    ("tables", "setting"),
    [
        ({"server": {"hot_route": False}}, "server.hot_route"),
        ({"server": {"cors_origins": ["https://shop.example"]}}, "server.cors_origins"),
        ({"limits": {"address_per_s": 5}}, "limits.address_per_s"),
    ],
)
async def test_a_setting_turns_it_off_and_is_named(
    redis_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tables: dict[str, Any],
    setting: str,
) -> None:
    """Then nobody asks which aiohttp this is."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(aiohttp, "__version__", "1.0")
    assert create_app(Engine(redis_server.url), settings(**tables))[INTAKE].hot_route is None
    said = [record.message for record in caplog.records if "hot route" in record.message]
    assert said == [f"the hot route is off: {setting}"]


def test_every_name_that_is_used_is_named() -> None:
    """What begins with _ is nobody's promise, so what the source has of it is ours or in _USED."""
    source = Path(hot_route.__file__).read_text()
    names = set(re.findall(r"(?:self|payload|connection)\.(_\w+)", source))
    own = {
        name for owner in (hot_route.HotRoute, hot_route.HotConnection) for name in vars(owner)
    } | {"_connections", "_intake", "_guard", "_asking", "_sales"}
    assert names - own <= {name for each in hot_route._USED.values() for name in each}


async def test_a_read_without_anybody_waiting(site: Site) -> None:
    """A whole request is parsed into _messages, with its body in _buffer, and nobody is woken."""
    _, connection = await connect(site)
    raw = order("s").encode()
    with counted_on():
        waiter, connection._waiter = connection._waiter, None
        connection.parse(raw)
        assert not connection._request_in_progress
        assert len(connection._messages) == 1
        message, payload = connection._messages[0]
        assert type(message) is RawRequestMessage
        assert (message.method, message.path) == ("POST", "/v1/sales/s/orders")
        assert (message.version, message.should_close, message.chunked) == ((1, 1), False, False)
        assert message.headers.getall("idempotency-key") == ["k1"]
        assert type(payload) is StreamReader
        assert payload.is_eof()
        assert payload.total_bytes == len(BODY)
        assert b"".join(payload._buffer) == BODY.encode()
        assert waiter is not None
        assert not waiter.done()
        connection._waiter = waiter


@pytest.mark.parametrize(
    ("change", "shows"),
    [
        (("Host", "Connection: close\r\nHost"), "should_close"),
        (("Content-Length: 36\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n24\r\n"), "chunked"),
        (("HTTP/1.1", "HTTP/1.0"), "version"),
        (('quantity":1}]}', 'quantity":1}]'), "is_eof"),
    ],
)
async def test_what_is_not_plain_can_be_told(
    site: Site, change: tuple[str, str], shows: str
) -> None:
    _, connection = await connect(site)
    with counted_on():
        assert hot_route._is_plain(*(await parsed(connection, order("s"))))
        message, payload = await parsed(connection, order("s").replace(*change))
        assert not hot_route._is_plain(message, payload), shows
        told = getattr(payload if shows == "is_eof" else message, shows)
        assert (told() if callable(told) else told) == {"version": (1, 0), "is_eof": False}.get(
            shows, True
        )


async def parsed(connection: Connection, raw: str) -> tuple[Any, StreamReader]:
    """What aiohttp's parser makes of this, by a connection that is not used any further."""
    waiter, connection._waiter = connection._waiter, None
    connection.parse(raw.encode())
    connection._waiter = waiter
    made = connection._messages.pop()
    connection._parser.message_consumed()
    return made


async def test_a_request_without_a_body(site: Site) -> None:
    _, connection = await connect(site)
    with counted_on():
        _, payload = await parsed(connection, TIME.decode())
        assert payload is EMPTY_PAYLOAD


async def test_waking_the_handling(site: Site) -> None:
    """Whoever sets the waiter's result has _messages answered, in order; a new one is then made."""
    client, connection = await connect(site)
    with counted_on():
        waiter, connection._waiter = connection._waiter, None
        connection.parse(TIME + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        connection._waiter = waiter
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(connection._messages) == 2
        assert waiter is not None
        waiter.set_result(None)
        assert "now_ms" in (await client.answer()).body
        assert "now_ms" not in (await client.answer()).body
        await until(lambda: connection._waiter is not None)
        assert connection._waiter is not waiter
        assert not connection._messages


async def test_what_waits_to_be_taken_is_counted(site: Site) -> None:
    """The parser stops at 32 requests that nobody has taken. One that is taken elsewhere has to be
    said."""
    _, connection = await connect(site)
    with counted_on():
        waiter, connection._waiter = connection._waiter, None
        connection.parse(TIME * 40)
        assert len(connection._messages) == 32
        for _ in range(8):
            connection._messages.popleft()
            connection._parser.message_consumed()
        connection.parse(b"")
        assert len(connection._messages) == 32
        connection._waiter = waiter


async def test_when_a_connection_counts_as_idle(site: Site) -> None:
    """The timer ends a connection whose time is over and which waits, and no other."""
    client, connection = await connect(site)
    with counted_on():
        waiter = connection._waiter
        assert connection._keepalive_handle is not None
        assert connection._keepalive_timeout == site.intake.settings.server.keepalive_s
        before_s = connection._next_keepalive_close_time
        assert "now_ms" in (await client.ask(TIME)).body
        await until(lambda: connection._waiter not in (None, waiter))
        assert connection._next_keepalive_close_time > before_s
        # Too early: it is set again.
        connection._process_keepalive()
        assert connection._keepalive_handle is not None
        # Nobody waits, so somebody is being answered.
        waiter, connection._waiter = connection._waiter, None
        connection._next_keepalive_close_time = 0.0
        connection._process_keepalive()
        assert connection._keepalive_handle is None
        assert connection.transport is not None
        connection._waiter = waiter
        connection._process_keepalive()
        await client.ended()


@pytest.mark.parametrize("hot", [False, True])
async def test_an_order_under_way_is_a_handler_at_work(
    redis_server: EmbeddedServer, hot: bool
) -> None:
    """What aiohttp makes its connection look like, and so hold() and answer(): an end waits."""
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        await site.known("ann")
        sale = await site.open_sale()
        client, connection = await connect(site)
        with counted_on():
            async with paused(site):
                client.send(order(sale.id))
                await until(lambda: site.intake.in_flight == 1)
                assert connection._request_in_progress
                assert connection._waiter is None
                ending = asyncio.create_task(connection.shutdown(300.0))
                await until(lambda: connection._handler_waiter is not None)
            async with asyncio.timeout(60):
                await ending
            assert connection._force_close
            assert connection.transport is None
            assert (await client.answer()).http == 201
            await client.ended()
        assert site.hits == hot


async def test_the_end_of_a_connection(site: Site) -> None:
    """close() and force_close() cancel what is waited on; a lost one has no parser and manager."""
    client, connection = await connect(site)
    with counted_on():
        waiter = connection._waiter
        assert waiter is not None
        connection.close()
        assert connection._close
        assert waiter.cancelled()
        assert connection.waiter is None
        connection.force_close()
        await client.ended()
        await until(lambda: connection._manager is None)
        assert connection._parser is None
        assert hasattr(HttpRequestParser, "message_consumed")
