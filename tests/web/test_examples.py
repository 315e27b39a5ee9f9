"""The malls of examples/, started as their users would, with a buyer who retries blindly; and the
PHP and Java of docs/embedding.md, against an intake.

Each mall runs as two servers over one Redis, so what one of them has sold the other must find.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.salefile import load_sale
from seckill.server import create_app
from seckill.server.settings import ApiKey, Settings
from seckill.verify import verify
from tests.children import child
from tests.support import make_item, make_sale
from tests.web.intake import serving

problems = importlib.import_module("seckill.server.problems")

EXAMPLES = Path(__file__).parents[2] / "examples"
SALE = "evening-2026-11-28"
SKU = "rice-wuchang-5kg"
SECRET = "what the mall and its tests share"  # noqa: S105 - theirs alone
PORT = re.compile(r"(?:Listening at|running on|Running on).* ?http://127\.0\.0\.1:(\d+)")
_GUNICORN = (*("-m", "gunicorn", "--chdir", EXAMPLES, "--bind", "127.0.0.1:0"), "--threads", "8")


@dataclass(frozen=True)
class Mall:
    """How to start it: two servers, and a worker where events have a process of their own."""

    name: str
    servers: Sequence[tuple[object, ...]]
    worker: tuple[object, ...] = ()
    # Where buyers order, and what stands before an order's way to the cashier.
    buy: str = "/buy/" + SKU
    orders: str = "/orders"
    pay: str = "pay"


MALLS = [
    Mall(
        "flask",
        [
            (*_GUNICORN, "--workers", "2", "--preload", "flask_mall:app"),
            ("-m", "flask", "--app", EXAMPLES / "flask_mall.py", "run", "--port", "0"),
        ],
        (EXAMPLES / "flask_mall.py",),
    ),
    Mall(
        "django",
        [
            (*_GUNICORN, "--workers", "2", "--preload", "django_mall:application"),
            (*_GUNICORN, "--workers", "1", "django_mall:application"),
        ],
        (EXAMPLES / "django_mall.py",),
    ),
    Mall(
        "fastapi",
        [("-m", "uvicorn", "--app-dir", EXAMPLES, "--port", "0", "fastapi_mall:app")] * 2,
    ),
    Mall(
        "aiohttp",
        [(EXAMPLES / "aiohttp_mall.py", "0")] * 2,
        buy=f"/seckill/v1/sales/{SALE}/orders",
        orders=f"/seckill/v1/sales/{SALE}/orders",
        pay="begin-payment",
    ),
]


class Process:
    """A server of a mall, and all that it has said."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.said = ""

    async def port(self) -> str:
        assert self.child.stdout is not None
        async with asyncio.timeout(60):
            while not (found := PORT.search(self.said)):
                line = await self.child.stdout.readline()
                assert line, f"it ended:\n{self.said}"
                self.said += line.decode()
        return found[1]

    async def end(self) -> None:
        self.child.terminate()
        async with asyncio.timeout(60):
            rest, _ = await self.child.communicate()
        self.said += rest.decode()


@asynccontextmanager
async def process(command: Sequence[object], environ: dict[str, str]) -> AsyncIterator[Process]:
    async with child(
        *(sys.executable, *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environ,
    ) as running:
        yield Process(running)


async def open_now(engine: Engine) -> None:
    """As `seckill sale create examples/evening-sale.toml --open --now`."""
    sale = load_sale(EXAMPLES / "evening-sale.toml")
    now = datetime.now(UTC)
    sale = msgspec.structs.replace(sale, opens_at=now, ends_at=now + timedelta(hours=2))
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok


class Buyer:
    """Somebody with a phone, who is logged in at both servers."""

    def __init__(self, mall: Mall, bases: list[str], session: aiohttp.ClientSession) -> None:
        self.mall = mall
        self.bases = bases
        self.session = session

    async def log_in(self, name: str) -> None:
        async with self.session.post(f"{self.bases[0]}/login/{name}") as response:
            assert response.status in (200, 204), await response.text()
            if response.content_type == "application/json":
                token = (await response.json())["token"]
                self.session.headers["Authorization"] = f"Bearer {token}"

    async def ask(
        self, at: int, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        async with self.session.request(
            method, self.bases[at] + path, data=data, headers=kind | headers
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if text[:1] == "{" else text

    async def buy(self, at: int, key: str) -> tuple[int, Any]:
        body = {"items": [{"sku": SKU, "quantity": 1}]} if self.mall.name == "aiohttp" else None
        return await self.ask(at, "POST", self.mall.buy, body, **{"Idempotency-Key": key})

    async def pay(self, at: int, order: str) -> tuple[int, Any]:
        return await self.ask(at, "POST", f"{self.mall.orders}/{order}/{self.mall.pay}")

    async def notify(
        self, at: int, order: str, payment: str, fen: int, secret: str = SECRET
    ) -> int:
        """What WeChat Pay sends."""
        notice = {"out_trade_no": order, "transaction_id": payment, "amount": {"total": fen}}
        sign = hmac.new(secret.encode(), json.dumps(notice).encode(), "sha256").hexdigest()
        headers = {"Wechatpay-Signature": sign}
        status, _ = await self.ask(at, "POST", "/wxpay/notify", notice, **headers)
        return status

    async def sees(self, at: int, order: str, state: str) -> None:
        """The mall's own table has it, in a moment: its worker reads the events."""
        async with asyncio.timeout(60):
            while (seen := await self.ask(at, "GET", f"/orders/{order}")) != (
                200,
                {"state": state},
            ):
                assert seen[0] in (200, 404), seen
                await asyncio.sleep(0.05)


async def shop(mall: Mall, bases: list[str], buyers: list[aiohttp.ClientSession]) -> str:
    """Ann buys, Bob looks on. Returns the order that is paid in the end."""
    ann, bob, stranger = (Buyer(mall, bases, session) for session in buyers)
    assert (await stranger.buy(0, "cart-1"))[0] == 401
    await ann.log_in("ann")
    await bob.log_in("bob")

    status, got = await ann.buy(0, "cart-1")
    assert status == 201, got
    order = got["order"]["id"]
    # Blind retries, here and there, one of many at once.
    for answer in await asyncio.gather(*(ann.buy(n % 2, "cart-1") for n in range(12))):
        assert answer[0] == 200, answer
        assert answer[1]["order"]["id"] == order
    assert (await ann.buy(1, "cart-2"))[0] == 201
    assert (await ann.buy(0, "cart-3"))[0] == 409, "two bags of rice a buyer"
    assert (await ann.buy(1, "no key is like this"))[0] == 400

    assert (await bob.pay(0, order))[0] in (404, 409)
    status, got = await ann.pay(1, order)
    assert (status, got["order"]["state"]) == (200, "paying")
    await ann.sees(0, order, "paying")
    assert await stranger.notify(0, order, "wx-0", 4_990, secret=SECRET[1:]) == 401
    assert await stranger.notify(0, order, "wx-1", 1) == 204, "the wrong amount is for a person"
    assert await stranger.notify(1, order, "wx-2", 4_990) == 204
    assert await stranger.notify(0, order, "wx-2", 4_990) == 204, "WeChat asks again"
    await ann.sees(1, order, "confirmed")
    assert (await bob.ask(0, "GET", f"/orders/{order}"))[0] == 404
    assert (await ann.pay(0, order))[0] == 409, "it is paid"
    return str(order)


@pytest.mark.slow
@pytest.mark.parametrize("mall", MALLS, ids=lambda mall: mall.name)
async def test_a_mall_sells(mall: Mall, tmp_path: Path) -> None:
    async with Engine.embedded(tmp_path / "redis") as engine, AsyncExitStack() as stack:
        await open_now(engine)
        environ = {
            "SECKILL_REDIS": engine.url,
            "MALL_SECRET": SECRET,
            "MALL_DB": str(tmp_path / "mall.db"),
            "PYTHONUNBUFFERED": "1",
        }
        commands = [*mall.servers, mall.worker] if mall.worker else mall.servers
        processes = [
            await stack.enter_async_context(process(command, environ)) for command in commands
        ]
        servers = processes[: len(mall.servers)]
        bases = [f"http://127.0.0.1:{await server.port()}" for server in servers]
        buyers = [
            # Cookies of an address without a name, and for both ports.
            await stack.enter_async_context(
                aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
            )
            for _ in range(3)
        ]
        paid = await engine.order(SALE, await shop(mall, bases, buyers))
        assert paid is not None
        assert paid.payments == ("wx-2",)
        units = (await engine.snapshot(SALE)).stock[SKU]
        assert (units.held, units.confirmed) == (1, 1)
        for server in servers:
            # The engine ends in time, whatever the framework does at its end.
            await server.end()
            assert "Traceback" not in server.said, server.said
        assert (await verify(engine, SALE)).violations == ()


# -- docs/embedding.md, whose Python is run by tests/unit/test_docs.py -----------------------------

GUIDE = (EXAMPLES.parent / "docs" / "embedding.md").read_text("utf-8")


def block(language: str, after: str = "") -> str:
    found = re.search(rf"(?ms)^{after}\s*^```{language}\n(.*?)^```$", GUIDE)
    assert found
    return found[1]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["php", "java"])
async def test_a_client_of_the_guide(
    language: str, redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    if shutil.which(language) is None:
        pytest.skip(f"there is no {language} here")
    program = tmp_path / ("Mall.java" if language == "java" else "mall.php")
    program.write_text(block(language), encoding="utf-8")
    proof = "sk_" + "k" * 43
    digest = hashlib.sha256(proof.encode()).hexdigest()
    key = ApiKey(name="mall", hash=f"sha256:{digest}", scopes=("backend",))
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0)
    async with serving(create_app(engine, Settings(keys=(key,)))) as base:
        fields = {"price_fen": 5_900, "total": 10, "limit_per_buyer": 1}
        # Each language has a buyer of its own in the guide, and finds the sale there or makes it.
        sale = make_sale(id="tonight", items=(make_item("MUG", **fields),))
        await engine.create(sale)
        await engine.open("tonight")
        async with (
            child(
                *(language, program),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | {"SECKILL_URL": base, "SECKILL_KEY": proof},
            ) as running,
            asyncio.timeout(60),
        ):
            printed, errors = await running.communicate()
        assert (running.returncode, errors) == (0, b""), errors.decode()
        assert printed.decode() == block("", after="Both print:")


def test_the_guide_knows_every_code() -> None:
    answers = {kind.code for kind in problems.ANSWERS.values()}
    modules = [m for name, m in sys.modules.items() if name.startswith("seckill.server")]
    kinds = {
        kind.code for m in modules for kind in vars(m).values() if isinstance(kind, problems.Kind)
    }
    rows = re.findall(r"(?m)^\| (`.*?) \| [^|]+ \| [^|]+ \|$", GUIDE.partition("| codes | at |")[2])
    told = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(answers | kinds)
