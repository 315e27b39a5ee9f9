"""The merchant's verbs over HTTP."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
import pytest

from seckill.errors import InvalidInput
from seckill.sale import Item, Sale, build_items, build_sale
from seckill.server.wire_admin import ItemRequest, SaleRequest
from tests.support import HOUR_MS, new_sale_id, travel
from tests.web.intake import Answer, Intake

ITEM = {"sku": "MUG", "title": "青瓷马克杯", "price_fen": 4_900, "total": 10}
SALE: dict[str, Any] = {
    "title": "今晚八点",
    "opens_at": "2020-01-01T20:00:00+08:00",
    "ends_at": "2090-01-01T22:00:00+08:00",
    "items": [ITEM],
}


async def put(intake: Intake, sale: str, body: Any) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    return await intake.call("PUT", f"/v1/admin/sales/{sale}", data=data, headers=headers)


async def test_a_sale_from_beginning_to_end(intake: Intake) -> None:
    sale = new_sale_id()
    path = f"/v1/admin/sales/{sale}"

    async def verb(name: str, body: Any = None) -> tuple[int, str]:
        answer = await intake.post(f"{path}:{name}", body)
        if answer.http < 300:
            assert answer.json == {"code": answer.code, "sale": sale}
        return answer.http, answer.code

    assert await verb("open") == (404, "unknown_sale")
    created = await put(intake, sale, SALE)
    assert (created.http, created.json) == (201, {"code": "created", "sale": sale})
    again = await put(intake, sale, SALE)
    assert (again.http, again.json) == (200, {"code": "exists", "sale": sale})
    other = await put(intake, sale, SALE | {"title": "明晚八点"})
    assert other.is_problem(409, "conflict")
    assert "choose another id" in other.json["detail"]

    assert await verb("pause", {}) == (409, "not_open")
    assert await verb("open") == (200, "done")
    assert await verb("open") == (200, "already")
    assert (await intake.reserve(sale, MUG=1)).http == 201
    assert await verb("pause", {"reason": "查一下库存"}) == (200, "done")
    assert (await intake.reserve(sale, "b2", MUG=1)).is_problem(409, "paused")
    report = (await intake.get(f"{path}/report")).json
    assert (report["phase"], report["reason"]) == ("paused", "查一下库存")
    assert await verb("open") == (409, "paused")
    assert await verb("resume") == (200, "done")
    assert await verb("close") == (200, "done")
    assert await verb("close") == (200, "already")
    assert await verb("resume") == (409, "closed")


async def test_what_was_done_shows_at_once(intake: Intake) -> None:
    """Through this intake: others look again within a second."""
    sale = new_sale_id()
    assert (await intake.get(f"/v1/sales/{sale}")).http == 404
    await put(intake, sale, SALE)

    async def phase() -> Any:
        return (await intake.get(f"/v1/sales/{sale}")).json["phase"]

    assert await phase() == "created"
    listed = (await intake.get("/v1/sales")).json["sales"]
    assert sale in [entry["id"] for entry in listed]
    await intake.post(f"/v1/admin/sales/{sale}:open")
    assert await phase() == "selling"
    await intake.post(f"/v1/admin/sales/{sale}:pause", {"reason": ""})
    assert await phase() == "paused"


async def test_the_definition_is_the_body(intake: Intake) -> None:
    sale = new_sale_id()
    item = ITEM | {"list_price_fen": 9_900, "list_price_basis": "近30天最低成交价"}
    fields = SALE | {
        "items": [item | {"limit_per_buyer": 0}, ITEM | {"sku": "POT"}],
        "hold_ms": 1_000,
        "pay_ms": 2_000,
        "limit_per_order": 3,
        "limit_per_buyer": 4,
        "max_lapsed": 5,
    }
    assert (await put(intake, sale, fields)).http == 201
    made = await intake.engine.sale(sale)
    items = build_items(fields["items"])
    times = {name: getattr(made, name) for name in ("opens_at", "ends_at")}
    assert made == build_sale(fields | times | {"id": sale, "items": items})
    assert made.opens_at.isoformat() == "2020-01-01T12:00:00+00:00"


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"id": "x"}, "id", "is in the path"),
    ({"tittle": "x"}, "tittle", "did you mean title?"),
    ({"title": " "}, "title", "is empty"),
    ({"title": "a\u202eb"}, "title", "U+202E"),
    ({"title": None}, "title", "is None, not text"),
    ({"opens_at": "tonight"}, "opens_at", "'tonight' is not a time"),
    ({"opens_at": 1795867200}, "opens_at", "is not a time"),
    ({"opens_at": "2026-11-28T20:00:00"}, "opens_at", "+08:00"),
    ({"opens_at": "1999-11-28T20:00:00+08:00"}, "opens_at", "is out of range"),
    ({"ends_at": "2019-11-28T20:00:00+08:00"}, "ends_at", "is not after opens_at"),
    ({"items": []}, "items", "has 0 items"),
    ({"items": {}}, "items", "not a list"),
    ({"items": [1]}, "items[0]", "not a table"),
    ({"items": [ITEM, ITEM]}, "items[1].sku", "is already the SKU of items[0]"),
    ({"items": [ITEM | {"sku": "a b"}]}, "items[0].sku", "holds ' '"),
    ({"items": [ITEM | {"price_fen": "49.00"}]}, "items[0].price_fen", "not a whole number"),
    ({"items": [ITEM | {"price_fen": 49.0}]}, "items[0].price_fen", "not a whole number"),
    ({"items": [ITEM | {"price_fen": -1}]}, "items[0].price_fen", "is out of range"),
    ({"items": [ITEM | {"total": True}]}, "items[0].total", "not a whole number"),
    ({"items": [ITEM | {"list_price_fen": 9_900}]}, "items[0].list_price_basis", "is missing"),
    ({"items": [{"sku": "MUG"}]}, "items[0].title", "is missing"),
    ({"hold_ms": 900}, "hold_ms", "is less than a second"),
    ({"pay_ms": 10**12}, "pay_ms", "is out of range"),
    ({"max_lapsed": -1}, "max_lapsed", "is out of range"),
]


@pytest.mark.parametrize(("fields", "field", "words"), BAD)
async def test_a_bad_sale_is_explained(
    intake: Intake, fields: dict[str, Any], field: str, words: str
) -> None:
    sale = new_sale_id()
    answer = await put(intake, sale, SALE | fields)
    assert answer.is_problem(400, "invalid_input")
    assert answer.json["field"] == field
    assert words in answer.json["detail"]
    assert sale not in await intake.engine.sales()


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"{", b"", b'{"title":"\xff"}'])
async def test_what_is_no_sale(intake: Intake, body: bytes) -> None:
    assert (await put(intake, new_sale_id(), body)).http == 400
    assert (await put(intake, "no%20id", SALE)).is_problem(400, "invalid_input")


def test_the_request_is_the_model() -> None:
    """Field by field, with the same defaults, and what both ends of its ranges say is true."""

    def shape(model: type[msgspec.Struct], *without: str) -> list[tuple[str, Any]]:
        fields = msgspec.structs.fields(model)
        return [(field.name, field.default) for field in fields if field.name not in without]

    assert shape(SaleRequest) == shape(Sale, "id")
    assert shape(ItemRequest) == shape(Item)
    for request, model in ((SaleRequest, Sale), (ItemRequest, Item)):
        schema = msgspec.json.schema(request)
        described = schema["$defs"][request.__name__]["properties"]
        for name, field in described.items():
            numbers = field if "minimum" in field else field.get("anyOf", [{}])[0]
            if "minimum" not in numbers:
                continue
            low, high = numbers["minimum"], numbers["maximum"]
            for value in (low, high):
                build(model, name, value)
            for value in (high + 1, -1):
                with pytest.raises(InvalidInput):
                    build(model, name, value)


def build(model: type, name: str, value: int) -> None:
    item = ITEM | {name: value} if model is Item else ITEM
    if name == "list_price_fen":
        item = item | {"list_price_basis": "x", "price_fen": 0}
    fields = SALE | {"id": "x", "items": build_items([item])}
    for at in ("opens_at", "ends_at"):
        fields[at] = datetime.fromisoformat(fields[at])
    build_sale(fields | ({name: value} if model is Sale else {}))


async def test_stock(intake: Intake) -> None:
    sale = new_sale_id()
    await put(intake, sale, SALE)
    path = f"/v1/admin/sales/{sale}/stock"

    async def add(units: Any, key: str | None = "k1", sku: str = "MUG") -> Answer:
        return await intake.post(path, {"sku": sku, "units": units}, key=key)

    answer = await add(5)
    assert answer.json == {
        "code": "done",
        "sale": sale,
        "sku": "MUG",
        "available": 15,
        "total": 15,
    }
    assert (await add(5)).json == answer.json | {"code": "already"}
    assert (await add(6)).is_problem(409, "conflict")
    assert (await add(-4, "k2")).json["total"] == 11
    assert (await add(-12, "k3")).is_problem(409, "below_committed")
    assert (await add(1_000_000_000, "k4")).is_problem(422, "too_many_units")
    assert (await add(1, "k5", "POT")).is_problem(422, "unknown_sku")
    assert (await add(1, None)).is_problem(400, "idempotency_key_required")
    assert (await add(1, "a b")).json["field"] == "Idempotency-Key"
    for units in (0, 10**9 + 1, -(10**9) - 1, "1", 1.5, None):
        refused = await add(units, "k6")
        assert refused.is_problem(400, "invalid_input")
        assert refused.json["field"] == "units"
    await intake.post(f"/v1/admin/sales/{sale}:close")
    assert (await add(1, "k7")).is_problem(409, "closed")
    unknown = await intake.post("/v1/admin/sales/none/stock", {"sku": "a", "units": 1}, key="k")
    assert unknown.is_problem(404, "unknown_sale")


async def test_a_pause_must_be_readable(intake: Intake) -> None:
    sale = await intake.open_sale()
    for reason in ("a" * 201, "a\nb", 7):
        answer = await intake.post(f"/v1/admin/sales/{sale.id}:pause", {"reason": reason})
        assert answer.is_problem(400, "invalid_input")
        assert answer.json["field"] == "reason"
    assert (await intake.engine.snapshot(sale.id)).state == "open"


async def test_the_report(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 10, "b": 5})
    orders = [
        (await intake.reserve(sale.id, f"b{n}", a=2, b=1)).json["order"]["id"] for n in range(3)
    ]
    at = f"/v1/sales/{sale.id}/orders"
    for order in orders[:2]:
        await intake.post(f"{at}/{order}/confirm", {"payment": f"pay-{order}"})
    refund = {"refund": "r-1", "return_units": True, "return_limit": True}
    await intake.post(f"{at}/{orders[0]}/refund", refund)
    report = (await intake.get(f"/v1/admin/sales/{sale.id}/report")).json
    assert abs(report.pop("at_ms") - await intake.engine.now_ms()) < 2_000
    items = report.pop("items")
    assert report == {
        "id": sale.id,
        "title": sale.title,
        "phase": "selling",
        "reason": "",
        "opens_ms": sale.opens_ms,
        "ends_ms": sale.ends_ms,
        "seq": 8,
        "orders": 3,
        "buyers": 3,
        "available": 9,
        "held": 3,
        "confirmed": 3,
        "total": 15,
        "confirmed_fen": 3 * 9_900,
    }
    assert items[0] == {
        "sku": "a",
        "title": "商品 a",
        "price_fen": 9_900,
        "available": 6,
        "held": 2,
        "confirmed": 2,
        "total": 10,
        "confirmed_fen": 2 * 9_900,
    }
    await travel(intake.engine, sale.id, HOUR_MS)
    report = (await intake.get(f"/v1/admin/sales/{sale.id}/report")).json
    assert report["phase"] == "ended"
    assert (await intake.get("/v1/admin/sales/none/report")).is_problem(404, "unknown_sale")


async def test_an_escaped_colon_is_a_colon(intake: Intake) -> None:
    """Some clients write every colon of a path as %3A."""
    sale = await intake.open_sale()
    assert (await intake.post(f"/v1/admin/sales/{sale.id}%3Aclose")).code == "done"
    assert (await intake.call("PUT", f"/v1/admin/sales/{sale.id}:close")).http == 405


async def test_a_pause_needs_no_words(intake: Intake) -> None:
    """The red button by hand: curl -X POST …:pause."""
    sale = await intake.open_sale()
    answer = await intake.call("POST", f"/v1/admin/sales/{sale.id}:pause")
    assert answer.http == 200
    assert (await intake.engine.snapshot(sale.id)).state == "paused"
