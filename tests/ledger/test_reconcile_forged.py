"""Reconcile: the events are the truth. What no event has led to is copied nowhere, two faults of
one order are both named, and two stories of one sale are called a fork."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from seckill.engine import Engine
from seckill.keys import stream_key
from seckill.ledger import fence
from seckill.ledger.drift import DriftKind, Report
from seckill.ledger.rebuild import rebuild
from seckill.order import order_id
from tests.ledger.shop import Shop, events_of, only, open_shop, row_of, trim_all
from tests.support import be_unaware

Kind = DriftKind


@pytest.fixture
async def shop(engine: Engine, client: redis.Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    """On SQLite."""
    async with open_shop(engine, client, f"sqlite:///{tmp_path}/ledger.db") as shop:
        yield shop


def _record(shop: Shop, order: str) -> str:
    return bytes(shop.client.hget(shop.keys[3], order) or b"").decode()


def _forge(shop: Shop, name: str) -> str:
    """Somebody has made a held order a paid one in Redis, as confirm would; its record now."""
    order = shop.orders[name]
    record = "c2" + _record(shop, order)[2:] + "|pay-forged"
    shop.client.hset(shop.keys[3], order, record)
    for index in "01":
        shop.client.hincrby(shop.keys[1], f"{index}:held", -1)
        shop.client.hincrby(shop.keys[1], f"{index}:confirmed", 1)
    return record


def _kinds(report: Report, order: str) -> set[DriftKind]:
    return {drift.kind for drift in report.drifts if drift.order == order}


# -- forged records -------------------------------------------------------------------------------


async def test_a_forged_record_is_not_copied(shop: Shop) -> None:
    order = shop.orders["held"]
    before = await row_of(shop, order)
    record = _forge(shop, "held")
    drift = only(await shop.leaves(Kind.ORDER_FORGED))
    assert drift.order == order
    assert (await row_of(shop, order), _record(shop, order)) == (before, record)
    # Nor where there is no row to compare it with.
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    await shop.finds(Kind.ORDER_FORGED, Kind.ORDER_MISSING_IN_LEDGER)
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_MISSING_IN_LEDGER: 1}
    assert await row_of(shop, order) == before
    await shop.leaves(Kind.ORDER_FORGED)


async def test_a_forged_order_is_not_copied(shop: Shop) -> None:
    order = order_id(shop.sale.id, "thief", "k")
    shop.client.hset(shop.keys[3], order, "c2------900000|0|thief|pay-forged")
    shop.client.hset(shop.keys[2], "thief", "0")
    shop.client.hincrby(shop.keys[1], "0:available", -1)
    shop.client.hincrby(shop.keys[1], "0:confirmed", 1)
    assert only(await shop.leaves(Kind.ORDER_FORGED)).order == order


async def test_a_record_forged_on_both_sides(shop: Shop) -> None:
    """The two agree, and both are wrong: the row is mended by the events."""
    order = shop.orders["held"]
    before = await row_of(shop, order)
    record = _forge(shop, "held")
    await shop.edit(
        "orders",
        "version = 2, state = 'confirmed', payment = 'pay-forged', record = :r",
        "id = :o",
        o=order,
        r=record,
    )
    await shop.finds(Kind.ORDER_FORGED, Kind.ORDER_ROW_DIFFERS)
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_ROW_DIFFERS: 1}
    assert await row_of(shop, order) == before
    await shop.leaves(Kind.ORDER_FORGED)


async def test_an_order_forged_on_both_sides(shop: Shop) -> None:
    """No event knows of it. Nothing is ever deleted from the ledger, so somebody else must."""
    order, record = order_id(shop.sale.id, "thief", "k"), "r2------900000|0|thief"
    shop.client.hset(shop.keys[3], order, record)
    shop.client.hset(shop.keys[2], "thief", "")
    await shop.sql(
        "INSERT INTO seckill_orders SELECT sale, :o, 'thief', 'released', 2, items, units,"
        " amount_fen, deadline_ms, '', '', held_ms, changed_ms, attrs, :r FROM seckill_orders"
        " WHERE sale = :s AND id = :h",
        o=order,
        r=record,
        h=shop.orders["released"],
    )
    report = await shop.leaves(Kind.ORDER_FORGED, Kind.ORDER_ROW_DIFFERS)
    assert _kinds(report, order) == set(report.left)
    shop.client.hdel(shop.keys[3], order)
    shop.client.hdel(shop.keys[2], "thief")
    drift = only(await shop.leaves(Kind.ORDER_ROW_DIFFERS))
    assert "no event has led to this row" in drift.text


async def test_what_was_lost_explains_no_more_than_is_missing(shop: Shop) -> None:
    """Two events are gone, of other orders perhaps; the forged record would need three."""
    await trim_all(shop)
    order = shop.orders["held"]
    rows = [row for row in await events_of(shop) if row["subject"] == shop.orders["paying"]]
    await shop.sql(
        "DELETE FROM seckill_events WHERE sale = :s AND seq IN (:a, :b)",
        a=rows[0]["seq"],
        b=rows[1]["seq"],
    )
    record = _forge(shop, "held")
    shop.client.hset(shop.keys[3], order, "c4" + record[2:])
    report = await shop.leaves(Kind.EVENT_LOST, Kind.ORDER_FORGED)
    assert _kinds(report, order) == {Kind.ORDER_FORGED}


# -- two faults of one order ----------------------------------------------------------------------


@pytest.mark.parametrize("change", ["payment = 'x'", "version = 9", "buyer = 'x'", ""])
async def test_a_row_and_a_record_at_once(shop: Shop, change: str) -> None:
    order = shop.orders["held"]
    before = await row_of(shop, order)
    _forge(shop, "held")
    if change:
        await shop.edit("orders", change, "id = :o", o=order)
        of_row = Kind.ORDER_ROW_DIFFERS
    else:
        await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
        of_row = Kind.ORDER_MISSING_IN_LEDGER
    report = await shop.finds(Kind.ORDER_FORGED, of_row)
    assert _kinds(report, order) == {Kind.ORDER_FORGED, of_row}
    assert (await shop.compare(fix=True)).mended == {of_row: 1}
    assert await row_of(shop, order) == before


async def test_a_row_edited_and_the_record_gone_or_set_back(shop: Shop) -> None:
    order = shop.orders["paying"]
    await shop.edit("orders", "payment = 'x'", "id = :o", o=order)
    record = _record(shop, order)
    shop.client.hset(shop.keys[3], order, "h1" + record[2:])
    report = await shop.compare()
    wanted = {Kind.ORDER_ROW_DIFFERS, Kind.ORDER_BEHIND_IN_REDIS}
    assert wanted <= _kinds(report, order)
    shop.client.hset(shop.keys[3], order, "rubbish")
    report = await shop.compare()
    assert _kinds(report, order) == {Kind.ORDER_ROW_DIFFERS, Kind.ORDER_UNREADABLE}
    shop.client.hdel(shop.keys[3], order)
    report = await shop.compare()
    assert _kinds(report, order) == {Kind.ORDER_ROW_DIFFERS, Kind.ORDER_MISSING_IN_REDIS}


async def test_an_event_and_a_row_at_once(shop: Shop) -> None:
    """What is right nobody can say, so nothing of that order is written."""
    order = shop.orders["held"]
    [event] = [row for row in await events_of(shop) if row["subject"] == order]
    await shop.edit(
        "events", "body = REPLACE(body, '|held|', '|thief|')", "seq = :q", q=event["seq"]
    )
    await shop.edit("orders", "record = REPLACE(record, '|held', '|thief')", "id = :o", o=order)
    report = await shop.leaves(Kind.EVENT_DIFFERS, Kind.ORDER_DIFFERS)
    assert {drift.order for drift in report.drifts} == {order}


async def test_a_record_and_an_event_that_is_missing(shop: Shop) -> None:
    order = shop.orders["held"]
    _forge(shop, "held")
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 2")
    report = await shop.finds(Kind.ORDER_FORGED, Kind.EVENT_MISSING_IN_LEDGER)
    assert _kinds(report, order) == {Kind.ORDER_FORGED}
    report = await shop.compare(fix=True)
    assert (set(report.left), set(report.mended)) == (
        {Kind.ORDER_FORGED},
        {Kind.EVENT_MISSING_IN_LEDGER},
    )


# -- forks ----------------------------------------------------------------------------------------


async def _went_back(shop: Shop, lost: int) -> int:
    """Redis is as it was before the ledger's last ``lost`` events; the seq it is at."""
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    dumps = [(key, shop.client.dump(key)) for key in shop.keys]
    for number in range(lost):
        await shop.engine.reserve(shop.sale.id, f"lost-{number}", "k", {"a": 1})
    await shop.keep()
    for key, dumped in dumps:
        if dumped:
            shop.client.restore(key, 0, dumped, replace=True)  # type: ignore[no-untyped-call]
    be_unaware(shop.engine, shop.sale.id)
    return seq


@pytest.mark.parametrize("new", [1, 2, 3, 4])
async def test_a_fork(shop: Shop, new: int) -> None:
    """Whether Redis is not yet, just or far beyond where the ledger is, and nobody has written."""
    seq = await _went_back(shop, lost=3)
    for number in range(new):
        await shop.engine.reserve(shop.sale.id, f"new-{number}", "k", {"a": 1})
    before = await events_of(shop)
    drift = only(await shop.leaves(Kind.SALE_FORKED))
    assert (drift.seq, drift.last_seq) == (seq + 1, seq + min(new, 3))
    assert "rebuild" in drift.kind.remedy(shop.sale.id)
    assert await events_of(shop) == before


async def test_a_fork_that_a_keeper_has_fenced(shop: Shop) -> None:
    seq = await _went_back(shop, lost=1)
    for number in range(3):
        await shop.engine.reserve(shop.sale.id, f"new-{number}", "k", {"a": 1})
    [fenced] = await fence.check(shop.engine, shop.ledger)
    assert "forked" in fenced.reason
    assert only(await shop.leaves(Kind.SALE_FORKED)).seq == seq + 1


async def test_events_after_a_fork_are_not_taken_over(shop: Shop) -> None:
    """They were acknowledged, as if somebody had written them."""
    await _went_back(shop, lost=1)
    for number in range(3):
        await shop.engine.reserve(shop.sale.id, f"new-{number}", "k", {"a": 1})
    key = stream_key(shop.sale.id)
    [[_, entries]] = shop.client.xreadgroup("ledger", "w", {key: ">"})
    shop.client.xack(key, "ledger", *(entry_id for entry_id, _ in entries))
    before = await events_of(shop)
    await shop.leaves(Kind.SALE_FORKED)
    assert await events_of(shop) == before


async def test_an_edited_event_and_a_missing_one_are_no_fork(shop: Shop) -> None:
    before = await events_of(shop)
    await shop.sql("UPDATE seckill_events SET body = 'x' WHERE sale = :s AND seq = 2")
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 3")
    await shop.finds(Kind.EVENT_DIFFERS, Kind.EVENT_MISSING_IN_LEDGER)
    report = await shop.compare(fix=True)
    assert (set(report.left), set(report.mended)) == (
        {Kind.EVENT_DIFFERS},
        {Kind.EVENT_MISSING_IN_LEDGER},
    )
    assert [row["seq"] for row in await events_of(shop)] == [row["seq"] for row in before]


# -- before a rebuild -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
async def test_events_from_before_a_rebuild_that_are_missing(shop: Shop, count: int) -> None:
    """The gap that a rebuild leaves begins after the last event that the ledger had then."""
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    shop.client.delete(*shop.keys)
    assert (await rebuild(shop.engine, shop.ledger, shop.sale.id)).done
    await shop.keep()
    await shop.is_clean()
    await shop.sql(
        "DELETE FROM seckill_events WHERE sale = :s AND seq BETWEEN :a AND :b",
        a=seq - count + 1,
        b=seq,
    )
    drift = only(await shop.leaves(Kind.EVENT_LOST))
    assert (drift.seq, drift.last_seq) == (seq - count + 1, seq)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq <= :b", b=seq)
    assert (await shop.compare()).left[Kind.EVENT_LOST] == seq
