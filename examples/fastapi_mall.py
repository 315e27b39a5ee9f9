"""A mall on FastAPI: on asyncio, so it awaits the engine itself. Each process hands on events, too.

export SECKILL_REDIS=redis://127.0.0.1:6379/0 MALL_SECRET=$(openssl rand -hex 32)
seckill sale create examples/evening-sale.toml --open --now
uvicorn --app-dir examples --workers 2 fastapi_mall:app
"""

from __future__ import annotations

import asyncio
import hmac
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from seckill import Engine, Event, InvalidInput, Outcome, SeckillError, Status

SALE = os.environ.get("SECKILL_SALE", "evening-2026-11-28")
SECRET = os.environ["MALL_SECRET"]
MOVE_ORDER = """
INSERT INTO orders VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, state = excluded.state WHERE excluded.seq > seq
"""
engine = Engine(os.environ["SECKILL_REDIS"])


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    async with engine:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()
        await asyncio.wait({worker})


app = FastAPI(lifespan=running)


def buyer_of(authorization: Annotated[str, Header()] = "") -> str:
    try:
        return str(jwt.decode(authorization.removeprefix("Bearer "), SECRET, ["HS256"])["sub"])
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None


Buyer = Annotated[str, Depends(buyer_of)]


def answer(outcome: Outcome) -> JSONResponse:
    order = outcome.order
    shown = order and {"id": order.id, "state": order.state, "pay_before_ms": order.deadline_ms}
    http = 201 if outcome.status is Status.CREATED else 200 if outcome.ok else 409
    return JSONResponse({"status": outcome.status.name, "order": shown}, http)


@app.exception_handler(SeckillError)
async def not_now(request: Request, error: SeckillError) -> JSONResponse:
    if isinstance(error, InvalidInput):
        return JSONResponse({"error": str(error)}, 400)
    # Overloaded, Redis away, outcome unknown: the client repeats the identical request.
    return JSONResponse({"error": "busy, please repeat"}, 503, {"Retry-After": "1"})


@app.post("/login/{code}")
async def login(code: str) -> dict[str, str]:
    # Stands for WeChat's code2session and your members.
    claims = {"sub": code, "exp": int(time.time()) + 7200}
    return {"token": jwt.encode(claims, SECRET, "HS256")}


@app.post("/buy/{sku}")
async def buy(sku: str, buyer: Buyer, idempotency_key: Annotated[str, Header()]) -> JSONResponse:
    # The page makes up a new key for each wish, and sends the same with each retry.
    return answer(await engine.reserve(SALE, buyer, idempotency_key, {sku: 1}))


@app.post("/orders/{order}/pay")
async def pay(order: str, buyer: Buyer) -> JSONResponse:
    # Done? Then make the prepay at WeChat, with the order's id as out_trade_no.
    return answer(await engine.begin_payment(SALE, order, buyer=buyer))


@app.post("/wxpay/notify")
async def paid(request: Request) -> Response:
    # Stands for checking WeChat Pay's signature and decrypting the notice.
    sign = hmac.new(SECRET.encode(), await request.body(), "sha256").hexdigest()
    if not hmac.compare_digest(sign, request.headers.get("Wechatpay-Signature", "")):
        raise HTTPException(401)
    notice = await request.json()
    order = await engine.order(SALE, notice["out_trade_no"])
    if order is None or order.amount_fen != notice["amount"]["total"]:
        print("for a person:", notice["transaction_id"])
        return Response(status_code=204)
    outcome = await engine.confirm(SALE, order.id, notice["transaction_id"])
    # A payment that bought nothing (late, twice) leaves a refund_due event for the worker.
    return Response(status_code=503 if outcome.status.transient else 204)


@app.get("/orders/{order}")
def show(order: str, buyer: Buyer) -> dict[str, str]:
    found = "SELECT state FROM orders WHERE id = ? AND buyer = ?"
    with database() as db:
        row = db.execute(found, (order, buyer)).fetchone()
    if row is None:
        raise HTTPException(404)
    return {"state": row[0]}


def database() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("MALL_DB", "mall.db"), timeout=10)
    db.execute("CREATE TABLE IF NOT EXISTS orders (id PRIMARY KEY, seq, state, buyer)")
    return db


def record(batch: list[Event]) -> None:
    with database() as db:  # Commits, or rolls back and raises.
        for event in batch:
            if order := event.order:
                db.execute(MOVE_ORDER, (order.id, event.seq, order.state, order.buyer))


async def work() -> None:
    """Hands every order on, at least once; the event's number makes a repeat harmless. Processes of
    one group share the events."""
    while True:
        try:
            async for batch in engine.events(SALE, "mall"):
                await asyncio.to_thread(record, batch)
        except (SeckillError, sqlite3.Error) as error:
            print("events are read again in a second:", error)
            await asyncio.sleep(1)
