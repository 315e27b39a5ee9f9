"""The models: what they refuse and how they say it, the definition, the hot-path checks."""

from __future__ import annotations

import hashlib
import json
import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill import sale as sale_module
from seckill.errors import InvalidInput
from seckill.sale import (
    Item,
    Sale,
    build_items,
    build_sale,
    check_attrs,
    check_buyer,
    check_key,
    check_payment,
    check_sale_id,
    check_sku,
)

SHANGHAI = timezone(timedelta(hours=8))
OPENS = datetime(2026, 11, 28, 20, tzinfo=SHANGHAI)


def an_item(**changes: Any) -> Item:
    fields: dict[str, Any] = {
        "sku": "rice-5kg",
        "title": "五常大米",
        "price_fen": 4990,
        "total": 300,
    }
    return Item(**(fields | changes))


def a_sale(**changes: Any) -> Sale:
    fields: dict[str, Any] = {
        "id": "evening",
        "title": "晚8点秒杀",
        "opens_at": OPENS,
        "ends_at": OPENS + timedelta(hours=2),
        "items": (an_item(), an_item(sku="tissue", total=500)),
    }
    return Sale(**(fields | changes))


def refusal(field: str, problem: str, remedy: str, call: Any, *args: Any, **fields: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(*args, **fields)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert len(str(caught.value)) < 400  # A hostile value must not flood a log.


def test_defaults() -> None:
    sale = a_sale()
    assert (sale.hold_ms, sale.pay_ms, sale.max_lapsed) == (900_000, 900_000, 3)
    assert (sale.limit_per_order, sale.limit_per_buyer) == (0, 0)
    assert sale.items[0].limit_per_buyer == 1
    assert sale.total_units == 800
    assert sale.sku_index == {"rice-5kg": 0, "tissue": 1}
    assert sale.sku_index is sale.sku_index
    assert sale.opens_ms == 1_795_867_200_000
    assert sale.ends_ms == sale.opens_ms + 7_200_000


def test_bounds_are_allowed() -> None:
    an_item(price_fen=0, total=0, limit_per_buyer=0)
    an_item(price_fen=10**10, total=10**9, list_price_fen=10**10, list_price_basis="官方指导价")
    a_sale(hold_ms=1, pay_ms=7 * 86_400_000, max_lapsed=0)
    a_sale(items=tuple(an_item(sku=f"sku-{n}") for n in range(1_000)))
    an_item(title="家庭装\u3000👨‍👩‍👧 「限量」")


@pytest.mark.parametrize(
    ("changes", "field", "problem", "remedy"),
    [
        ({"sku": ""}, "sku", "is empty", "1 to 40"),
        ({"sku": "a b"}, "sku", "holds ' '", "0-9 A-Z"),
        ({"sku": "大米"}, "sku", "holds '\\u5927'", "0-9 A-Z"),
        ({"sku": "a\n"}, "sku", "holds '\\n'", "0-9 A-Z"),
        ({"sku": "x" * 41}, "sku", "41 characters", "1 to 40"),
        ({"sku": 7}, "sku", "is 7, not text", "1 to 40"),
        ({"title": ""}, "title", "is empty", "1 to 200"),
        ({"title": "\u3000 "}, "title", "is empty", "1 to 200"),
        ({"title": "米" * 201}, "title", "201 characters", "at most 200"),
        ({"title": "a\nb"}, "title", "U+000A at position 2", "one line"),
        ({"title": "a\x1b[31m"}, "title", "U+001B", "control"),
        ({"title": "大\ufffd"}, "title", "U+FFFD", "plain text"),
        ({"title": "\ud800"}, "title", "U+D800", "plain text"),
        ({"title": "\u202eabc"}, "title", "U+202E", "plain text"),
        ({"title": b"abc"}, "title", "is a bytes, not text", "write text"),
        ({"price_fen": -1}, "price_fen", "-1 is out of range", "0 to 10000000000"),
        ({"price_fen": 10**10 + 1}, "price_fen", "out of range", "0 to 10000000000"),
        ({"price_fen": 10**5000}, "price_fen", "a huge number", "0 to 10000000000"),
        ({"price_fen": 99.0}, "price_fen", "is a float", "9900 for 99.00 yuan"),
        ({"price_fen": "9900"}, "price_fen", "is '9900'", "whole fen"),
        ({"price_fen": "9" * 100_000}, "price_fen", "…", "whole fen"),
        ({"price_fen": True}, "price_fen", "is True", "whole fen"),
        ({"price_fen": None}, "price_fen", "is None", "whole fen"),
        ({"total": -1}, "total", "out of range", "0 to 1000000000"),
        ({"total": 10**9 + 1}, "total", "out of range", "0 to 1000000000"),
        ({"total": False}, "total", "is False", "whole units"),
        ({"limit_per_buyer": -1}, "limit_per_buyer", "out of range", "0 = no limit"),
        ({"limit_per_buyer": None}, "limit_per_buyer", "is None", "0 = no limit"),
        ({"list_price_fen": 6990}, "list_price_basis", "is missing", "近30天最低成交价"),
        ({"list_price_basis": "原价"}, "list_price_fen", "is missing", "in fen"),
        (
            {"list_price_fen": 4989, "list_price_basis": "近30天最低成交价"},
            "list_price_fen",
            "4989 is below price_fen 4990",
            "at least the price",
        ),
        (
            {"list_price_fen": 69.9, "list_price_basis": "近30天最低成交价"},
            "list_price_fen",
            "is a float",
            "whole fen",
        ),
        ({"list_price_fen": 6990, "list_price_basis": " "}, "list_price_basis", "is empty", "100"),
        ({"list_price_fen": 6990, "list_price_basis": 1}, "list_price_basis", "is 1", "text"),
    ],
)
def test_item_refuses(changes: dict[str, Any], field: str, problem: str, remedy: str) -> None:
    refusal(field, problem, remedy, an_item, **changes)


@pytest.mark.parametrize(
    ("changes", "field", "problem", "remedy"),
    [
        ({"id": "evening.1"}, "id", "holds '.'", "0-9 A-Z a-z _ -"),
        ({"id": "x" * 41}, "id", "41 characters", "1 to 40"),
        ({"title": ""}, "title", "is empty", "1 to 200"),
        ({"opens_at": OPENS.replace(tzinfo=None)}, "opens_at", "no offset", "aware datetime"),
        ({"ends_at": OPENS.replace(tzinfo=None)}, "ends_at", "no offset", "aware datetime"),
        ({"opens_at": 1_795_867_200_000}, "opens_at", "not a datetime", "aware datetime"),
        ({"opens_at": OPENS.replace(year=1999)}, "opens_at", "out of range", "2000 to 2099"),
        ({"ends_at": datetime.max.replace(tzinfo=UTC)}, "ends_at", "out of range", "2000 to 2099"),
        ({"ends_at": OPENS}, "ends_at", "is not after opens_at", "after opens_at"),
        ({"ends_at": OPENS + timedelta(microseconds=999)}, "ends_at", "not after", "after"),
        ({"hold_ms": 0}, "hold_ms", "0 is out of range", "1 to 604800000"),
        ({"pay_ms": 7 * 86_400_000 + 1}, "pay_ms", "out of range", "7 days"),
        ({"pay_ms": 900.0}, "pay_ms", "is a float", "milliseconds"),
        ({"hold_ms": True}, "hold_ms", "is True", "milliseconds"),
        ({"limit_per_order": -1}, "limit_per_order", "out of range", "0 = no limit"),
        ({"limit_per_buyer": 10**10}, "limit_per_buyer", "out of range", "0 to 1000000000"),
        ({"max_lapsed": "3"}, "max_lapsed", "is '3'", "0 = no limit"),
        ({"items": ()}, "items", "has 0 items", "1 to 1000"),
        ({"items": (an_item(),) * 1_001}, "items", "has 1001 items", "1 to 1000"),
        ({"items": [an_item()]}, "items", "is a list", "tuple of Item"),
        ({"items": (an_item(), {"sku": "a"})}, "items[1]", "is a dict", "tuple of Item"),
        (
            {"items": (an_item(), an_item(sku="b"), an_item())},
            "items[2].sku",
            "'rice-5kg' is already the SKU of items[0]",
            "a SKU of its own",
        ),
    ],
)
def test_sale_refuses(changes: dict[str, Any], field: str, problem: str, remedy: str) -> None:
    refusal(field, problem, remedy, a_sale, **changes)


def test_a_night_when_clocks_change_is_compared_in_real_time() -> None:
    new_york = zoneinfo.ZoneInfo("America/New_York")
    first = datetime(2026, 11, 1, 1, 30, tzinfo=new_york)
    second = first.replace(fold=1)  # The same wall clock an hour later.
    sale = a_sale(opens_at=first, ends_at=second)
    assert sale.ends_ms - sale.opens_ms == 3_600_000
    refusal("ends_at", "is not after", "after", a_sale, opens_at=second, ends_at=first)


def test_finer_digits_than_a_millisecond_are_dropped() -> None:
    sale = a_sale(opens_at=OPENS + timedelta(microseconds=1_999))
    assert sale.opens_at == OPENS + timedelta(milliseconds=1)
    assert Sale.from_definition(sale.definition()) == sale


def test_a_replaced_field_is_checked_and_recomputed() -> None:
    sale = a_sale()
    assert sale.total_units == 800
    fewer = msgspec.structs.replace(sale, items=sale.items[:1])
    assert (fewer.total_units, fewer.sku_index) == (300, {"rice-5kg": 0})
    assert fewer.definition_id != sale.definition_id
    refusal("hold_ms", "out of range", "1 to", msgspec.structs.replace, sale, hold_ms=0)


def test_definition_is_canonical() -> None:
    sale = a_sale()
    data = sale.definition()
    plain = json.loads(data)
    assert (
        data
        == json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    )
    assert (plain["opens_ms"], plain["ends_ms"]) == (sale.opens_ms, sale.ends_ms)
    assert "opens_at" not in plain
    assert sale.definition_id == hashlib.sha256(data).hexdigest()[:16]
    # The same moments in another zone are the same sale.
    same = a_sale(opens_at=OPENS.astimezone(UTC))
    assert same == sale
    assert same.definition() == data


def test_definition_bytes_are_pinned() -> None:
    # Stored in Redis and hashed: a change here strands every sale that is open during an upgrade.
    sale = a_sale(items=(an_item(),))
    assert sale.definition().decode() == (
        '{"ends_ms":1795874400000,"hold_ms":900000,"id":"evening","items":[{"limit_per_buyer":1,'
        '"list_price_basis":null,"list_price_fen":null,"price_fen":4990,"sku":"rice-5kg",'
        '"title":"五常大米","total":300}],"limit_per_buyer":0,"limit_per_order":0,"max_lapsed":3,'
        '"opens_ms":1795867200000,"pay_ms":900000,"title":"晚8点秒杀"}'
    )


@given(
    price=st.integers(0, 10**10),
    total=st.integers(0, 10**9),
    markup=st.none() | st.integers(0, 100),
    limits=st.tuples(*[st.integers(0, 10**9)] * 3),
    title=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=50),
    opens=st.datetimes(datetime(2000, 1, 2), datetime(2099, 1, 1), timezones=st.timezones()),  # noqa: DTZ001
    lasts_ms=st.integers(1, 10**9),
)
def test_definition_round_trips(
    price: int,
    total: int,
    markup: int | None,
    limits: tuple[int, int, int],
    title: str,
    opens: datetime,
    lasts_ms: int,
) -> None:
    listed = None if markup is None else min(price + markup, 10**10)
    item = an_item(
        price_fen=price,
        total=total,
        title=title,
        list_price_fen=listed,
        list_price_basis=None if markup is None else title,
        limit_per_buyer=limits[0],
    )
    sale = a_sale(
        title=title,
        opens_at=opens,
        ends_at=opens.astimezone(UTC) + timedelta(milliseconds=lasts_ms),
        items=(item,),
        limit_per_order=limits[1],
        limit_per_buyer=limits[2],
    )
    again = Sale.from_definition(sale.definition())
    assert (again.opens_ms, again.ends_ms) == (sale.opens_ms, sale.ends_ms)
    assert again.items == sale.items
    assert again.definition() == sale.definition()


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(a_sale().definition()) | changes).encode()


def without(key: str) -> bytes:
    plain = json.loads(a_sale().definition())
    del plain[key]
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    ("data", "field", "problem", "remedy"),
    [
        (b"", "definition", "not a JSON object", "Sale.definition()"),
        (b"[]", "definition", "not a JSON object", "Sale.definition()"),
        (b'{"id": "\xff"}', "definition", "not a JSON object", "Sale.definition()"),
        (b"[" * 100_000, "definition", "not a JSON object", "Sale.definition()"),
        (changed(hold=1), "hold", "is not a key of a sale definition", "did you mean hold_ms?"),
        (changed(opens_at=1), "opens_at", "is not a key", "opens_ms"),
        (without("pay_ms"), "pay_ms", "is missing", "needs id, title"),
        (without("items"), "items", "is missing", "needs id, title"),
        (changed(opens_ms=1.5), "opens_ms", "is a float", "milliseconds since 1970"),
        (changed(opens_ms=10**18), "opens_ms", "out of range", "milliseconds since 1970"),
        (changed(ends_ms=1_795_867_200), "ends_ms", "out of range", "946684800000"),
        (changed(items={}), "items", "is a dict, not a list", "a list of items"),
        (changed(items=[1]), "items[0]", "is 1, not a table", "sku"),
        (changed(items=[{"sku": "a"}]), "items[0].title", "is missing", "price_fen, total"),
        (changed(items=[{"prise_fen": 1}]), "items[0].prise_fen", "not a key", "price_fen?"),
        (
            changed(items=[{"sku": "a", "title": "甲", "price_fen": 1.0, "total": 1}]),
            "items[0].price_fen",
            "is a float",
            "whole fen",
        ),
        (changed(title="\ud800"), "definition", "not a JSON object", "Sale.definition()"),
    ],
)
def test_from_definition_refuses(data: bytes, field: str, problem: str, remedy: str) -> None:
    refusal(field, problem, remedy, Sale.from_definition, data)


def test_build_names_the_path() -> None:
    good = {"sku": "a", "title": "甲", "price_fen": 1, "total": 1}
    assert build_items([good]) == (Item(sku="a", title="甲", price_fen=1, total=1),)
    tables = [good, good | {"sku": "b"}, good | {"sku": "c", "price_fen": -5}]
    refusal("items[2].price_fen", "-5 is out of range", "0 to", build_items, tables)
    refusal("id", "is missing", "a sale needs id, title", build_sale, {})


def test_required_keys_follow_the_models() -> None:
    for model in (Item, Sale):
        required = [field.name for field in msgspec.structs.fields(model) if field.required]
        assert list(sale_module._model_keys(model)[1]) == required


@pytest.mark.parametrize("check", [check_buyer, check_key, check_payment])
def test_opaque_ids(check: Any) -> None:
    allowed = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in ",|")
    for start in range(0, len(allowed), 64):
        assert check(allowed[start : start + 64], "buyer") == allowed[start : start + 64]
    for code in [*range(0x21), ord(","), ord("|"), *range(0x7F, 0x180), 0x2028, 0xFF11, 0x1F600]:
        refusal("buyer", "holds", "printable ASCII", check, f"a{chr(code)}b", "buyer")
    refusal("buyer", "is empty", "1 to 64", check, "", "buyer")
    refusal("buyer", "65 characters", "1 to 64", check, "x" * 65, "buyer")
    refusal("buyer", "holds '\\n'", "1 to 64", check, "x\n", "buyer")
    for wrong in (None, 7, True, b"abc", 1.5, ["a"], 10**5000):
        refusal("buyer", "not text", "1 to 64", check, wrong, "buyer")


def test_sale_ids_and_skus() -> None:
    assert check_sale_id("Evening_2026-11-28", "sale") == "Evening_2026-11-28"
    assert check_sku("rice.5kg_A-1", "lines[0].sku") == "rice.5kg_A-1"
    refusal("sale", "holds '.'", "0-9", check_sale_id, "a.b", "sale")
    refusal("sale", "holds '{'", "0-9", check_sale_id, "{x}", "sale")
    refusal("lines[0].sku", "is None", "0-9", check_sku, None, "lines[0].sku")
    # Digits of other scripts are digits to str.isdigit, not to us.
    refusal("sku", "holds", "0-9", check_sku, "\uff11\u0661", "sku")


def test_attrs() -> None:
    for good in ("", "a" * 512, "米" * 170 + "ab", "addr=7|room=3,share=x\n", "\x00"):
        assert check_attrs(good, "attrs") == good
    refusal("attrs", "longer than 512 bytes", "at most 512", check_attrs, "a" * 513, "attrs")
    refusal("attrs", "longer than 512 bytes", "at most 512", check_attrs, "米" * 171, "attrs")
    refusal("attrs", "longer than 512 bytes", "at most 512", check_attrs, "米" * 10**6, "attrs")
    refusal("attrs", "surrogate", "UTF-8", check_attrs, "\ud83d", "attrs")
    for wrong in (None, b"", [1], 1):
        refusal("attrs", "not text", "at most 512", check_attrs, wrong, "attrs")


@given(
    st.text(max_size=66)
    | st.text(st.sampled_from("aZ0-!~{}+.,| \x7f\x1f\né"), max_size=3)
    | st.text(st.just("a"), min_size=63, max_size=66)
)
def test_an_id_is_what_the_expression_says(text: str) -> None:
    """Most ids are not held against it, because that takes longer than all else that is checked."""
    if sale_module._OPAQUE(text):
        assert check_buyer(text, "buyer") is text
    else:
        with pytest.raises(InvalidInput, match="buyer"):
            check_buyer(text, "buyer")
