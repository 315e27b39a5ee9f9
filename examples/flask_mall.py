"""A mall on Flask: any thread calls the engine, and the calls of all threads travel in batches.

export SECKILL_REDIS=redis://127.0.0.1:6379/0 MALL_SECRET=$(openssl rand -hex 32)
seckill sale create examples/evening-sale.toml --open --now
gunicorn --chdir examples --workers 2 --threads 32 flask_mall:app    # takes orders
python examples/flask_mall.py                                        # hands them to the mall
"""

from __future__ import annotations

import hmac
import os
import sqlite3

from flask import Flask, Response, abort, jsonify, request, session

from seckill import InvalidInput, Outcome, SeckillError, Status
from seckill.sync import Engine

SALE = os.environ.get("SECKILL_SALE", "evening-2026-11-28")
SECRET = os.environ["MALL_SECRET"]
MOVE_ORDER = """
INSERT INTO orders VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, state = excluded.state WHERE excluded.seq > seq
"""

# It starts with the first call in each worker process, so it may stand here, before gunicorn forks.
engine = Engine(os.environ["SECKILL_REDIS"])
app = Flask(__name__)
app.secret_key = SECRET


def database() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("MALL_DB", "mall.db"), timeout=10)
    db.execute("CREATE TABLE IF NOT EXISTS orders (id PRIMARY KEY, seq, state, buyer)")
    return db


def buyer() -> str:
    return session.get("buyer") or abort(401)


def answer(outcome: Outcome) -> tuple[Response, int]:
    order = outcome.order
    shown = order and {"id": order.id, "state": order.state, "pay_before_ms": order.deadline_ms}
    http = 201 if outcome.status is Status.CREATED else 200 if outcome.ok else 409
    return jsonify(status=outcome.status.name, order=shown), http


@app.errorhandler(SeckillError)
def not_now(error: SeckillError) -> tuple[dict[str, str], int, dict[str, str]]:
    if isinstance(error, InvalidInput):
        return {"error": str(error)}, 400, {}
    # Overloaded, Redis away, outcome unknown: the client repeats the identical request.
    return {"error": "busy, please repeat"}, 503, {"Retry-After": "1"}


@app.post("/login/<code>")
def login(code: str) -> tuple[str, int]:
    session["buyer"] = code  # Stands for WeChat's code2session and your members.
    return "", 204


@app.post("/buy/<sku>")
def buy(sku: str) -> tuple[Response, int]:
    key = request.headers.get("Idempotency-Key", "")  # The page makes one up for each wish.
    return answer(engine.reserve(SALE, buyer(), key, {sku: 1}))


@app.post("/orders/<order>/pay")
def pay(order: str) -> tuple[Response, int]:
    # Done? Then make the prepay at WeChat, with the order's id as out_trade_no.
    return answer(engine.begin_payment(SALE, order, buyer=buyer()))


@app.post("/wxpay/notify")
def paid() -> tuple[str, int]:
    # Stands for checking WeChat Pay's signature and decrypting the notice.
    sign = hmac.new(SECRET.encode(), request.get_data(), "sha256").hexdigest()
    if not hmac.compare_digest(sign, request.headers.get("Wechatpay-Signature", "")):
        abort(401)
    notice = request.json
    order = engine.order(SALE, notice["out_trade_no"])
    if order is None or order.amount_fen != notice["amount"]["total"]:
        app.logger.error("for a person: %s", notice["transaction_id"])
        return "", 204
    outcome = engine.confirm(SALE, order.id, notice["transaction_id"])
    # A payment that bought nothing (late, twice) leaves a refund_due event for the worker.
    return "", 503 if outcome.status.transient else 204


@app.get("/orders/<order>")
def show(order: str) -> dict[str, str]:
    found = "SELECT state FROM orders WHERE id = ? AND buyer = ?"
    row = database().execute(found, (order, buyer())).fetchone() or abort(404)
    return {"state": row[0]}


def work() -> None:
    """Hands every order on, at least once; the event's number makes a repeat harmless."""
    db = database()
    for batch in engine.events(SALE, "mall"):
        with db:  # Committed before the next batch is asked for, which acknowledges this one.
            for event in batch:
                if order := event.order:
                    row = (order.id, event.seq, order.state, order.buyer)
                    db.execute(MOVE_ORDER, row)


if __name__ == "__main__":
    work()
