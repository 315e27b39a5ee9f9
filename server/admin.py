"""The merchant's verbs: a sale's life, its stock, and its numbers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from seckill.admission import build_admission
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.order import Outcome
from seckill.sale import Sale, build_items, build_sale, show
from seckill.status import Status

from .batch import BATCH_BYTES_MAX
from .exchange import INTAKE, key_of, need, read, reply
from .ledger import check_new
from .operation import Operation
from .problems import ANSWERS, LEDGER_UNAVAILABLE, STORAGE_FULL, Problem, refusal
from .reply import Reply
from .wire_admin import (
    TIMEOUT_MS_MIN,
    PauseRequest,
    ReportDocument,
    SaleOutcomeDocument,
    SaleRequest,
    StockDocument,
    StockRequest,
    report_document,
    stock_document,
)

__all__ = ["ROUTES"]

_PLAIN: Final = msgspec.json.Decoder(dict[str, Any])
_PAUSE: Final = msgspec.json.Decoder(PauseRequest)
_STOCK: Final = msgspec.json.Decoder(StockRequest)
_A_TIME: Final = "2026-11-28T20:00:00+08:00"
_ON_SALE: Final = (Status.UNKNOWN_SALE, Status.UPGRADE_NEEDED, Status.FENCED)


@Operation(
    id="create_sale",
    zh="创建场次；可重复提交，内容不同则拒绝",
    who="admin",
    body=SaleRequest,
    answer=SaleOutcomeDocument,
    statuses=(Status.CREATED, Status.EXISTS, Status.CONFLICT, Status.UPGRADE_NEEDED),
    kinds=(STORAGE_FULL, LEDGER_UNAVAILABLE),
)
async def create(request: web.Request) -> web.Response:
    """Creates a sale, which sells nothing before it is opened. The same again changes nothing,
    and something else under the same id is refused: a sale's definition never changes."""
    await need(request, "admin")
    fields = await read(request, _PLAIN, bytes_max=BATCH_BYTES_MAX)
    sale = _sale(request.match_info["sale"], fields)
    intake = request.app[INTAKE]
    await check_new(intake.engine, intake.settings.ledger, sale.id)
    outcome = await intake.engine.create(sale)
    if outcome.status is Status.CONFLICT:
        # The title speaks of idempotency keys, which is not what is meant here.
        raise Problem(
            ANSWERS[Status.CONFLICT],
            "the sale exists with another definition, which can't change (its stock can: POST"
            " …/stock); choose another id",
        )
    return _answer(request, outcome)


@Operation(
    id="open_sale",
    zh="开放场次：到 opens_ms 起售",
    who="admin",
    answer=SaleOutcomeDocument,
    statuses=(Status.DONE, Status.ALREADY, Status.PAUSED, Status.CLOSED, *_ON_SALE),
    kinds=(STORAGE_FULL,),
)
async def open_sale(request: web.Request) -> web.Response:
    """Opens a created sale: it sells from ``opens_ms`` on."""
    engine, sale = await _asked(request)
    return _answer(request, await engine.open(sale))


@Operation(
    id="pause_sale",
    zh="暂停场次：不再接新单，已下的单仍可支付",
    who="admin",
    body=PauseRequest,
    bodiless=True,
    answer=SaleOutcomeDocument,
    statuses=(Status.DONE, Status.ALREADY, Status.NOT_OPEN, Status.CLOSED, *_ON_SALE),
)
async def pause(request: web.Request) -> web.Response:
    """Pauses a sale: no new orders, and held ones can still be paid."""
    engine, sale = await _asked(request)
    # The red button works without a word, too.
    reason = (await read(request, _PAUSE)).reason if request.body_exists else ""
    return _answer(request, await engine.pause(sale, reason))


@Operation(
    id="resume_sale",
    zh="恢复场次",
    who="admin",
    answer=SaleOutcomeDocument,
    statuses=(Status.DONE, Status.ALREADY, Status.NOT_OPEN, Status.CLOSED, *_ON_SALE),
)
async def resume(request: web.Request) -> web.Response:
    """Lets a paused sale sell again."""
    engine, sale = await _asked(request)
    return _answer(request, await engine.resume(sale))


@Operation(
    id="close_sale",
    zh="关闭场次：不可恢复；未付的单了结后结算",
    who="admin",
    answer=SaleOutcomeDocument,
    statuses=(Status.DONE, Status.ALREADY, *_ON_SALE),
)
async def close(request: web.Request) -> web.Response:
    """Closes a sale for good. It is settled once no unit is held."""
    engine, sale = await _asked(request)
    return _answer(request, await engine.close(sale))


@Operation(
    id="change_stock",
    zh="增减库存（Idempotency-Key 标识本次变更）",
    who="admin",
    keyed=True,
    body=StockRequest,
    answer=StockDocument,
    statuses=(
        Status.DONE,
        Status.ALREADY,
        Status.CONFLICT,
        Status.UNKNOWN_SKU,
        Status.CLOSED,
        Status.BELOW_COMMITTED,
        Status.TOO_MANY_UNITS,
        Status.STALE_DEFINITION,
        *_ON_SALE,
    ),
    kinds=(STORAGE_FULL,),
)
async def stock(request: web.Request) -> web.Response:
    """Adds units to a SKU, or takes some away, while the sale runs. Idempotency-Key names this
    change, so that repeating it changes nothing."""
    engine, sale = await _asked(request)
    key = key_of(request)
    wish = await read(request, _STOCK)
    now = await engine.add_stock(sale, wish.sku, wish.units, key=key)
    if not now.ok:
        return refusal(now.status)
    request.app[INTAKE].pages.changed()
    kind = ANSWERS[now.status]
    return reply(stock_document(kind.code, sale, wish.sku, now), kind.http, kind.code)


@Operation(
    id="report_sale",
    zh="场次报表：库存、订单数、成交额",
    who="admin",
    answer=ReportDocument,
    statuses=_ON_SALE,
)
async def report(request: web.Request) -> web.Response:
    """Shows a sale in numbers: one consistent picture of its stock and orders."""
    engine, sale = await _asked(request)
    return reply(report_document(await engine.sale(sale), await engine.snapshot(sale)))


async def _asked(request: web.Request) -> tuple[Engine, str]:
    await need(request, "admin")
    return request.app[INTAKE].engine, request.match_info["sale"]


def _answer(request: web.Request, outcome: Outcome) -> Reply:
    if not outcome.ok:
        return refusal(outcome.status)
    request.app[INTAKE].pages.changed()
    kind = ANSWERS[outcome.status]
    document = SaleOutcomeDocument(kind.code, request.match_info["sale"])
    return reply(document, kind.http, kind.code)


def _sale(sale: str, fields: dict[str, Any]) -> Sale:
    """The sale a body describes. Plain values go through the model and not through a typed decode,
    so that the messages are those of sale files. Raises InvalidInput."""
    if "id" in fields:
        raise InvalidInput("id", "is in the path", "leave it out of the body")
    fields = fields | {"id": sale}
    for name in ("opens_at", "ends_at"):
        if name in fields:
            fields[name] = _time(name, fields[name])
    if isinstance(admission := fields.get("admission"), dict):
        for name in ("joins_at", "draw_at"):
            if admission.get(name) is not None:
                admission[name] = _time(f"admission.{name}", admission[name])
    if admission is not None:
        fields["admission"] = build_admission(admission)
    if "items" in fields:
        fields["items"] = build_items(fields["items"])
    made = build_sale(fields)
    for name in ("hold_ms", "pay_ms"):
        if (ms := getattr(made, name)) < TIMEOUT_MS_MIN:
            remedy = "write milliseconds, at least 1000: 900000 is 15 minutes"
            raise InvalidInput(name, f"{ms} is less than a second", remedy)
    return made


def _time(name: str, value: object) -> datetime:
    try:
        found = msgspec.convert(value, datetime) if isinstance(value, str) else None
    except msgspec.ValidationError:
        found = None
    if found is None:
        raise InvalidInput(name, f"{show(value)} is not a time", f'write "{_A_TIME}"')
    if found.utcoffset() is None:
        text = found.isoformat()
        raise InvalidInput(name, f"{text} has no offset from UTC", f'write "{text}+08:00"')
    return found


_SALE: Final = "/v1/admin/sales/{sale}"

ROUTES: Final = (
    # Without a colon, so that the verbs below are not ids of sales.
    web.put("/v1/admin/sales/{sale:[^/:]+}", create),
    web.post(f"{_SALE}:open", open_sale),
    web.post(f"{_SALE}:pause", pause),
    web.post(f"{_SALE}:resume", resume),
    web.post(f"{_SALE}:close", close),
    web.post(f"{_SALE}/stock", stock),
    web.get(f"{_SALE}/report", report),
)
