"""A mall on aiohttp that mounts the intake: buyers order under /seckill, by the mall's own login.

export SECKILL_REDIS=redis://127.0.0.1:6379/0 MALL_SECRET=$(openssl rand -hex 32)
seckill sale create examples/evening-sale.toml --open --now
python examples/aiohttp_mall.py 8000
"""

from __future__ import annotations

import asyncio
import hmac
import os
import sqlite3
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from seckill import Engine, Event, SeckillError
from seckill.server import UNAUTHENTICATED, Caller, Problem, create_app

SALE = os.environ.get("SECKILL_SALE", "evening-2026-11-28")
SECRET = os.environ["MALL_SECRET"].encode()
MOVE_ORDER = """
INSERT INTO orders VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, state = excluded.state WHERE excluded.seq > seq
"""
ENGINE = web.AppKey("engine", Engine)


def sign(data: bytes) -> str:
    return hmac.new(SECRET, data, "sha256").hexdigest()


def buyer_of(request: web.Request) -> str:
    """The buyer of the mall's session cookie, or "". Stands for the sessions you have."""
    buyer, _, signature = request.cookies.get("session", "").partition(".")
    return buyer if hmac.compare_digest(signature, sign(buyer.encode())) else ""


async def identify(request: web.Request) -> Caller:
    """Tells the intake who asks. A buyer it is, never the mall itself: no scopes."""
    if buyer := buyer_of(request):
        return Caller(buyer=buyer)
    raise Problem(UNAUTHENTICATED, "log in first")


async def login(request: web.Request) -> web.Response:
    buyer = request.match_info["code"]  # Stands for WeChat's code2session and your members.
    response = web.Response(status=204)
    # SameSite, because the intake takes whoever has this cookie for the buyer.
    session = f"{buyer}.{sign(buyer.encode())}"
    response.set_cookie("session", session, httponly=True, samesite="Strict")
    return response


async def paid(request: web.Request) -> web.Response:
    # Stands for checking WeChat Pay's signature and decrypting the notice.
    signature = request.headers.get("Wechatpay-Signature", "")
    if not hmac.compare_digest(signature, sign(await request.read())):
        raise web.HTTPUnauthorized
    notice, engine = await request.json(), request.app[ENGINE]
    try:
        order = await engine.order(SALE, notice["out_trade_no"])
        if order is not None and order.amount_fen == notice["amount"]["total"]:
            outcome = await engine.confirm(SALE, order.id, notice["transaction_id"])
            # A payment that bought nothing (late, twice) leaves a refund_due event for the worker.
            return web.Response(status=503 if outcome.status.transient else 204)
    except SeckillError:
        return web.Response(status=503)  # WeChat sends it again.
    print("for a person:", notice["transaction_id"])
    return web.Response(status=204)


async def show(request: web.Request) -> web.Response:
    found = "SELECT state FROM orders WHERE id = ? AND buyer = ?"
    with database() as db:
        row = db.execute(found, (request.match_info["order"], buyer_of(request))).fetchone()
    if row is None:
        raise web.HTTPNotFound
    return web.json_response({"state": row[0]})


def database() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("MALL_DB", "mall.db"), timeout=10)
    db.execute("CREATE TABLE IF NOT EXISTS orders (id PRIMARY KEY, seq, state, buyer)")
    return db


def record(batch: list[Event]) -> None:
    with database() as db:  # Commits, or rolls back and raises.
        for event in batch:
            if order := event.order:
                db.execute(MOVE_ORDER, (order.id, event.seq, order.state, order.buyer))


async def work(engine: Engine) -> None:
    """Hands every order on, at least once; the event's number makes a repeat harmless. Processes of
    one group share the events."""
    while True:
        try:
            async for batch in engine.events(SALE, "mall"):
                await asyncio.to_thread(record, batch)
        except (SeckillError, sqlite3.Error) as error:
            print("events are read again in a second:", error)
            await asyncio.sleep(1)


async def working(mall: web.Application) -> AsyncIterator[None]:
    async with mall[ENGINE]:
        worker = asyncio.create_task(work(mall[ENGINE]))
        yield
        worker.cancel()
        await asyncio.wait({worker})


def create_mall() -> web.Application:
    mall = web.Application()
    mall[ENGINE] = engine = Engine(os.environ["SECKILL_REDIS"])
    mall.cleanup_ctx.append(working)
    mall.add_subapp("/seckill", create_app(engine, identify=identify))
    mall.add_routes(
        [
            web.post("/login/{code}", login),
            web.post("/wxpay/notify", paid),
            web.get("/orders/{order}", show),
        ]
    )
    return mall


if __name__ == "__main__":
    web.run_app(create_mall(), host="127.0.0.1", port=int(sys.argv[1]))
