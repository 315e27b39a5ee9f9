"""A mall on Django, in one file: views call the engine from whatever thread they run in.

export SECKILL_REDIS=redis://127.0.0.1:6379/0 MALL_SECRET=$(openssl rand -hex 32)
seckill sale create examples/evening-sale.toml --open --now
gunicorn --chdir examples --workers 2 --threads 32 django_mall:application   # takes orders
python examples/django_mall.py                                    # hands them to the mall
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.db import connection, transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from seckill import InvalidInput, Outcome, SeckillError, Status
from seckill.sync import Engine

SALE = os.environ.get("SECKILL_SALE", "evening-2026-11-28")
SECRET = os.environ["MALL_SECRET"]
ORDERS = "CREATE TABLE IF NOT EXISTS orders (id varchar(26) PRIMARY KEY, seq, state, buyer)"
MOVE_ORDER = """
INSERT INTO orders VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, state = excluded.state WHERE excluded.seq > seq
"""

settings.configure(
    SECRET_KEY=SECRET,
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.SeckillErrors"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("MALL_DB", "mall.db"),
            "OPTIONS": {"timeout": 10},
        }
    },
)

# In a project of yours: in settings.py or beside the views. It starts with the first call in each
# worker process, so it may be made before gunicorn or uWSGI forks.
engine = Engine(os.environ["SECKILL_REDIS"])


class SeckillErrors:
    """Overloaded, Redis away, outcome unknown: the client repeats the identical request."""

    def __init__(self, get_response: Callable[[WSGIRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: WSGIRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: WSGIRequest, error: Exception) -> HttpResponse | None:
        if isinstance(error, InvalidInput):
            return JsonResponse({"error": str(error)}, status=400)
        if isinstance(error, SeckillError):
            busy = {"error": "busy, please repeat"}
            return JsonResponse(busy, status=503, headers={"Retry-After": "1"})
        return None


def buyer_of(request: WSGIRequest) -> str:
    return request.get_signed_cookie("buyer", default="")  # Stands for request.user.


def answer(outcome: Outcome) -> HttpResponse:
    order = outcome.order
    shown = order and {"id": order.id, "state": order.state, "pay_before_ms": order.deadline_ms}
    http = 201 if outcome.status is Status.CREATED else 200 if outcome.ok else 409
    return JsonResponse({"status": outcome.status.name, "order": shown}, status=http)


@require_POST
def login(request: WSGIRequest, code: str) -> HttpResponse:
    response = HttpResponse(status=204)
    # Stands for WeChat's code2session and your members.
    response.set_signed_cookie("buyer", code, httponly=True)
    return response


@require_POST
def buy(request: WSGIRequest, sku: str) -> HttpResponse:
    if not (buyer := buyer_of(request)):
        return HttpResponse(status=401)
    key = request.headers.get("Idempotency-Key", "")  # The page makes one up for each wish.
    return answer(engine.reserve(SALE, buyer, key, {sku: 1}))


@require_POST
def pay(request: WSGIRequest, order: str) -> HttpResponse:
    if not (buyer := buyer_of(request)):
        return HttpResponse(status=401)
    # Done? Then make the prepay at WeChat, with the order's id as out_trade_no.
    return answer(engine.begin_payment(SALE, order, buyer=buyer))


@require_POST
def paid(request: WSGIRequest) -> HttpResponse:
    # Stands for checking WeChat Pay's signature and decrypting the notice.
    sign = hmac.new(SECRET.encode(), request.body, "sha256").hexdigest()
    if not hmac.compare_digest(sign, request.headers.get("Wechatpay-Signature", "")):
        return HttpResponse(status=401)
    notice = json.loads(request.body)
    order = engine.order(SALE, notice["out_trade_no"])
    if order is None or order.amount_fen != notice["amount"]["total"]:
        print("for a person:", notice["transaction_id"])
        return HttpResponse(status=204)
    outcome = engine.confirm(SALE, order.id, notice["transaction_id"])
    # A payment that bought nothing (late, twice) leaves a refund_due event for the worker.
    return HttpResponse(status=503 if outcome.status.transient else 204)


def show(request: WSGIRequest, order: str) -> HttpResponse:
    with connection.cursor() as db:
        db.execute(ORDERS)
        db.execute(
            "SELECT state FROM orders WHERE id = %s AND buyer = %s", [order, buyer_of(request)]
        )
        row = db.fetchone()
    return JsonResponse({"state": row[0]}) if row else HttpResponse(status=404)


urlpatterns = [
    path("login/<code>", login),
    path("buy/<sku>", buy),
    path("orders/<order>", show),
    path("orders/<order>/pay", pay),
    path("wxpay/notify", paid),
]


def work() -> None:
    """Hands every order on, at least once; the event's number makes a repeat harmless. In a project
    of yours: the `handle` of a management command."""
    with connection.cursor() as db:
        db.execute(ORDERS)
        for batch in engine.events(SALE, "mall"):
            with transaction.atomic():  # Over before the next batch is asked for.
                for event in batch:
                    if order := event.order:
                        db.execute(MOVE_ORDER, [order.id, event.seq, order.state, order.buyer])


django.setup()
application = WSGIHandler()

if __name__ == "__main__":
    work()
