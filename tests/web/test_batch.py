"""Many buyers in one request: each is answered as if he had come alone."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from typing import Any

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import Overloaded, ScriptFailed
from seckill.order import Outcome
from seckill.status import Status
from tests.web.intake import Answer, Intake, intake_on


def wish(buyer: str, key: str = "k1", /, attrs: str = "", **items: int) -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": n} for sku, n in (items or {"a": 1}).items()]
    return {"buyer": buyer, "key": key, "items": lines} | ({"attrs": attrs} if attrs else {})


async def send(intake: Intake, sale: str, *orders: Any) -> Answer:
    return await intake.post(f"/v1/sales/{sale}/orders:batch", {"orders": list(orders)})


async def codes(intake: Intake, sale: str, *orders: Any) -> list[tuple[int, str]]:
    answer = await send(intake, sale, *orders)
    assert answer.http == 200, answer.body
    return [(one["status"], one["code"]) for one in answer.json["answers"]]


async def test_every_order_is_answered_in_its_place(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 3, "b": 1})
    answer = await send(
        intake, sale.id, wish("b1", a=2, b=1), wish("b2", b=1), wish("b3", attrs="x"), wish("b4")
    )
    assert answer.http == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    first, second, third, fourth = answer.json["answers"]
    assert second == {"status": 409, "code": "sold_out"}
    assert fourth == {"status": 409, "code": "sold_out"}
    for one, buyer in ((first, "b1"), (third, "b3")):
        assert (one["status"], one["code"]) == (201, "created")
        path = f"/v1/sales/{sale.id}/orders/{one['order']['id']}"
        assert (await intake.get(path, buyer)).json == one["order"]
    assert first["order"]["items"] == [{"sku": "a", "quantity": 2}, {"sku": "b", "quantity": 1}]


async def test_a_retry_finds_the_same_orders(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 100})
    orders = [wish(f"b{n}") for n in range(50)]
    first = await send(intake, sale.id, *orders)
    again = await send(intake, sale.id, *orders)
    assert [one["code"] for one in first.json["answers"]] == ["created"] * 50
    assert [one["code"] for one in again.json["answers"]] == ["exists"] * 50
    assert [one["order"] for one in first.json["answers"]] == [
        one["order"] for one in again.json["answers"]
    ]
    # And the single order of the same key is that order, too.
    single = await intake.reserve(sale.id, "b7")
    assert (single.code, single.json["order"]) == ("exists", first.json["answers"][7]["order"])
    assert (await intake.engine.snapshot(sale.id)).orders == 50


async def test_lines_of_one_sku_are_added_up(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 10, "b": 10})
    line = {"sku": "a", "quantity": 2}
    order = wish("b1") | {"items": [line, {"sku": "b", "quantity": 1}, line]}
    answer = (await send(intake, sale.id, order)).json["answers"][0]
    assert answer["order"]["items"] == [{"sku": "a", "quantity": 4}, {"sku": "b", "quantity": 1}]
    assert (await intake.engine.snapshot(sale.id)).stock["a"].held == 4


BROKEN: list[tuple[Any, str, str | None]] = [
    (None, "invalid_input", "body"),
    ([], "invalid_input", "body"),
    ({}, "invalid_input", "buyer"),
    (wish("b") | {"other": 1}, "invalid_input", "other"),
    (wish(""), "invalid_input", "buyer"),
    (wish("b" * 65), "invalid_input", "buyer"),
    (wish("with space"), "invalid_input", "buyer"),
    (wish("b", ""), "invalid_input", "key"),
    (wish("b", "k|1"), "invalid_input", "key"),
    (wish("b") | {"key": 7}, "invalid_input", "key"),
    (wish("b") | {"items": []}, "invalid_input", "items"),
    (wish("b", a=0), "invalid_input", "items[0].quantity"),
    (wish("b", a=10**30), "invalid_input", "items[0].quantity"),
    (wish("b", attrs="地" * 171), "invalid_input", "attrs"),
    (wish("b", **{f"s{n}": 1 for n in range(51)}), "invalid_input", "items"),
    (wish("b", nosuch=1), "unknown_sku", None),
]


@pytest.mark.parametrize(("broken", "code", "field"), BROKEN)
async def test_a_broken_order_stands_alone(
    intake: Intake, broken: Any, code: str, field: str | None
) -> None:
    sale = await intake.open_sale({"a": 10})
    answer = await send(intake, sale.id, wish("b1"), broken, wish("b2"))
    first, second, third = answer.json["answers"]
    assert (first["code"], third["code"]) == ("created", "created")
    assert (second["code"], second.get("field")) == (code, field)
    assert second["status"] == (400 if field else 422)
    assert bool(field) == ("detail" in second)
    assert (await intake.engine.snapshot(sale.id)).orders == 2


@pytest.mark.parametrize(
    "text",
    [
        b'"\xff"',
        b'"\xed\xa0\x80"',
        rb'"\ud800"',
        b"[" * 5_000 + b"]" * 5_000,
    ],
)
async def test_broken_text_stands_alone(intake: Intake, text: bytes) -> None:
    sale = await intake.open_sale({"a": 10})
    good = json.dumps(wish("b1")).encode()
    bad = good.replace(b'"b1"', text)
    body = b'{"orders":[' + good + b"," + bad + b"]}"
    answer = await intake.post(f"/v1/sales/{sale.id}/orders:batch", body)
    if answer.http == 200:
        assert [one["status"] for one in answer.json["answers"]] == [201, 400]
    else:
        assert answer.http == 400
        assert (await intake.engine.snapshot(sale.id)).orders == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"[]", "invalid_input"),
        (b"{}", "invalid_input"),
        (b'{"orders":[]}', "invalid_input"),
        (b'{"orders":{}}', "invalid_input"),
        (b'{"orders":[1],"more":1}', "invalid_input"),
        (b'{"orders":[' + b"1," * 1_000 + b"1]}", "invalid_input"),
        (b'{"orders":[{]}', "malformed_json"),
    ],
)
async def test_what_is_no_batch(intake: Intake, body: bytes, code: str) -> None:
    sale = await intake.open_sale({"a": 10})
    answer = await intake.post(f"/v1/sales/{sale.id}/orders:batch", body)
    assert answer.is_problem(400, code)


async def test_a_whole_thousand(intake: Intake) -> None:
    """With the longest of everything, far beyond what a single order may have."""
    sale = await intake.open_sale({"a": 500})
    orders = [wish(f"{n:064}", f"{n:064}", attrs="x" * 512) for n in range(1_000)]
    assert len(json.dumps({"orders": orders})) > 700_000
    answers = await codes(intake, sale.id, *orders)
    assert (answers.count((201, "created")), answers.count((409, "sold_out"))) == (500, 500)
    body = BytesIO(json.dumps({"orders": orders}).encode() + b" " * 1024 * 1024)
    headers = {"Content-Type": "application/json"}
    path = f"/v1/sales/{sale.id}/orders:batch"
    answer = await intake.call("POST", path, data=body, headers=headers)
    assert answer.is_problem(413, "body_too_large")


async def test_no_such_sale(intake: Intake) -> None:
    assert await codes(intake, "no-such", wish("b1"), wish("b2")) == [(404, "unknown_sale")] * 2
    assert (await send(intake, "no%21such", wish("b1"))).is_problem(400, "invalid_input")


async def test_what_the_engine_raises_for_one(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def reserve_many(*_: Any) -> list[Any]:
        bug = ScriptFailed("secret")
        return [Overloaded(1_000), bug, Outcome(Status.PAUSED), Outcome(Status.CONFLICT)]

    monkeypatch.setattr(Engine, "reserve_many", reserve_many)
    answer = await send(intake, "s", *(wish(f"b{n}") for n in range(4)))
    assert [(one["status"], one["code"]) for one in answer.json["answers"]] == [
        (503, "overloaded"),
        (500, "internal"),
        (409, "paused"),
        (409, "conflict"),
    ]
    assert b"secret" not in answer.body
    assert "an order of a batch failed" in caplog.text


async def test_a_full_lane_takes_what_fits(redis_server: EmbeddedServer) -> None:
    async with intake_on(redis_server.url, lane_depth=100) as intake:
        sale = await intake.open_sale({"a": 1_000})
        answers = await codes(intake, sale.id, *(wish(f"b{n}") for n in range(500)))
        held = answers.count((201, "created"))
        assert held >= 100
        assert answers.count((503, "overloaded")) == 500 - held
        assert (await intake.engine.snapshot(sale.id)).orders == held


async def test_batches_and_single_orders_share_the_stock(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 300})
    batches = [[wish(f"b{n}-{m}") for m in range(40)] for n in range(8)]
    done = await asyncio.gather(
        *(codes(intake, sale.id, *batch) for batch in batches),
        *(intake.reserve(sale.id, f"s{n}") for n in range(40)),
    )
    accepted = sum(answers.count((201, "created")) for answers in done[:8])  # type: ignore[union-attr]
    accepted += sum(answer.http == 201 for answer in done[8:])  # type: ignore[union-attr]
    assert accepted == 300
    stock = (await intake.engine.snapshot(sale.id)).stock["a"]
    assert (stock.available, stock.held) == (0, 300)
