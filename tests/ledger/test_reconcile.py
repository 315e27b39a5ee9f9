"""Reconcile: faults of the ledger, each made on purpose and called by its name, and ``fix`` mends
what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import redis

from seckill.dead import Letter
from seckill.engine import Engine
from seckill.keys import group_keys, stream_key
from seckill.ledger.drift import KINDS, DriftKind, Side
from seckill.order import Wish
from tests.ledger.shop import Shop, events_of, only, open_shop, row_of, trim_all

Kind = DriftKind


@pytest.fixture
async def shop(engine: Engine, client: redis.Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    """On SQLite."""
    async with open_shop(engine, client, f"sqlite:///{tmp_path}/ledger.db") as shop:
        yield shop


@pytest.fixture
async def each_shop(engine: Engine, client: redis.Redis, database_url: str) -> AsyncIterator[Shop]:
    """On each of the databases."""
    async with open_shop(engine, client, database_url) as shop:
        yield shop


async def test_nothing_differs(each_shop: Shop) -> None:
    report = await each_shop.is_clean()
    seq = (await each_shop.engine.snapshot(each_shop.sale.id)).seq
    assert (report.seq, report.events, report.orders, report.skus) == (seq, seq, 7, 2)
    assert (report.stream_from, report.drifts) == (1, ())
    fixed = await each_shop.compare(fix=True)
    assert (fixed.left, fixed.mended) == ({}, {})


async def test_every_kind_says_what_it_means_and_what_to_do() -> None:
    assert set(KINDS) == set(DriftKind)
    for kind in DriftKind:
        assert kind.meaning
        assert "{" not in kind.remedy("s-1")
        assert isinstance(kind.side, Side)
        # What fix mends is always the ledger's, but for the queues.
        is_ledgers = kind.side is Side.LEDGER or kind is Kind.ORDER_NOT_QUEUED
        assert not kind.fixable or (is_ledgers and "--fix" in kind.remedy("s-1"))


# -- the ledger's faults, which fix mends ---------------------------------------------------------


async def test_an_order_without_arow_of(each_shop: Shop) -> None:
    order = each_shop.orders["confirmed"]
    before = await row_of(each_shop, order)
    await each_shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    report = await each_shop.mends(Kind.ORDER_MISSING_IN_LEDGER)
    assert only(report).order == order
    assert await row_of(each_shop, order) == before


async def test_a_row_that_stayed_behind(each_shop: Shop) -> None:
    order = each_shop.orders["refunded"]
    before = await row_of(each_shop, order)
    body = next(row["body"] for row in await events_of(each_shop) if row["subject"] == order)
    held = "|".join(body.split("|")[1:4])
    await each_shop.sql(
        "UPDATE seckill_orders SET version = 1, state = 'held', payment = '', refund = '',"
        " record = :r WHERE sale = :s AND id = :o",
        o=order,
        r=held,
    )
    assert only(await each_shop.mends(Kind.ORDER_ROW_DIFFERS)).order == order
    assert await row_of(each_shop, order) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("confirmed", "payment = 'somebody-elses'"),
        ("confirmed", "state = 'refunded'"),
        ("confirmed", "version = 9"),
        ("confirmed", "version = 9, record = 'c9------1|0|x'"),
        ("confirmed", "changed_ms = 5"),
        ("held", "attrs = ''"),
        ("paying", "attrs = 'other'"),
        ("refunded", "held_ms = 0"),
        ("held", "amount_fen = 1"),
        ("held", "buyer = 'other'"),
        ("held", "record = 'h1------900000|0|other'"),
    ],
)
async def test_an_editedrow_of(shop: Shop, name: str, change: str) -> None:
    before = await row_of(shop, shop.orders[name])
    await shop.edit("orders", change, "id = :o", o=shop.orders[name])
    assert await row_of(shop, shop.orders[name]) != before
    report = await shop.mends(Kind.ORDER_ROW_DIFFERS)
    assert only(report).order == shop.orders[name]
    assert await row_of(shop, shop.orders[name]) == before


async def test_a_hole_in_theevents_of(each_shop: Shop) -> None:
    before = await events_of(each_shop)
    await each_shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq BETWEEN 5 AND 7")
    await each_shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 1")
    report = await each_shop.mends(Kind.EVENT_MISSING_IN_LEDGER)
    assert {(drift.seq, drift.last_seq) for drift in report.drifts} == {(1, 1), (5, 7)}
    assert report.mended == {Kind.EVENT_MISSING_IN_LEDGER: 4}
    assert await events_of(each_shop) == before


async def test_an_order_of_which_the_ledger_has_nothing(shop: Shop) -> None:
    """Its events come from the stream, and its row with them."""
    order = shop.orders["refunded"]
    before = await row_of(shop, order)
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    await shop.finds(Kind.ORDER_MISSING_IN_LEDGER, Kind.EVENT_MISSING_IN_LEDGER)
    report = await shop.compare(fix=True)
    assert report.ok
    await shop.is_clean()
    assert await row_of(shop, order) == before


async def test_what_is_gone_from_the_stream_comes_from_redis_record(shop: Shop) -> None:
    order = shop.orders["gone"]
    await trim_all(shop)
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    lost = await shop.finds(Kind.ORDER_MISSING_IN_LEDGER, Kind.EVENT_LOST)
    assert lost.left[Kind.EVENT_LOST] == 3
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_MISSING_IN_LEDGER: 1}
    # The hole in the history stays.
    assert set((await shop.compare()).left) == {Kind.EVENT_LOST}
    row = await row_of(shop, order)
    assert (row["state"], row["version"], row["payment"], row["refund"]) == (
        "refunded", 3, "pay-gone", "r2",
    )  # fmt: skip
    assert (row["buyer"], row["units"], row["held_ms"], row["changed_ms"]) == ("gone", 2, 0, 0)


async def test_an_edited_row_whose_events_are_gone(shop: Shop) -> None:
    """What its record says of it is left, and Redis agrees with that."""
    order = shop.orders["confirmed"]
    before = await row_of(shop, order)
    await trim_all(shop)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    await shop.edit("orders", "payment = 'somebody-elses'", "id = :o", o=order)
    await shop.finds(Kind.ORDER_ROW_DIFFERS, Kind.EVENT_LOST)
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_ROW_DIFFERS: 1}
    assert set((await shop.compare()).left) == {Kind.EVENT_LOST}
    assert await row_of(shop, order) == before


async def test_a_row_behind_an_event_that_is_gone(shop: Shop) -> None:
    """The last event of an order is in neither place: Redis' record knows more than the row."""
    order = shop.orders["refunded"]
    await trim_all(shop)
    confirmed = [row for row in await events_of(shop) if row["subject"] == order][1]
    record = confirmed["body"].split("|", 1)[1]
    await shop.sql(
        "DELETE FROM seckill_events WHERE sale = :s AND subject = :o AND kind = 'order_refunded'",
        o=order,
    )
    await shop.sql(
        "UPDATE seckill_orders SET version = 2, state = 'confirmed', refund = '', record = :r,"
        " changed_ms = :m WHERE sale = :s AND id = :o",
        o=order,
        r=record,
        m=confirmed["at_ms"],
    )
    await shop.finds(Kind.EVENT_LOST, Kind.ORDER_BEHIND_IN_LEDGER)
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_BEHIND_IN_LEDGER: 1}
    assert set((await shop.compare()).left) == {Kind.EVENT_LOST}
    row = await row_of(shop, order)
    assert (row["state"], row["version"], row["attrs"]) == ("refunded", 3, "refunded|x|y")


@pytest.mark.parametrize(
    "change",
    ["state = 'closed'", "state = 'paused', reason = 'x'", "state_seq = 1", "opens_ms = 5",
     "origin_ms = 5", "state = 'paused', state_seq = 3",
     "state = 'settled', state_seq = 1000000", "state_seq = 99", "removed_at_ms = 5",
     "definition = '{}'", "refusals = 'what is this'", "refusals = '[1]'",
     "refusals = '{\"sold_out\": \"many\"}'"],
)  # fmt: skip
async def test_the_row_of_a_sale(shop: Shop, change: str) -> None:
    before = await shop.ledger.sale(shop.sale.id)
    await shop.edit("sales", change)
    await shop.mends(Kind.SALE_ROW_DIFFERS)
    assert await shop.ledger.sale(shop.sale.id) == before


@pytest.mark.parametrize(
    "change",
    ["total = 99", "price_fen = 1", "total_seq = 2, total = 12", "total = 99, total_seq = 1000000"],
)
async def test_the_row_of_an_item(shop: Shop, change: str) -> None:
    await shop.edit("items", change, "sku = 'b'")
    assert only(await shop.mends(Kind.ITEM_ROW_DIFFERS)).sku == "b"


async def test_an_item_without_arow_of(each_shop: Shop) -> None:
    await each_shop.sql("DELETE FROM seckill_items WHERE sale = :s AND sku = 'b'")
    assert only(await each_shop.mends(Kind.ITEM_ROW_DIFFERS)).sku == "b"


async def test_a_sale_that_the_ledger_does_not_know(each_shop: Shop) -> None:
    for table in ("sales", "items", "orders", "events"):
        await each_shop.sql(f"DELETE FROM seckill_{table} WHERE sale = :s")  # noqa: S608 - ours
    await each_shop.finds(Kind.SALE_MISSING_IN_LEDGER)
    seq = (await each_shop.engine.snapshot(each_shop.sale.id)).seq
    report = await each_shop.compare(fix=True)
    assert not report.left, report.drifts
    assert report.mended == {Kind.SALE_MISSING_IN_LEDGER: 1, Kind.EVENT_MISSING_IN_LEDGER: seq} | {
        kind: count
        for kind, count in report.mended.items()
        if kind in (Kind.SALE_ROW_DIFFERS, Kind.ITEM_ROW_DIFFERS)
    }
    await each_shop.is_clean()


# -- the ledger's faults, which somebody else mends -----------------------------------------------


async def test_no_consumer(shop: Shop) -> None:
    shop.client.xgroup_destroy(stream_key(shop.sale.id), "ledger")
    # All is there, so nobody asks who brought it.
    await shop.is_clean()
    await shop.engine.reserve(shop.sale.id, "new", "k", {"a": 1})
    drift = only(await shop.leaves(Kind.LEDGER_BEHIND))
    assert "no consumer has ever read" in drift.text
    assert "seckill ledger run" in drift.kind.remedy(shop.sale.id)
    await shop.keep()
    await shop.is_clean()


async def test_a_consumer_that_stopped(shop: Shop) -> None:
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    for buyer in ("n1", "n2", "n3"):
        await shop.engine.reserve(shop.sale.id, buyer, "k", {"a": 1})
    await shop.engine.begin_payment(shop.sale.id, shop.orders["held"])
    report = await shop.leaves(Kind.LEDGER_BEHIND)
    drift = only(report)
    assert (drift.seq, drift.last_seq, report.events) == (seq + 1, seq + 4, seq)
    assert report.left == {Kind.LEDGER_BEHIND: 4}


async def test_a_consumer_that_is_stuck(shop: Shop) -> None:
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    await shop.engine.reserve_many(
        shop.sale.id, [Wish(f"n{number}", "k", {"a": 1}) for number in range(5)]
    )
    key = stream_key(shop.sale.id)
    shop.client.xreadgroup("ledger", "worker-7", {key: ">"}, count=10)
    drift = only(await shop.leaves(Kind.LEDGER_BEHIND))
    assert "worker-7 holds " in drift.text
    # An entry that is pending counts whole, though it has several events.
    assert (drift.seq, drift.last_seq) == (seq + 1, seq + 5)


async def test_what_is_behind_hides_no_other_drift(shop: Shop) -> None:
    order = shop.orders["held"]
    await shop.sql("UPDATE seckill_orders SET buyer = 'x' WHERE sale = :s AND id = :o", o=order)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 2")
    await shop.engine.reserve(shop.sale.id, "new", "k", {"a": 1})
    kinds = (Kind.LEDGER_BEHIND, Kind.ORDER_ROW_DIFFERS, Kind.EVENT_MISSING_IN_LEDGER)
    await shop.finds(*kinds)
    report = await shop.compare(fix=True)
    assert (set(report.left), set(report.mended)) == ({kinds[0]}, set(kinds[1:]))


async def test_a_dead_letter(shop: Shop) -> None:
    """Its event is in neither place, and it is the letter that is reported, not what it lacks."""
    order = shop.orders["confirmed"]
    rows = [row for row in await events_of(shop) if row["subject"] == order]
    values = {
        row["seq"]: (row, f"{row['kind'].removeprefix('order_')}|{row['body']}") for row in rows
    }
    keys = group_keys(shop.sale.id, "ledger")
    for seq, (row, value) in values.items():
        letter = Letter(seq, row["at_ms"], order, value, False, "RowRefused: too long", 1, 5)
        shop.client.hset(keys.dead, letter.field, msgspec.json.encode(letter))
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    report = await shop.leaves(Kind.DEAD_LETTER)
    assert [drift.seq for drift in report.drifts] == sorted(values)
    assert {(drift.order, drift.text) for drift in report.drifts} == {
        (order, "RowRefused: too long")
    }
    remedy = Kind.DEAD_LETTER.remedy(shop.sale.id)
    assert f"seckill dead retry {shop.sale.id} --all --group ledger" in remedy
    shop.client.sadd(keys.again, order)
    await shop.keep()
    await shop.is_clean()
