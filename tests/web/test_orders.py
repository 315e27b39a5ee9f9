"""The life of an order over HTTP, and who may see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import HOUR_MS, make_item, travel
from tests.web.intake import Answer, Intake


async def held(intake: Intake, sale: str, buyer: str = "b1", key: str = "k1") -> str:
    """The path of a new order."""
    answer = await intake.reserve(sale, buyer, key)
    assert answer.http == 201, answer.body
    return f"/v1/sales/{sale}/orders/{answer.json['order']['id']}"


async def test_reserve_creates_an_order_and_says_where(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 5, "b": 5}, hold_ms=60_000)
    answer = await intake.reserve(sale.id, a=2, b=1)
    assert answer.http == 201
    assert answer.code == "created"
    order = answer.json["order"]
    now_ms = (await intake.engine.snapshot(sale.id)).at_ms
    assert now_ms < order.pop("deadline_ms") <= now_ms + 60_000
    assert order == {
        "id": order["id"],
        "sale": sale.id,
        "buyer": "b1",
        "state": "held",
        "version": 1,
        "items": [{"sku": "a", "quantity": 2}, {"sku": "b", "quantity": 1}],
        "amount_fen": 3 * 9_900,
        "payments": [],
        "refund": None,
    }
    assert answer.headers["Location"] == f"/v1/sales/{sale.id}/orders/{order['id']}"
    again = await intake.get(answer.headers["Location"], "b1")
    assert again.json == answer.json["order"]
    assert again.headers["Cache-Control"] == "no-store"


async def test_the_identical_retry_finds_the_original(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 1})
    first, second = await intake.reserve(sale.id), await intake.reserve(sale.id)
    assert (first.http, second.http) == (201, 200)
    assert second.code == "exists"
    assert "Location" not in second.headers
    assert second.json["order"] == first.json["order"]
    # It is sold out now, and a retry still finds its order.
    assert (await intake.reserve(sale.id, "b2", "k1")).is_problem(409, "sold_out")
    assert (await intake.reserve(sale.id)).code == "exists"


async def test_a_double_click_makes_one_order(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 50})
    answers = await asyncio.gather(*(intake.reserve(sale.id) for _ in range(20)))
    assert sorted(answer.http for answer in answers) == [200] * 19 + [201]
    assert len({answer.json["order"]["id"] for answer in answers}) == 1
    assert (await intake.engine.snapshot(sale.id)).stock["a"].held == 1


async def test_lines_of_one_sku_are_added_up(intake: Intake) -> None:
    sale = await intake.open_sale(None, items=(make_item("a", limit_per_buyer=3),))
    path = f"/v1/sales/{sale.id}/orders"
    lines = [{"sku": "a", "quantity": 2}, {"sku": "a", "quantity": 2}]
    assert (await intake.post(path, {"items": lines}, "b1", "k1")).is_problem(409, "sku_limit")
    lines[1]["quantity"] = 1
    answer = await intake.post(path, {"items": lines}, "b1", "k1")
    assert answer.json["order"]["items"] == [{"sku": "a", "quantity": 3}]
    # Each line is in bounds, their sum is not.
    lines = [{"sku": "a", "quantity": 10_000}, {"sku": "a", "quantity": 1}]
    answer = await intake.post(path, {"items": lines}, "b1", "k2")
    assert answer.is_problem(400, "invalid_input")
    assert answer.json["field"] == "items['a']"


async def test_attrs_take_part_in_the_conflict_check(intake: Intake) -> None:
    sale = await intake.open_sale()
    path, lines = f"/v1/sales/{sale.id}/orders", [{"sku": "a", "quantity": 1}]
    first = await intake.post(path, {"items": lines, "attrs": "收货地址 7"}, "b1", "k1")
    assert first.http == 201
    other = await intake.post(path, {"items": lines, "attrs": "收货地址 8"}, "b1", "k1")
    assert other.is_problem(409, "conflict")
    events = [event async for event in intake.engine.history(sale.id)]
    assert [event.attrs for event in events if event.order] == ["收货地址 7"]


async def test_from_held_to_confirmed(intake: Intake) -> None:
    sale = await intake.open_sale()
    path = await held(intake, sale.id)
    paying = await intake.post(f"{path}/begin-payment", buyer="b1")
    assert (paying.http, paying.code) == (200, "done")
    assert paying.json["order"]["state"] == "paying"
    assert (await intake.post(f"{path}/begin-payment", buyer="b1")).code == "already"
    paid = await intake.post(f"{path}/confirm", {"payment": "wx-1"})
    assert (paid.http, paid.code) == (200, "done")
    assert paid.json["order"] | {"version": 0} == paying.json["order"] | {
        "state": "confirmed",
        "version": 0,
        "deadline_ms": None,
        "payments": ["wx-1"],
    }
    assert (await intake.post(f"{path}/confirm", {"payment": "wx-1"})).code == "already"
    # The order stands in the way of both of these, so it is shown.
    refused = await intake.post(f"{path}/release", buyer="b1")
    assert refused.is_problem(409, "confirmed")
    assert refused.json["order"]["state"] == "confirmed"
    twice = await intake.post(f"{path}/confirm", {"payment": "wx-2"})
    assert twice.is_problem(409, "duplicate_payment")
    assert twice.json["order"]["payments"] == ["wx-1", "wx-2"]


async def test_release_gives_the_unit_to_the_next(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 1})
    path = await held(intake, sale.id)
    assert (await intake.reserve(sale.id, "b2", "k1")).is_problem(409, "sold_out")
    released = await intake.post(f"{path}/release", buyer="b1")
    assert (released.http, released.code) == (200, "done")
    assert released.json["order"]["state"] == "released"
    assert (await intake.post(f"{path}/release")).code == "already"
    assert (await intake.reserve(sale.id, "b2", "k1")).http == 201
    assert (await intake.post(f"{path}/begin-payment")).is_problem(409, "released")


async def test_a_late_payment_is_sold_again_or_due_back(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 1}, hold_ms=60_000)
    path = await held(intake, sale.id)
    await travel(intake.engine, sale.id, 61_000)
    assert (await intake.post(f"{path}/begin-payment", buyer="b1")).is_problem(409, "expired")
    await intake.engine._expire(sale.id, 100)
    paid = await intake.post(f"{path}/confirm", {"payment": "wx-1"})
    assert (paid.http, paid.code) == (200, "confirmed_late")

    sale = await intake.open_sale({"a": 1}, hold_ms=60_000)
    path = await held(intake, sale.id)
    await travel(intake.engine, sale.id, 61_000)
    await intake.engine._expire(sale.id, 100)
    await held(intake, sale.id, "b2")
    late = await intake.post(f"{path}/confirm", {"payment": "wx-1"})
    assert late.is_problem(409, "late")
    assert late.json["order"]["payments"] == ["wx-1"]


async def test_a_buyer_sees_only_their_own(intake: Intake) -> None:
    sale = await intake.open_sale()
    path = await held(intake, sale.id)

    async def tries(buyer: str | None) -> list[Answer]:
        return [
            await intake.get(path, buyer),
            await intake.post(f"{path}/begin-payment", buyer=buyer),
            await intake.post(f"{path}/release", buyer=buyer),
        ]

    for answer in await tries("b2"):
        assert answer.is_problem(404, "unknown_order")
        assert "order" not in answer.json
    assert [answer.http for answer in await tries(None)] == [200, 200, 200]
    # The same key of another buyer is another order.
    other = await intake.reserve(sale.id, "b2", "k1")
    assert other.http == 201
    assert not path.endswith(other.json["order"]["id"])


async def test_only_the_backend_confirms(intake: Intake) -> None:
    sale = await intake.open_sale()
    path = await held(intake, sale.id)
    answer = await intake.post(f"{path}/confirm", {"payment": "wx-1"}, buyer="b1")
    assert answer.is_problem(403, "forbidden")
    assert (await intake.get(path)).json["state"] == "held"


@pytest.mark.parametrize("buyer", ["", " ", "a b", "a|b", "a,b", "b" * 65, "买家", "a\tb"])
async def test_a_bad_buyer_is_refused_and_never_the_backend(intake: Intake, buyer: str) -> None:
    sale = await intake.open_sale()
    path = await held(intake, sale.id)
    for answer in (
        await intake.get(path, buyer),
        await intake.post(f"{path}/begin-payment", buyer=buyer),
        await intake.post(f"{path}/release", buyer=buyer),
        await intake.post(f"{path}/confirm", {"payment": "wx-1"}, buyer=buyer),
        await intake.reserve(sale.id, buyer, "k1"),
    ):
        assert answer.is_problem(400, "invalid_input")
        assert answer.json["field"] == "Seckill-Buyer"
    assert (await intake.get(path)).json["state"] == "held"


@pytest.mark.parametrize("name", ["Seckill-Buyer", "Idempotency-Key"])
async def test_a_header_twice_is_refused(intake: Intake, name: str) -> None:
    sale = await intake.open_sale()
    answer = await intake.call(
        "POST",
        f"/v1/sales/{sale.id}/orders",
        json={"items": [{"sku": "a", "quantity": 1}]},
        headers=[("Seckill-Buyer", "b1"), ("Idempotency-Key", "k1"), (name, "other")],
    )
    assert answer.is_problem(400, "invalid_input")
    assert answer.json["field"] == name
    assert (await intake.engine.snapshot(sale.id)).orders == 0


async def test_an_order_needs_a_buyer_and_a_key(intake: Intake) -> None:
    sale = await intake.open_sale()
    path, body = f"/v1/sales/{sale.id}/orders", {"items": [{"sku": "a", "quantity": 1}]}
    answer = await intake.post(path, body, key="k1")
    assert answer.is_problem(400, "buyer_required")
    assert answer.json["field"] == "Seckill-Buyer"
    answer = await intake.post(path, body, "b1")
    assert answer.is_problem(400, "idempotency_key_required")
    assert answer.json["field"] == "Idempotency-Key"
    for key in ("", "a b", "k" * 65):
        answer = await intake.post(path, body, "b1", key)
        assert answer.is_problem(400, "invalid_input")
        assert answer.json["field"] == "Idempotency-Key"
    assert (await intake.engine.snapshot(sale.id)).orders == 0


async def pause(intake: Intake, sale: str) -> None:
    await intake.engine.pause(sale, "a reason")


async def before(intake: Intake, sale: str) -> None:
    await travel(intake.engine, sale, -2 * HOUR_MS)


async def after(intake: Intake, sale: str) -> None:
    await travel(intake.engine, sale, 2 * HOUR_MS)


async def lapse(intake: Intake, sale: str) -> None:
    for key in ("x1", "x2"):
        await intake.reserve(sale, "b1", key)
        await travel(intake.engine, sale, 61_000)
        await intake.engine._expire(sale, 100)


@pytest.mark.parametrize(
    ("arrange", "fields", "wish", "http", "code"),
    [
        (None, {}, {"nope": 1}, 422, "unknown_sku"),
        (pause, {}, {}, 409, "paused"),
        (before, {}, {}, 409, "not_open"),
        (after, {}, {}, 409, "ended"),
        (lapse, {"max_lapsed": 2, "hold_ms": 60_000}, {}, 403, "not_allowed"),
        (None, {"limit_per_order": 2}, {"a": 3}, 422, "order_limit"),
        (None, {"items": (make_item("a", limit_per_buyer=1),)}, {"a": 2}, 409, "sku_limit"),
        (None, {"limit_per_buyer": 2}, {"a": 2, "b": 1}, 409, "buyer_limit"),
        (None, {"items": (make_item("a", total=0),)}, {}, 409, "sold_out"),
        (None, {}, {"a": 11}, 409, "insufficient"),
    ],
)
async def test_refusals(
    intake: Intake, arrange: Any, fields: dict[str, Any], wish: Any, http: int, code: str
) -> None:
    sale = await intake.open_sale(**fields)
    if arrange:
        await arrange(intake, sale.id)
    answer = await intake.reserve(sale.id, **wish)
    assert answer.is_problem(http, code)
    more = {"detail", "field"} if code == "unknown_sku" else set()
    assert set(answer.json) == {"type", "title", "status", "code"} | more


async def test_a_closed_sale_and_an_unknown_one(intake: Intake) -> None:
    sale = await intake.open_sale()
    await intake.engine.close(sale.id)
    assert (await intake.reserve(sale.id)).is_problem(409, "ended")
    order = "00" + "a" * 22
    for sale_id in ("nope", "a" * 40):
        at = f"/v1/sales/{sale_id}"
        for answer in (
            await intake.get(at),
            await intake.reserve(sale_id),
            await intake.get(f"{at}/orders/{order}"),
            await intake.post(f"{at}/orders/{order}/begin-payment"),
            await intake.post(f"{at}/orders/{order}/release"),
            await intake.post(f"{at}/orders/{order}/confirm", {"payment": "p"}),
        ):
            assert answer.is_problem(404, "unknown_sale")


async def test_refunded_and_overpaid_orders(intake: Intake) -> None:
    sale = await intake.open_sale()
    path = await held(intake, sale.id)
    for n in range(100):
        answer = await intake.post(f"{path}/confirm", {"payment": f"wx-{n}"})
        if answer.http == 409 and answer.code != "duplicate_payment":
            break
    assert answer.is_problem(409, "too_many_payments")
    order = path.rpartition("/")[2]
    await intake.engine.refund(sale.id, order, "r-1", return_units=True, return_limit=True)
    assert (await intake.post(f"{path}/release")).is_problem(409, "refunded")
    assert (await intake.get(path)).json["refund"] == "r-1"


async def test_an_unknown_sku_is_named(intake: Intake) -> None:
    sale = await intake.open_sale()
    answer = await intake.reserve(sale.id, "b1", "k1", a=1, nope=1, neither=1)
    assert answer.is_problem(422, "unknown_sku")
    assert answer.json["detail"] == "the sale has no nope, neither"
    assert answer.json["field"] == "items"
