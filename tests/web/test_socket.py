"""A buyer's socket: who may open one, every verb, and the order in which verbs are decided."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256

import aiohttp
import pytest
from aiohttp import web

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.order import order_id
from seckill.server import create_app, gate
from seckill.server.caller import Caller
from seckill.server.problems import UNAUTHENTICATED, Problem
from seckill.server.settings import Settings
from tests.support import make_sale
from tests.web.intake import serving
from tests.web.socket_site import ITEMS, Site, Talk, Turnstile, site_on, token

ANN, BOB, NONSENSE = "ann", "bob", "nonsense"
NO_LEEWAY = {"users": {"secrets": ["s" * 40], "leeway_s": 0}}


@pytest.fixture(autouse=True)
def _patient_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LIMIT_S", 60)


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with site_on(redis_server.url) as site:
        yield site


# -- verbs --------------------------------------------------------------------------------------


async def test_the_life_of_an_order(site: Site) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id) as talk:
        bought = await talk.ask("buy", key="k1", items=ITEMS, attrs="gift")
        assert (bought["status"], bought["body"]["code"]) == (201, "created")
        order = bought["body"]["order"]
        assert (order["buyer"], order["state"]) == ("ann", "held")
        assert await talk.code("buy", key="k1", items=ITEMS, attrs="gift") == (200, "exists")
        assert await talk.code("buy", key="k1", items=ITEMS) == (409, "conflict")
        assert await talk.code("begin-payment", order=order["id"]) == (200, "done")
        shown = await talk.ask("result", order=order["id"])
        assert (shown["status"], shown["body"]["state"]) == (200, "paying")
        assert await talk.code("release", order=order["id"]) == (200, "done")
        assert await talk.code("release", order=order["id"]) == (200, "already")
    kept = await site.engine.order(sale.id, order["id"])
    assert kept is not None
    assert kept.state == "released"


async def test_the_way_to_the_till(site: Site) -> None:
    sale = await site.open_sale(admission=Admission(mode="queue"))
    async with site.talk(sale.id) as talk:
        joined = await talk.ask("join")
        assert joined["status"] == 201
        ticket = joined["body"]["place"]["ticket"]
        assert (await talk.ask("join"))["status"] == 200
        async with asyncio.timeout(60):
            while True:
                place = (await talk.ask("place", ticket=ticket))["body"]
                if place["phase"] == "called":
                    break
                await asyncio.sleep(0.05)
        assert await talk.code("buy", key="k", items=ITEMS) == (403, "queue_token_needed")
        turn = place["token"]
        assert await talk.code("buy", key="k", items=ITEMS, token=turn) == (201, "created")
        assert await talk.code("leave") == (200, "done")
        assert await talk.code("place", ticket="x") == (404, "unknown_ticket")


async def test_the_clock(site: Site) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id) as talk:
        told = await talk.ask("time")
        assert abs(told["body"]["now_ms"] - await site.engine.now_ms()) < 60_000


async def test_ids_are_the_clients_own(site: Site) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id) as talk:
        for name in (0, 2**53, "order 7", "七"):
            assert (await talk.ask("time", id=name))["id"] == name
        for name in (-1, 1.5, None, "", "x" * 65, [1], True):
            await talk.send("time", id=name)
            answer = await talk.hear()
            assert (answer["id"], answer["status"]) == (None, 400)
            assert answer["body"]["field"] == "id"


# -- the order of verbs ---------------------------------------------------------------------------


async def test_many_are_under_way_at_once(site: Site) -> None:
    sale = await site.open_sale({"a": 100})
    async with site.talk(sale.id) as talk:
        for _ in range(10):
            sent = {await talk.send("buy", key=f"k{n}", items=ITEMS) for n in range(30)}
            answers = [await talk.hear() for _ in sent]
            assert {answer["id"] for answer in answers} == sent
            assert {answer["status"] for answer in answers} <= {200, 201}
    now = await site.engine.snapshot(sale.id)
    assert (now.orders, now.stock["a"].held) == (30, 30)


async def test_one_order_is_decided_in_the_order_sent(site: Site) -> None:
    sale = await site.open_sale({"a": 1_000})
    async with site.talk(sale.id) as talk:
        # Opens the lane. Each round then is one read for the intake.
        await talk.ask("buy", key="first", items=ITEMS)
        for turn in range(20):
            key = f"k{turn}"
            order = order_id(sale.id, "ann", key)
            raw = [
                {"op": "buy", "key": key, "items": ITEMS},
                {"op": "buy", "key": key, "items": ITEMS},
                {"op": "release", "order": order},
                {"op": "result", "order": order},
                {"op": "begin-payment", "order": order},
                {"op": "buy", "key": key, "items": ITEMS},
            ]
            for number, message in enumerate(raw):
                await talk.socket.send_str(json.dumps(message | {"id": number}))
            answers = [await talk.hear() for _ in raw]
            assert [answer["id"] for answer in answers] == list(range(len(raw)))
            codes = [answer["body"].get("code") for answer in answers]
            assert codes == ["created", "exists", "done", None, "released", "exists"]
            assert answers[1]["body"]["order"]["state"] == "held"
            assert answers[3]["body"]["state"] == "released"
            assert answers[5]["body"]["order"]["state"] == "released"


async def test_a_retry_waits_for_its_original_where_a_gate_is_asked(
    redis_server: EmbeddedServer,
) -> None:
    turnstile = Turnstile()
    async with site_on(redis_server.url, gate=turnstile) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id) as talk:
            for _ in range(2):
                await talk.send("buy", key="slow", items=ITEMS)
            await turnstile.asked.acquire()
            # Another order overtakes both.
            assert (await talk.ask("buy", key="quick", items=ITEMS))["status"] == 201
            await turnstile.asked.acquire()
            assert turnstile.asked.locked(), "the retry did not wait for its original"
            turnstile.open.set()
            codes = [(await talk.hear())["body"]["code"] for _ in range(2)]
            assert codes == ["created", "exists"]


async def test_joining_and_leaving_keep_their_order(site: Site) -> None:
    sale = await site.open_sale(admission=Admission(mode="queue"))
    async with site.talk(sale.id) as talk:
        await talk.ask("join")
        for _ in range(10):
            for op in ("leave", "join", "join"):
                await talk.send(op)
            assert [(await talk.hear())["status"] for _ in range(3)] == [200, 201, 200]


# -- who it is ------------------------------------------------------------------------------------


async def test_a_hello_says_who_it_is(site: Site) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id, proof="") as talk:
        hello = await talk.ask("hello", token=token("ann"))
        assert (hello["status"], hello["body"]) == (200, {"code": "done", "buyer": "ann"})
        bought = await talk.ask("buy", key="k", items=ITEMS)
        assert bought["body"]["order"]["buyer"] == "ann"


async def test_what_follows_a_hello_waits_for_it(site: Site) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id, proof="") as talk:
        await talk.send("hello", token=token("ann"))
        await talk.send("buy", key="k", items=ITEMS)
        assert [(await talk.hear())["status"] for _ in range(2)] == [200, 201]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"op": "time"}, "unauthenticated"),
        ({"op": "hello", "token": "nonsense"}, "unauthenticated"),
        ({"op": "hello", "token": token("ann", -60)}, "token_expired"),
        ({"op": "hello", "token": "sk_" + "x" * 43}, "unauthenticated"),
        ({"op": "hello"}, "unauthenticated"),
    ],
)
async def test_nobody_is_told_so_and_shown_out(
    site: Site, first: dict[str, str], code: str
) -> None:
    sale = await site.open_sale()
    async with site.talk(sale.id, proof="") as talk:
        assert await talk.code(**first) == (401, code)
        assert await talk.ended() == 4401


async def test_a_hello_must_come_in_time(redis_server: EmbeddedServer) -> None:
    tables = {"server": {"read_timeout_s": 1.0}}
    async with site_on(redis_server.url, tables=tables) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id) as known, site.talk(sale.id, proof="") as unknown:
            assert await unknown.ended() == 4401
            assert await known.code("buy", key="k", items=ITEMS) == (201, "created")


async def test_a_token_ends_and_is_renewed(redis_server: EmbeddedServer) -> None:
    async with site_on(redis_server.url, tables=NO_LEEWAY) as site:
        sale = await site.open_sale()
        short = token("ann", 3)
        async with site.talk(sale.id, proof=short) as talk:
            assert await talk.code("buy", key="k", items=ITEMS) == (201, "created")
            answer = await talk.ask("buy", key="k", items=ITEMS)
            async with asyncio.timeout(60):
                while answer["status"] == 200:
                    await asyncio.sleep(0.1)
                    answer = await talk.ask("buy", key="k", items=ITEMS)
            assert (answer["status"], answer["body"]["code"]) == (401, "token_expired")
            over_http = await site.call(
                *("GET", f"/v1/sales/{sale.id}/orders/{'0' * 24}"),
                Authorization=f"Bearer {short}",
            )
            assert (over_http.http, over_http.json) == (401, answer["body"])
            # Another buyer can't take the socket over, nor somebody without a token.
            assert await talk.code("hello", token=token("bob")) == (403, "forbidden")
            assert await talk.code("hello", token=NONSENSE) == (401, "unauthenticated")
            assert await talk.code("time") == (401, "token_expired")
            assert await talk.code("hello", token=token("ann")) == (200, "done")
            assert await talk.code("buy", key="k", items=ITEMS) == (200, "exists")


async def test_others_orders_are_not_there(site: Site) -> None:
    sale = await site.open_sale()
    theirs = (await site.engine.reserve(sale.id, "bob", "k", {"a": 1})).order
    assert theirs is not None
    async with site.talk(sale.id) as talk:
        for op in ("result", "begin-payment", "release"):
            assert await talk.code(op, order=theirs.id) == (404, "unknown_order")
    kept = await site.engine.order(sale.id, theirs.id)
    assert kept == theirs


async def test_a_mall_may_say_who_it_is(redis_server: EmbeddedServer) -> None:
    asked = 0

    async def identify(request: web.Request) -> Caller:
        nonlocal asked
        asked += 1
        name = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not name:
            raise Problem(UNAUTHENTICATED)
        return Caller(name)

    async with site_on(redis_server.url, identify=identify) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id, proof="ann") as talk:
            for _ in range(3):
                bought = await talk.ask("buy", key="k", items=ITEMS)
                assert bought["body"]["order"]["buyer"] == "ann"
            assert asked == 1
            assert await talk.code("hello", token=BOB) == (403, "forbidden")
            assert await talk.code("hello", token=ANN) == (200, "done")
        async with site.talk(sale.id, proof="") as talk:
            assert (await talk.ask("hello", token=BOB))["body"]["buyer"] == "bob"
        no_upgrade = {"Upgrade": ""}
        assert await site.refused(sale.id, **no_upgrade) == (401, "unauthenticated")


# -- the handshake --------------------------------------------------------------------------------


async def test_what_is_no_handshake(site: Site) -> None:
    sale = (await site.open_sale()).id
    ann = token("ann")
    for headers in (
        {"Upgrade": "h2c"},
        {"Upgrade": ""},
        {"Sec-WebSocket-Version": "12"},
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Protocol": f"bearer, {ann}"},
    ):
        assert await site.refused(sale, ann, **headers) == (400, "invalid_input"), headers
    assert await site.refused("n!ne", ann) == (400, "invalid_input")
    assert await site.refused(sale, "nonsense") == (401, "unauthenticated")
    assert await site.refused(sale, token("ann", -60)) == (401, "token_expired")


async def test_an_api_key_is_no_buyer(redis_server: EmbeddedServer) -> None:
    key = f"sk_{'k' * 43}"
    digest = f"sha256:{sha256(key.encode()).hexdigest()}"
    keys = [{"name": "mall", "hash": digest, "scopes": ["backend", "admin", "metrics"]}]
    async with site_on(redis_server.url, tables={"keys": keys}) as site:
        sale = await site.open_sale()
        assert await site.refused(sale.id, key) == (403, "forbidden")
        headers = {"Seckill-Buyer": "ann"}
        assert await site.refused(sale.id, key, **headers) == (403, "forbidden")
        async with site.talk(sale.id, proof="") as talk:
            assert await talk.code("hello", token=key) == (403, "forbidden")
            assert await talk.ended() == 4401


async def test_pages_of_other_origins_stay_out(redis_server: EmbeddedServer) -> None:
    tables = {"server": {"cors_origins": ["https://shop.example"]}}
    async with site_on(redis_server.url, tables=tables) as site:
        sale = await site.open_sale()
        for origin in ("https://evil.example", "null", "http://shop.example", "https://x:y"):
            refused = await site.refused(sale.id, token("ann"), Origin=origin)
            assert refused == (403, "forbidden"), origin
        for origin in ("https://shop.example", site.base):
            async with site.talk(sale.id, Origin=origin) as talk:
                assert (await talk.ask("time"))["status"] == 200


async def test_a_process_has_only_so_many(redis_server: EmbeddedServer) -> None:
    async with site_on(redis_server.url, tables={"server": {"max_sockets": 2}}) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id, "ann"), site.talk(sale.id, proof="") as second:
            assert await site.refused(sale.id, token("cid")) == (503, "busy")
            await second.socket.close()
            async with asyncio.timeout(60):
                while site.sockets.count > 1:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.02)
            async with site.talk(sale.id, "cid") as talk:
                assert (await talk.ask("time"))["status"] == 200


async def test_a_buyer_has_only_so_many(redis_server: EmbeddedServer) -> None:
    tables = {"limits": {"buyer_per_s": 0, "buyer_sockets": 2}}
    async with site_on(redis_server.url, tables=tables) as site:
        sale = await site.open_sale()
        async with site.talk(sale.id) as first, site.talk(sale.id) as second:
            await first.ask("time")
            async with site.talk(sale.id, "bob"), site.talk(sale.id, proof="") as third:
                await third.ask("hello", token=token("ann"))
                assert await first.ended() == 4409
                assert (await second.ask("time"))["status"] == 200
                assert (await third.ask("time"))["status"] == 200
            async with site.talk(sale.id) as fourth:
                assert (await fourth.ask("time"))["status"] == 200


async def test_mounted_in_a_malls_own_application(redis_server: EmbeddedServer) -> None:
    settings = Settings.model_validate({"users": {"secrets": ["s" * 40]}})
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0)
    mall = web.Application()
    mall.add_subapp("/seckill", create_app(engine, settings))
    async with engine, serving(mall) as base, aiohttp.ClientSession() as client:
        sale = make_sale()
        await engine.create(sale)
        await engine.open(sale.id)
        url = f"{base}/seckill/v1/sales/{sale.id}/socket"
        async with client.ws_connect(url) as opened:
            talk = Talk(opened)
            assert await talk.code("hello", token=token("ann")) == (200, "done")
            assert await talk.code("buy", key="k", items=ITEMS) == (201, "created")
