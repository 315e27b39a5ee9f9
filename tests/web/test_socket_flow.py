"""Sockets under pressure, and at their end: floods, slow readers, garbage, the feed, the drain."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.server import create_app, gate, socket_dialogue, socket_feed, socket_session, sockets
from seckill.server.connection import Runner
from seckill.server.settings import Settings
from tests.support import make_item, make_sale
from tests.web.processes import serve
from tests.web.socket_site import ITEMS, SECRET, Site, Talk, Turnstile, site_on, token

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
NO_ORDER = "00" + "f" * 22


def framed(opcode: int, payload: bytes) -> bytes:
    """A whole frame of a client, masked with zeros."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65_536:
        head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def message(op: str, **fields: Any) -> bytes:
    return framed(TEXT, json.dumps({"op": op, "id": 1} | fields).encode())


class Raw:
    """A client that reads only when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload."""
        async with asyncio.timeout(60):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await self.reader.readexactly(8), "big")
            return first & 15, await self.reader.readexactly(size)

    async def ended(self) -> int:
        """The close code, after whatever else comes; 0 if it was cut."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big")
        return 0


@asynccontextmanager
async def raw(
    site: Site, sale: str, buyer: str = "ann", *, receive_bytes: int = 0
) -> AsyncIterator[Raw]:
    connection = socket.socket()
    connection.setblocking(False)
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    port = int(site.base.rpartition(":")[2])
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**10)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /v1/sales/{sale}/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Authorization: Bearer {token(buyer)}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101"), head
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def ends(site: Site, reason: str) -> int:
    return site.sockets.intake.metrics.socket_ends[reason]


def answered(site: Site, op: str) -> int:
    """How often this was asked and answered, whatever the answer."""
    verbs = site.sockets.intake.metrics._socket_verbs
    return sum(count for (each, _), count in verbs.items() if each == op)


@pytest.fixture(autouse=True)
def _patient_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LIMIT_S", 60)


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with site_on(redis_server.url) as site:
        yield site


# -- what is no message ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (framed(BINARY, b"{}"), 1003, "binary"),
        (framed(TEXT, b"x" * 65_536), 1009, "broken"),
        (framed(TEXT, b'"\xff"'), 1007, "broken"),
        (b"\xff" + bytes(20), 1002, "broken"),
        (framed(3, b""), 1002, "broken"),
        (framed(CLOSE, b"\x03\xe8"), 1000, "client"),
        (framed(CLOSE, b""), 1000, "client"),
    ],
)
async def test_what_ends_a_socket(site: Site, sent: bytes, code: int, reason: str) -> None:
    sale = await site.open_sale()
    async with raw(site, sale.id) as client, site.talk(sale.id, "bob") as other:
        client.send(message("buy", key="k", items=ITEMS) + message("time") + sent)
        assert await client.ended() == code
        await until(lambda: ends(site, reason) == 1)
        # What was taken before it is decided.
        await until(lambda: site.sockets.intake.in_flight == 0)
        assert (await other.ask("time"))["status"] == 200
    assert (await site.engine.snapshot(sale.id)).orders == 1
    await until(lambda: site.sockets.count == 0)


async def test_garbage_is_answered(site: Site) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id) as talk:
        for text, code in (
            ("", "malformed_json"),
            ("{", "malformed_json"),
            ('{"more":' + "[" * 10_000, "malformed_json"),
            ("[]", "invalid_input"),
            ("1", "invalid_input"),
            ('{"op":"time"}', "invalid_input"),
            ('{"id":1}', "invalid_input"),
            ('{"op":"nothing","id":1}', "invalid_input"),
            ('{"op":"time","id":1,"more":1}', "invalid_input"),
        ):
            await talk.socket.send_str(text)
            answer = await talk.hear()
            assert (answer["status"], answer["body"]["code"]) == (400, code), text
            assert answer["id"] == (1 if '"id":1' in text else None)


async def test_a_connection_that_is_gone(site: Site) -> None:
    sale = await site.open_sale({"a": 100})
    async with raw(site, sale.id) as client:
        client.send(b"".join(message("buy", key=f"k{n}", items=ITEMS) for n in range(20)))
        client.send(message("buy", key="half", items=ITEMS)[:-5])
        await client.frame()
        client.writer.transport.abort()
        await until(lambda: ends(site, "lost") == 1)
    # Whatever was taken is decided all the same, and nothing else.
    await until(lambda: site.sockets.intake.in_flight == 0)
    assert (await site.engine.snapshot(sale.id)).orders == 20


# -- too much -------------------------------------------------------------------------------------


async def test_one_socket_has_only_so_many_under_way(redis_server: EmbeddedServer) -> None:
    turnstile, most = Turnstile(), socket_dialogue.VERBS_MAX
    async with site_on(redis_server.url, gate=turnstile) as site:
        sale = await site.open_sale({"a": 100})
        async with site.talk(sale.id) as talk, site.talk(sale.id, "bob") as other:
            for number in range(most + 5):
                await talk.send("buy", key=f"slow{number}", items=ITEMS)
            refused = [await talk.hear() for _ in range(5)]
            assert {answer["body"]["code"] for answer in refused} == {"rate_limited"}
            assert {answer["id"] for answer in refused} == set(range(most + 1, most + 6))
            assert await other.code("buy", key="k", items=ITEMS) == (201, "created")
            turnstile.open.set()
            assert {(await talk.hear())["status"] for _ in range(most)} == {201}


async def test_a_process_has_only_so_much_under_way(redis_server: EmbeddedServer) -> None:
    turnstile, tables = Turnstile(), {"server": {"max_in_flight": 3}}
    async with site_on(redis_server.url, gate=turnstile, tables=tables) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id) as talk, site.talk(sale.id, "bob") as other:
            for number in range(3):
                await talk.send("buy", key=f"slow{number}", items=ITEMS)
            for _ in range(3):
                await turnstile.asked.acquire()
            busy = await other.ask("buy", key="k", items=ITEMS)
            assert (busy["status"], busy["body"]["code"]) == (503, "busy")
            assert busy["retry_after_s"] == 1
            turnstile.open.set()
            assert {(await talk.hear())["status"] for _ in range(3)} == {201}
            assert await other.code("buy", key="k", items=ITEMS) == (201, "created")


async def test_a_flood_is_answered_and_harms_nobody(redis_server: EmbeddedServer) -> None:
    limits = {"buyer_per_s": 1.0, "buyer_burst": 5}
    async with site_on(redis_server.url, tables={"limits": limits}) as site:
        sale = await site.open_sale({"a": 100})
        async with raw(site, sale.id) as client, site.talk(sale.id, "bob") as other:
            client.send(message("result", order=NO_ORDER) * 20_000)
            assert await other.code("buy", key="k", items=ITEMS) == (201, "created")
            answers = []
            for _ in range(2_000):
                opcode, payload = await client.frame()
                assert opcode == TEXT
                answers.append(json.loads(payload)["status"])
            assert set(answers) <= {404, 429}
            assert answers.count(429) > 1_000


async def test_who_does_not_read_is_not_served_and_cut(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_session, "STUCK_S", 0.5)
    async with site_on(redis_server.url, send_bytes=4_096) as site:
        sale = await site.open_sale()
        most = 40_000
        async with raw(site, sale.id, receive_bytes=4_096) as client:
            client.send(message("result", order=NO_ORDER) * most)
            await until(lambda: ends(site, "slow") == 1)
            assert 0 < answered(site, "result") < most / 10
        assert site.sockets.intake.in_flight == 0
        async with site.talk(sale.id) as talk:
            assert (await talk.ask("time"))["status"] == 200


async def test_who_reads_again_in_time_is_served_again(redis_server: EmbeddedServer) -> None:
    async with site_on(redis_server.url, send_bytes=4_096) as site:
        sale = await site.open_sale()
        async with raw(site, sale.id, receive_bytes=4_096) as client:
            client.send(message("result", order=NO_ORDER) * 4_000)
            await until(lambda: any(session._full for session in site.sockets._open))
            assert answered(site, "result") < 4_000
            for _ in range(4_000):
                await client.frame()
            assert answered(site, "result") == 4_000


async def test_the_silent_are_asked_and_cut(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "PING_S", 1)
    async with site_on(redis_server.url) as site:
        sale = await site.open_sale()
        async with raw(site, sale.id) as silent, site.talk(sale.id) as talk:
            # aiohttp's client answers pings while it receives.
            hearing = asyncio.create_task(talk.socket.receive())
            assert (await silent.frame())[0] == PING
            assert await silent.ended() == 0
            await until(lambda: ends(site, "silent") == 1)
            assert not hearing.done()
            hearing.cancel()
            assert site.sockets.count == 1


async def test_pings_are_answered(site: Site) -> None:
    sale = await site.open_sale()
    async with raw(site, sale.id) as client:
        client.send(framed(PING, b"hello"))
        assert await client.frame() == (10, b"hello")


# -- the feed -------------------------------------------------------------------------------------


async def test_stock_is_fed_once_a_change(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_feed, "READ_S", 0.05)
    async with site_on(redis_server.url) as site:
        sale = await site.open_sale({"a": 1_000, "b": 5})
        async with site.talk(sale.id) as talk, site.talk(sale.id, "bob") as other:
            for each in (talk, other):
                assert (await each.ask("watch"))["body"] == {"code": "done", "on": True}
                first = await each.hear()
                assert (first["feed"], first["phase"]) == ("stock", "selling")
                stock = [{"sku": "a", "available": 1_000}, {"sku": "b", "available": 5}]
                assert first["items"] == stock
            frames = site.sockets.intake.metrics.feed_frames
            # Many changes, a frame for each read at most; the last one is the truth.
            began_s = monotonic()
            for number in range(200):
                await site.engine.reserve(sale.id, f"b{number}", "k", {"a": 1})
            for each in (talk, other):
                heard = [await each.hear()]
                while heard[-1]["items"][0]["available"] != 800:
                    heard.append(await each.hear())
                assert len(heard) <= (monotonic() - began_s) / socket_feed.READ_S + 3
                times = [one["at_ms"] for one in heard]
                assert times == sorted(times)
            # Nothing changes, nothing is sent; and whoever has enough gets none.
            said = site.sockets.intake.metrics.feed_frames
            assert said > frames
            assert (await other.ask("watch", on=False))["body"]["on"] is False
            await site.engine.pause(sale.id)
            assert (await talk.hear())["phase"] == "paused"
            assert (await other.ask("time"))["status"] == 200
            assert site.sockets.intake.metrics.feed_frames == said + 1
        await until(lambda: not site.sockets.feed._sales)


async def test_a_slow_reader_gets_the_newest(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_feed, "READ_S", 0.005)
    items = tuple(make_item(f"sku-{number:036}", total=1_000) for number in range(50))
    async with site_on(redis_server.url, send_bytes=4_096) as site:
        sale = await site.open_sale(items=items)
        async with raw(site, sale.id, receive_bytes=4_096) as client:
            client.send(message("watch"))
            assert (await client.frame())[0] == TEXT
            watched = site.sockets.feed._sales
            sold = 0
            async with asyncio.timeout(60):
                # Until it is left out, and for a while after that.
                late = 0
                while late < 50:
                    sold += 1
                    await site.engine.reserve(sale.id, "b", f"k{sold}", {items[0].sku: 1})
                    late += bool(watched[sale.id].late)
            frames = site.sockets.intake.metrics.feed_frames
            assert frames < sold
            heard, left = 0, 0
            while left != 1_000 - sold:
                _, payload = await client.frame()
                left = json.loads(payload)["items"][0]["available"]
                heard += 1
            assert heard <= frames + 2


async def test_a_feed_outlives_a_redis_that_is_away(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_feed, "READ_S", 0.02)
    monkeypatch.setattr(socket_feed, "LOOK_S", 0.1)
    async with site_on(redis_server.url) as site:
        sale = await site.open_sale({"a": 5})
        async with site.talk(sale.id) as talk:
            await talk.ask("watch")
            assert (await talk.hear())["items"][0]["available"] == 5
            client = site.engine._calls.client_of("sk:sales")
            await client.execute_command("CLIENT", "PAUSE", "400", "ALL")
            await site.engine.reserve(sale.id, "bob", "k", {"a": 2})
            assert (await talk.hear())["items"][0]["available"] == 3


# -- the end --------------------------------------------------------------------------------------


@pytest.fixture
def _collector() -> Iterator[None]:
    """Runner sets the garbage collector for a process of its own."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("_collector")
@pytest.mark.parametrize("early", [True, False])
async def test_the_end_waits_for_answers(redis_server: EmbeddedServer, early: bool) -> None:
    turnstile = Turnstile()
    settings = Settings.model_validate(
        {"users": {"secrets": [SECRET]}, "server": {"drain_s": 30.0 if early else 0.5}}
    )
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0, timeout_ms=30_000)
    app = create_app(engine, settings, gate=turnstile)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with engine:
        sale = make_sale()
        await engine.create(sale)
        await engine.open(sale.id)
        runner = Runner(app, [listening], settings.server)
        await runner.setup()
        site = Site(base, engine, app)
        async with aiohttp.ClientSession() as site.client:
            async with site.talk(sale.id) as talk, site.talk(sale.id, "bob") as idle:
                await talk.send("buy", key="slow", items=ITEMS)
                await turnstile.asked.acquire()
                if early:
                    # As connection.py does when the end begins.
                    ending = asyncio.create_task(site.sockets.drain(30.0))
                else:
                    ending = asyncio.create_task(runner.cleanup())
                assert await idle.ended() == 1001
                # The other has a question under way; what it asks now is too late.
                await talk.send("buy", key="late", items=ITEMS)
                turnstile.open.set()
                answer = await talk.hear()
                assert (answer["id"], answer["status"]) == (1, 201)
                assert await talk.ended() == 1001
                await ending
            if early:
                # The engine is fine; it is only that nobody new is let in.
                assert await site.refused(sale.id, token("ann")) == (503, "shutting_down")
                await runner.cleanup()
        assert (await engine.snapshot(sale.id)).orders == 1


@pytest.mark.slow
async def test_another_process_knows_the_order(
    redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        sale = make_sale({"a": 10})
        await engine.create(sale)
        await engine.open(sale.id)
    config = tmp_path / "seckill.toml"
    config.write_text("[server]\ndrain_s = 1.0\n")
    options = ("--dev", "--redis", redis_server.url, "--durability", "memory")
    options += ("--config", str(config))
    orders = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        async with serve(*options) as intake:
            proof = intake.said.partition("SECKILL_TOKEN=")[2].split()[0]
            url = f"{intake.base}/v1/sales/{sale.id}/socket"
            async with aiohttp.ClientSession() as client, client.ws_connect(url) as opened:
                talk = Talk(opened)
                assert (await talk.ask("hello", token=proof))["status"] == 200
                bought = await talk.ask("buy", key="k", items=ITEMS)
                assert bought["status"] == (200 if orders else 201)
                orders.append(bought["body"]["order"]["id"])
                intake.signal(number)
                if number == signal.SIGTERM:
                    assert await talk.ended() == 1001
    assert orders[0] == orders[1]


# -- seen from outside ----------------------------------------------------------------------------


async def test_metrics(redis_server: EmbeddedServer) -> None:
    from tests.web.test_socket import Caller, web

    async def identify(request: web.Request) -> Caller:
        name = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return Caller(name) if name else Caller(scopes=frozenset({"metrics"}))

    async with site_on(redis_server.url, identify=identify) as site:
        sale = await site.open_sale({"a": 1})
        async with site.talk(sale.id, proof="ann") as talk, site.talk(sale.id, proof="bob"):
            for key in ("k1", "k2"):
                await talk.ask("buy", key=key, items=ITEMS)
            await talk.ask("watch")
            await talk.hear()
            assert await site.counted("seckill_sockets") == 2
        await until(lambda: site.sockets.count == 0)
        assert await site.counted("seckill_sockets") == 0
        for name, value in (
            ('seckill_socket_verbs_total{code="created",op="buy"}', 1),
            ('seckill_socket_verbs_total{code="sold_out",op="buy"}', 1),
            ('seckill_socket_verbs_total{code="ok",op="watch"}', 1),
            ('seckill_answers_total{code="created",verb="reserve"}', 1),
            ('seckill_orders_total{code="created"}', 1),
            ('seckill_orders_total{code="sold_out"}', 1),
            ("seckill_socket_feed_frames_total", 1),
            ('seckill_socket_ends_total{reason="client"}', 2),
            ('seckill_socket_ends_total{reason="slow"}', 0),
            # That of the scrape itself.
            ("seckill_in_flight", 1),
        ):
            assert await site.counted(name) == value, name
