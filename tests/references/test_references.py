"""The servers that `python -m benchmarks http` compares make the same checks and give the same
answers over real HTTP, our intake among them: else their figures would compare different things.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import aiohttp
import jwt
import msgspec
import pytest

from benchmarks.http_books import Books, RedisBooks, RedisOneBooks, Sold, SqlBooks
from benchmarks.http_rig import EVALSHA, FASTIFY, GO, INTAKE, SQL
from benchmarks.plan import Plan
from benchmarks.references.launch import Missing, build_fastify, build_go, launched, started
from benchmarks.references.start import start_of
from benchmarks.workload import SKU, Wire, make_sale
from seckill.embedded import EmbeddedServer
from seckill.sale import Sale

# What takes long is to build and start them, once for the file.
pytestmark = pytest.mark.slow

SECRET = token_hex(32)
HELD = {"items": [{"sku": SKU, "quantity": 1}]}
WAIT_S = 30.0

# Status, code and the rest of an answer.
Answer = tuple[int, str, dict[str, Any]]

T = TypeVar("T")


def token(buyer: str, *, secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    claims = {"sub": buyer, "exp": int(time.time()) + 3600, **claims}
    return jwt.encode(claims, secret, algorithm=algorithm)


def signed(head: dict[str, Any], buyer: str) -> str:
    """A token whose signature is right whatever its head says."""
    parts = [head, {"sub": buyer, "exp": int(time.time()) + 3600}]
    text = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{text}.{encoded(hmac.digest(SECRET.encode(), text.encode(), 'sha256'))}"


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class Shop:
    """One server, and the books it writes."""

    def __init__(self, base: str, books: Books, runner: asyncio.Runner) -> None:
        self.base = base
        self.books = books
        self._runner = runner

    def open(self, *, stock: int = 1_000, sku_limit: int = 0, **fields: Any) -> str:
        sale = make_sale(f"ref-{token_hex(6)}")
        item = msgspec.structs.replace(sale.items[0], total=stock, limit_per_buyer=sku_limit)
        fields = {"limit_per_buyer": 0, "limit_per_order": 0, **fields}
        sale = msgspec.structs.replace(sale, items=(item,), **fields)
        assert isinstance(sale, Sale)
        self.books.open(sale, gone=False)
        return sale.id

    def sold(self, sale: str) -> Sold:
        return self.books.count(sale)

    def ask(self, sale: str, buyer: str, key: str = "k1", quantity: int = 1) -> Answer:
        """One order."""
        return self.ask_all(sale, [(buyer, key, quantity)])[0]

    def ask_all(self, sale: str, orders: Sequence[tuple[str, str, int]]) -> list[Answer]:
        """Orders (buyer, key, quantity), all at once."""

        async def all_of_them(session: aiohttp.ClientSession) -> list[Answer]:
            return await asyncio.gather(
                *(
                    self._post(
                        session,
                        sale,
                        {"Authorization": f"Bearer {token(buyer)}", "Idempotency-Key": key},
                        json.dumps({"items": [{"sku": SKU, "quantity": quantity}]}),
                    )
                    for buyer, key, quantity in orders
                )
            )

        return self._run(all_of_them)

    def post(
        self, sale: str, body: Any = None, *, bearer: str | None = "", **headers: str | None
    ) -> Answer:
        """An order with anything that is to be wrong about it. What is None is left out."""
        given = {
            "Authorization": f"Bearer {bearer or token('b-9')}" if bearer is not None else None,
            "Idempotency-Key": "k1",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        text = body if isinstance(body, str) else json.dumps(HELD if body is None else body)

        async def one(session: aiohttp.ClientSession) -> Answer:
            sent = {name: value for name, value in given.items() if value is not None}
            return await self._post(session, sale, sent, text)

        return self._run(one)

    def _run(self, work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            connector = aiohttp.TCPConnector(limit=32)
            # What it would add by itself is for the tests to leave out.
            skipped = ("Content-Type",)
            async with aiohttp.ClientSession(
                connector=connector, skip_auto_headers=skipped
            ) as session:
                return await work(session)

        return self._runner.run(run())

    async def _post(
        self, session: aiohttp.ClientSession, sale: str, headers: dict[str, str], body: str
    ) -> Answer:
        url = f"{self.base}/v1/sales/{sale}/orders"
        headers = {"Content-Type": "application/json"} | headers
        if headers["Content-Type"] == "-":
            del headers["Content-Type"]
        async with session.post(url, data=body.encode(), headers=headers) as response:
            found = await response.json(content_type=None)
            media = response.headers["Content-Type"].partition(";")[0]
            good = response.status < 400
            assert media == ("application/json" if good else "application/problem+json")
            assert response.headers["Cache-Control"] == "no-store" or not good
            if not good:
                assert found["type"] == f"urn:seckill:problem:{found['code']}"
                assert found["status"] == response.status
                assert found["title"]
            return response.status, found["code"], found.get("order") or {}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", params=[INTAKE, EVALSHA, FASTIFY, GO, SQL])
def shop(
    request: pytest.FixtureRequest,
    redis_server: EmbeddedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """Skipped where the machine lacks what this server is made of."""
    who: str = request.param
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        wire = stack.enter_context(Wire(redis_server))
        books: Books = RedisOneBooks(redis_server, wire, runner)
        if who == INTAKE:
            books = RedisBooks(redis_server, wire, runner)
        try:
            database_url = ""
            if who == SQL:
                books = sql = SqlBooks(Plan(()), stack)
                database_url = sql.url
            start = start_of(
                redis_server.url, "aof", SECRET, database_url=database_url, limited=False
            )
            process = stack.enter_context(
                _started(who, msgspec.json.encode(start).decode(), tmp_path_factory.mktemp("built"))
            )
        except Missing as why:
            pytest.skip(f"{who}: {why}")
        yield Shop(process.base, books, runner)


def _started(who: str, start: str, folder: Path) -> Any:
    if who == FASTIFY:
        return launched(build_fastify(folder), start)
    if who == GO:
        return launched(build_go(folder), start)
    modules = {INTAKE: "intake_server", EVALSHA: "evalsha_server", SQL: "sql_server"}
    return started(f"references.{modules[who]}", start)


def test_an_order_is_answered_with_the_order(shop: Shop) -> None:
    sale = shop.open()
    before_ms = time.time() * 1000
    status, code, order = shop.ask(sale, "b-1", quantity=3)
    assert (status, code) == (201, "created")
    held_ms = order.pop("deadline_ms") - before_ms
    assert 800_000 < held_ms < 900_000 + WAIT_S * 1000
    order_id = order.pop("id")
    assert len(order_id) == 24
    assert set(order_id) <= set("0123456789abcdef")
    assert order == {
        "sale": sale,
        "buyer": "b-1",
        "state": "held",
        "version": 1,
        "items": [{"sku": SKU, "quantity": 3}],
        "amount_fen": 3 * 9_900,
        "payments": [],
        "refund": None,
    }
    assert shop.sold(sale) == Sold(1, 997)


def test_a_rush_sells_every_unit_once(shop: Shop) -> None:
    sale = shop.open(stock=100)
    answers = shop.ask_all(sale, [(f"b-{number}", "k1", 1) for number in range(250)])
    counts = Counter((status, code) for status, code, _ in answers)
    assert counts == {(201, "created"): 100, (409, "sold_out"): 150}
    assert len({order["id"] for _, _, order in answers if order}) == 100
    assert shop.sold(sale) == Sold(100, 0)


def test_a_key_makes_one_order_however_often_it_is_sent(shop: Shop) -> None:
    sale = shop.open(stock=10)
    answers = shop.ask_all(sale, [("b-1", "k1", 2)] * 20)
    assert Counter(code for _, code, _ in answers) == {"created": 1, "exists": 19}
    assert Counter(status for status, _, _ in answers) == {201: 1, 200: 19}
    assert all(order == answers[0][2] for _, _, order in answers)
    # Another key, or another buyer with the same one, is another order.
    assert shop.ask(sale, "b-1", "k2")[:2] == (201, "created")
    assert shop.ask(sale, "b-2", "k1")[:2] == (201, "created")
    assert shop.sold(sale) == Sold(3, 6)


def test_the_last_unit_goes_to_one(shop: Shop) -> None:
    sale = shop.open(stock=1)
    answers = shop.ask_all(sale, [(f"b-{number}", "k1", 1) for number in range(32)])
    assert Counter(code for _, code, _ in answers) == {"created": 1, "sold_out": 31}
    assert shop.sold(sale) == Sold(1, 0)


def test_everybody_gets_the_answer_to_his_own_question(shop: Shop) -> None:
    sale = shop.open(limit_per_order=3)
    buyers = [f"b-{number}" for number in range(20)]
    known = {
        order["buyer"]: order for _, _, order in shop.ask_all(sale, [(b, "k1", 1) for b in buyers])
    }
    asked, expected = [], []
    for buyer in buyers:
        asked += [(buyer, "k1", 1), (buyer, "k1", 2), (buyer, "k2", 4), (buyer, "k3", 3)]
        expected += [(200, "exists"), (409, "conflict"), (422, "order_limit"), (201, "created")]
    answers = shop.ask_all(sale, asked)
    assert [answer[:2] for answer in answers] == expected
    assert [order for _, code, order in answers if code == "exists"] == [known[b] for b in buyers]
    assert shop.sold(sale) == Sold(40, 1_000 - 20 - 60)


def test_the_same_key_for_something_else_is_a_conflict(shop: Shop) -> None:
    sale = shop.open()
    bearer = token("b-1")
    with_attrs = HELD | {"attrs": "room=1"}
    assert shop.post(sale, with_attrs, bearer=bearer)[0] == 201
    assert shop.post(sale, with_attrs, bearer=bearer)[0] == 200
    for other in (HELD, HELD | {"attrs": "room=2"}, {"items": [{"sku": SKU, "quantity": 2}]}):
        assert shop.post(sale, other, bearer=bearer)[:2] == (409, "conflict")
    assert shop.sold(sale).orders == 1


def test_a_sold_out_sale_still_finds_an_order(shop: Shop) -> None:
    sale = shop.open(stock=2)
    assert shop.ask(sale, "b-1", quantity=3)[:2] == (409, "insufficient")
    first = shop.ask(sale, "b-1", quantity=2)
    assert shop.ask(sale, "b-2")[:2] == (409, "sold_out")
    assert shop.ask(sale, "b-1", quantity=2) == (200, "exists", first[2])


def test_a_buyer_gets_no_more_than_the_limits_allow(shop: Shop) -> None:
    sale = shop.open(limit_per_buyer=5, limit_per_order=3)
    assert shop.ask(sale, "b-1", quantity=4)[:2] == (422, "order_limit")
    answers = shop.ask_all(sale, [("b-1", f"k{number}", 1) for number in range(20)])
    counts = Counter((status, code) for status, code, _ in answers)
    assert counts == {(201, "created"): 5, (409, "buyer_limit"): 15}
    assert shop.ask(sale, "b-2", quantity=3)[0] == 201
    assert shop.sold(sale) == Sold(6, 992)


def test_the_limit_of_an_item_counts_too(shop: Shop) -> None:
    sale = shop.open(stock=3, sku_limit=2)
    assert shop.ask(sale, "b-1", "k1", 2)[0] == 201
    assert shop.ask(sale, "b-1", "k2", 1)[:2] == (409, "sku_limit")
    assert shop.ask(sale, "b-2", "k1", 1)[0] == 201
    # Whoever can have no more is told that, even if nothing is left.
    assert shop.ask(sale, "b-1", "k3", 1)[:2] == (409, "sku_limit")
    assert shop.sold(sale) == Sold(2, 0)


def test_only_a_valid_user_token_buys(shop: Shop) -> None:
    sale, now = shop.open(), int(time.time())
    head, payload, signature = token("b-1").split(".")
    none = encoded(b'{"alg":"none","typ":"JWT"}')
    other = token("b-2").split(".")[1]
    for bearer in (
        "rubbish",
        token("b-1", secret=token_hex(32)),
        token("b-1", algorithm="HS512"),
        f"{none}.{payload}.{signature}",
        f"{none}.{payload}.",
        signed({"alg": "none"}, "b-1"),
        signed({"alg": "HS512"}, "b-1"),
        signed({"alg": "HS256", "crit": ["b64"]}, "b-1"),
        f"{head}.{other}.{signature}",
        jwt.encode({"sub": "b-1"}, SECRET, algorithm="HS256"),
        token("b-1", nbf=now + 600),
        token("b-1", exp=(now + 3600) * 1000),
        token("b-1", aud="another"),
        token("a buyer"),
        jwt.encode({"exp": now + 600}, SECRET, algorithm="HS256"),
    ):
        assert shop.post(sale, bearer=bearer)[:2] == (401, "unauthenticated"), bearer
    assert shop.post(sale, bearer=None)[:2] == (401, "unauthenticated")
    assert shop.post(sale, bearer=token("b-1", exp=now - 600))[:2] == (401, "token_expired")
    assert shop.sold(sale).orders == 0
    assert shop.post(sale, bearer=signed({"alg": "HS256"}, "b-1"))[:2] == (201, "created")


def test_a_remembered_token_still_expires(shop: Shop) -> None:
    # For ten seconds more than it says, for clocks differ.
    sale, bearer = shop.open(), token("b-1", exp=time.time() - 9.5)
    seen: list[tuple[int, str]] = []
    until_s = time.monotonic() + WAIT_S
    while (not seen or seen[-1] != (401, "token_expired")) and time.monotonic() < until_s:
        seen.append(shop.post(sale, bearer=bearer)[:2])
        time.sleep(0.05)
    assert seen[-1] == (401, "token_expired")
    if len(seen) > 2:
        assert seen[0] == (201, "created")
    assert shop.sold(sale).orders <= 1


NO_ORDERS: tuple[tuple[Any, int, str], ...] = (
    ("", 400, "malformed_json"),
    ('{"items":', 400, "malformed_json"),
    (json.dumps(HELD) + "x", 400, "malformed_json"),
    ([], 400, "invalid_input"),
    ({}, 400, "invalid_input"),
    ({"items": []}, 400, "invalid_input"),
    ({"items": [{"sku": SKU}]}, 400, "invalid_input"),
    ({"items": [{"sku": SKU, "quantity": 0}]}, 400, "invalid_input"),
    ({"items": [{"sku": SKU, "quantity": 10_001}]}, 400, "invalid_input"),
    ({"items": [{"sku": SKU, "quantity": 1.5}]}, 400, "invalid_input"),
    ({"items": [{"sku": SKU, "quantity": "1"}]}, 400, "invalid_input"),
    ({"items": [{"sku": "", "quantity": 1}]}, 400, "invalid_input"),
    ({"items": [{"sku": "s" * 41, "quantity": 1}]}, 400, "invalid_input"),
    (HELD | {"price": 1}, 400, "invalid_input"),
    (HELD | {"attrs": "x" * 513}, 400, "invalid_input"),
    (HELD | {"attrs": "x" * 70_000}, 413, "body_too_large"),
    ({"items": [{"sku": "none", "quantity": 1}]}, 422, "unknown_sku"),
)


def test_a_body_that_is_no_order_is_refused(shop: Shop, open_sale: str) -> None:
    for body, status, code in NO_ORDERS:
        assert shop.post(open_sale, body)[:2] == (status, code), str(body)[:80]


@pytest.fixture(scope="module")
def open_sale(shop: Shop) -> Iterator[str]:
    """A sale in which nobody may ever buy anything."""
    sale = shop.open()
    yield sale
    assert shop.sold(sale) == Sold(0, 1_000)


def test_what_else_an_order_needs(shop: Shop, open_sale: str) -> None:
    missing = (400, "idempotency_key_required")
    assert shop.post(open_sale, Idempotency_Key=None)[:2] == missing
    assert shop.post(open_sale, Idempotency_Key="a,b")[:2] == (400, "invalid_input")
    assert shop.post(open_sale, Idempotency_Key="k" * 65)[:2] == (400, "invalid_input")
    media = (415, "unsupported_media_type")
    assert shop.post(open_sale, Content_Type="text/plain")[:2] == media
    assert shop.post(open_sale, Content_Type="-")[:2] == media
    assert shop.post(open_sale, Content_Encoding="gzip")[:2] == media
    assert shop.post("no-such-sale")[:2] == (404, "unknown_sale")
