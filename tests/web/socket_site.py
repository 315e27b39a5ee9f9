"""What the tests of sockets share: an intake on a real port, and clients that talk to it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from typing import Any

import aiohttp
import jwt
from aiohttp import WSMsgType, web

from seckill.engine import Engine
from seckill.sale import Sale
from seckill.server import create_app
from seckill.server.gate import Entry
from seckill.server.settings import Settings
from seckill.server.sockets import SOCKETS, Sockets
from tests.support import make_sale
from tests.web.intake import Answer

__all__ = ["ITEMS", "SECRET", "Site", "Talk", "Turnstile", "site_on", "token"]

SECRET = "s" * 40
ITEMS = [{"sku": "a", "quantity": 1}]
# However slow the machine is.
PATIENCE_S = 60


@cache
def token(buyer: str, life_s: float = 3_600) -> str:
    return jwt.encode({"sub": buyer, "exp": time.time() + life_s}, SECRET)


class Turnstile:
    """A gate that lets orders through when it is told to, and all but the slow ones at once."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Semaphore(0)

    async def admit(self, entry: Entry) -> None:
        self.asked.release()
        if entry.key.startswith("slow"):
            await self.open.wait()


class Talk:
    """One socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.numbers = count(1)
        self.fed: list[dict[str, Any]] = []

    async def send(self, op: str, **fields: Any) -> Any:
        """Asks; the message's id."""
        message = {"op": op, "id": next(self.numbers)} | fields
        await self.socket.send_str(json.dumps(message))
        return message["id"]

    async def hear(self) -> dict[str, Any]:
        """The next message."""
        message = await self.socket.receive(timeout=PATIENCE_S)
        assert message.type is WSMsgType.TEXT, message
        heard: dict[str, Any] = json.loads(message.data)
        return heard

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Asks, with nothing else under way, and hears the answer. Stock that was fed meanwhile is
        in ``fed``."""
        name = await self.send(op, **fields)
        while "feed" in (answer := await self.hear()):
            self.fed.append(answer)
        assert answer["id"] == name
        return answer

    async def code(self, op: str, **fields: Any) -> tuple[int, str]:
        answer = await self.ask(op, **fields)
        return answer["status"], answer["body"]["code"]

    async def ended(self) -> int | None:
        """Waits for the end, before which nothing more is said: the close code, None if the
        connection was cut."""
        message = await self.socket.receive(timeout=PATIENCE_S)
        assert message.type is not WSMsgType.TEXT, message
        return int(message.data) if message.type is WSMsgType.CLOSE else None


class Site:
    """An intake with one sale."""

    def __init__(self, base: str, engine: Engine, app: web.Application) -> None:
        self.base = base
        self.engine = engine
        self.app = app
        self.client: aiohttp.ClientSession

    @property
    def sockets(self) -> Sockets:
        return self.app[SOCKETS]

    async def open_sale(self, stock: dict[str, int] | None = None, **fields: Any) -> Sale:
        sale = make_sale(stock, **fields)
        assert (await self.engine.create(sale)).ok
        assert (await self.engine.open(sale.id)).ok
        return sale

    @asynccontextmanager
    async def talk(
        self, sale: str, buyer: str = "ann", /, *, proof: str | None = None, **headers: str
    ) -> AsyncIterator[Talk]:
        """A socket of this buyer, or with this proof; "" sends none."""
        proof = token(buyer) if proof is None else proof
        if proof:
            headers["Authorization"] = f"Bearer {proof}"
        url = f"{self.base}/v1/sales/{sale}/socket"
        async with self.client.ws_connect(url, headers=headers) as opened:
            yield Talk(opened)

    async def refused(self, sale: str, proof: str = "", **headers: str) -> tuple[int, str]:
        """What a handshake is refused with."""
        if proof:
            headers["Authorization"] = f"Bearer {proof}"
        usual = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        answer = await self.call("GET", f"/v1/sales/{sale}/socket", **(usual | headers))
        return answer.http, answer.code

    async def call(
        self, method: str, path: str, body: str | None = None, /, **headers: str
    ) -> Answer:
        """The same intake over HTTP."""
        async with self.client.request(
            method, self.base + path, data=body, headers=headers
        ) as response:
            return Answer(response, await response.read())

    async def counted(self, name: str) -> float:
        """A metric's sample."""
        text = (await self.call("GET", "/metrics")).body.decode()
        lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0


@asynccontextmanager
async def site_on(
    url: str, *, send_bytes: int = 0, tables: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Site]:
    """An intake over a Redis that is there already. ``send_bytes`` is what its sockets' buffers in
    the kernel hold; ``tables`` are its settings."""
    usual = {"users": {"secrets": [SECRET]}, "limits": {"buyer_per_s": 0}}
    settings = Settings.model_validate(usual | (tables or {}))
    engine = Engine(url, durability="memory", sweep_ms=0, timeout_ms=30_000)
    app = create_app(engine, settings, **options)
    listening = socket.socket()
    if send_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    listening.bind(("127.0.0.1", 0))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    async with engine:
        try:
            await runner.setup()
            await web.SockSite(runner, listening).start()
            site = Site(f"http://127.0.0.1:{listening.getsockname()[1]}", engine, app)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as site.client:
                yield site
        finally:
            await runner.cleanup()
            await asyncio.sleep(0)
