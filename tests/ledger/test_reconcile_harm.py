"""Reconcile does no harm with ``fix``: what nobody can prove is neither queued nor taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from seckill.engine import Engine
from seckill.keys import stream_key
from seckill.ledger.drift import DriftKind
from seckill.ledger.reconcile_gaps import Claim, Gaps
from seckill.order import order_id
from tests.ledger.shop import Shop, events_of, only, open_shop, row_of, trim_all

Kind = DriftKind


@pytest.fixture
async def shop(engine: Engine, client: redis.Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    """On SQLite."""
    async with open_shop(engine, client, f"sqlite:///{tmp_path}/ledger.db") as shop:
        yield shop


def _record(shop: Shop, order: str) -> str:
    return bytes(shop.client.hget(shop.keys[3], order) or b"").decode()


def _thief(shop: Shop, number: int = 0) -> str:
    return order_id(shop.sale.id, f"thief-{number}", "k")


def _queue(shop: Shop) -> list[str]:
    return [entry.decode() for entry in shop.client.lrange(shop.keys[4], 0, -1)]  # type: ignore[union-attr]


async def _lose(shop: Shop, order: str, kind: str) -> None:
    """An event of an order is in neither place any more."""
    await shop.sql(
        "DELETE FROM seckill_events WHERE sale = :s AND subject = :o AND kind = :k",
        o=order,
        k=f"order_{kind}",
    )


# -- queues ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
async def test_a_forged_order_is_not_queued(shop: Shop, whole: bool) -> None:
    """When it lapsed, units would come back that were never taken."""
    if not whole:
        await trim_all(shop)
        await _lose(shop, shop.orders["released"], "released")
    before, record = _queue(shop), _record(shop, shop.orders["held"])
    forged = [_thief(shop, number) for number in range(3)]
    for order in (*forged, "no order id"):
        shop.client.hset(shop.keys[3], order, record)
    report = await shop.compare(fix=True)
    assert {drift.order for drift in report.drifts if drift.kind is Kind.ORDER_FORGED} == {*forged}
    assert Kind.ORDER_NOT_QUEUED not in {drift.kind for drift in report.drifts}
    assert not report.mended
    assert _queue(shop) == before


async def test_an_order_that_was_made_held_again_is_not_queued(shop: Shop) -> None:
    order = shop.orders["released"]
    for each in (order, shop.orders["confirmed"]):
        shop.client.lrem(shop.keys[4], 0, each)
    before, record = _queue(shop), _record(shop, order)
    shop.client.hset(shop.keys[3], order, "h" + record[1:])
    shop.client.hset(shop.keys[3], shop.orders["confirmed"], "h1" + record[2:])
    report = await shop.compare(fix=True)
    assert Kind.ORDER_NOT_QUEUED not in report.mended
    assert {Kind.ORDER_FORGED, Kind.ORDER_BEHIND_IN_REDIS} <= set(report.left)
    assert Kind.ORDER_NOT_QUEUED not in report.left
    assert _queue(shop) == before


async def test_only_what_is_proven_is_queued(shop: Shop) -> None:
    shop.client.hset(shop.keys[3], _thief(shop), _record(shop, shop.orders["held"]))
    shop.client.delete(shop.keys[4])
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_NOT_QUEUED: 1}
    assert _queue(shop) == [shop.orders["held"]]


async def test_a_waiting_order_whose_event_is_lost_is_not_queued(shop: Shop) -> None:
    """Row and record agree, and nobody can tell whether they are right: that is said."""
    await trim_all(shop)
    await _lose(shop, shop.orders["held"], "held")
    shop.client.delete(shop.keys[4])
    report = await shop.leaves(Kind.EVENT_LOST)
    assert "1 orders that wait in none" in "".join(report.undecided)
    assert _queue(shop) == []


# -- gaps -----------------------------------------------------------------------------------------


async def test_a_gap_lets_no_more_records_in_than_events_are_lost(shop: Shop) -> None:
    """One event is lost, and each of two forged orders could be what it led to."""
    await trim_all(shop)
    order = shop.orders["released"]
    before = await row_of(shop, order)
    await _lose(shop, order, "released")
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    report = await shop.compare(fix=True)
    assert (await row_of(shop, order))["record"] == before["record"]
    assert set(report.left) == {Kind.EVENT_LOST}
    # That was the one. Nothing is left for anybody else.
    record = _record(shop, shop.orders["held"])
    for name in ("held", "paying"):
        shop.client.hset(shop.keys[3], shop.orders[name], f"c{int(record[1]) + 1}{record[2:]}|evil")
    shop.client.hset(shop.keys[3], _thief(shop), "h1" + record[2:])
    report = await shop.compare(fix=True)
    named = {drift.order: drift for drift in report.drifts if drift.kind is Kind.ORDER_FORGED}
    assert {shop.orders["held"], _thief(shop)} <= set(named)
    assert "can't explain" in named[_thief(shop)].text
    assert not report.mended
    assert (await row_of(shop, shop.orders["held"]))["state"] == "held"


@pytest.mark.parametrize("count", [1, 2])
async def test_more_want_a_lost_event_than_there_are(shop: Shop, count: int) -> None:
    """The row went with the event, so the gap has room: for one record, whichever it is."""
    await trim_all(shop)
    order = shop.orders["held"]
    record = _record(shop, order)
    await _lose(shop, order, "held")
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    if count == 2:
        shop.client.hset(shop.keys[3], _thief(shop), "h1" + record[2:])
    report = await shop.compare(fix=True)
    if count == 1:
        assert report.mended == {Kind.ORDER_MISSING_IN_LEDGER: 1}
        return
    assert not report.mended
    assert report.left[Kind.ORDER_FORGED] == 2


async def test_a_lost_event_of_another_order_explains_nothing(shop: Shop) -> None:
    """The stream still has it, so whose it is is known."""
    await _lose(shop, shop.orders["released"], "released")
    order = shop.orders["held"]
    shop.client.hset(shop.keys[3], order, "c2" + _record(shop, order)[2:] + "|evil")
    report = await shop.compare()
    assert order in {drift.order for drift in report.drifts if drift.kind is Kind.ORDER_FORGED}


def test_the_room_of_a_gap() -> None:
    gaps = Gaps()
    assert (gaps.room(0), gaps.fit()) == (0, True)
    for first, last in ((1, 3), (9, 9), (7, 8), (8, 9), (20, 29)):
        gaps.lose(first, last)
    lost = {2, 3, 7, 8, 9, *range(20, 30)}
    for seq in range(32):
        assert gaps.room(seq) == sum(each > seq for each in lost)
    gaps.lose(40, 40)
    assert gaps.room(29) == 1
    # What is lost before an order's last event is no use to it.
    gaps.claim("a", Claim(29, 0, 1))
    gaps.claim("b", Claim(9, 4, 6))
    assert gaps.fit()
    gaps.claim("c", Claim(19, 0, 1))
    assert not gaps.fit()
    gaps.claim("c", Claim(0, 0, 5))
    assert gaps.fit()
    # An event that is known to be its own comes first.
    gaps.lose_known(50, ["c"])
    gaps.claim("c", Claim(0, 1, 5))
    assert gaps.fit()
    assert (gaps.claimed, gaps.is_lost(50), gaps.is_lost(49)) == (16, True, False)


# -- an event of the ledger against both ----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "body = REPLACE(body, 'pay-confirmed', 'pay-thief')",
        "body = REPLACE(body, 'c2', 'c7')",
        "body = REPLACE(body, 'c2', 'c1')",
    ],
)
async def test_an_edited_event_that_the_stream_no_longer_has(shop: Shop, change: str) -> None:
    """Row and record agree against it: nothing of the order is written."""
    await trim_all(shop)
    order = shop.orders["confirmed"]
    before = await row_of(shop, order)
    seq = [row["seq"] for row in await events_of(shop) if row["subject"] == order][-1]
    await shop.edit("events", change, "seq = :q", q=seq)
    is_lower = change.endswith("'c1')")
    drift = only(await shop.leaves(Kind.ORDER_FORGED if is_lower else Kind.EVENT_DIFFERS))
    assert drift.order == order
    assert is_lower or drift.seq == seq
    assert await row_of(shop, order) == before


# -- a stream that repeats itself -----------------------------------------------------------------


async def test_events_that_follow_one_that_the_stream_has_again(shop: Shop) -> None:
    again, fields = shop.entries()[-1]
    at, _, seq = again.decode().partition("-")
    await asyncio.sleep(0.005)
    for number in range(2):
        await shop.engine.reserve(shop.sale.id, f"n{number}", "k", {"a": 1})
    await shop.keep()
    # The same once more, a moment later and right before what follows it.
    repeated = (f"{int(at) + 1}-{seq}".encode(), fields)
    entries, key = shop.entries(), stream_key(shop.sale.id)
    entries.insert([entry_id for entry_id, _ in entries].index(again) + 1, repeated)
    shop.client.delete(key)
    for entry_id, values in entries:
        shop.client.xadd(key, values, id=entry_id)  # type: ignore[arg-type]
    drift = only(await shop.leaves(Kind.EVENT_DIFFERS))
    assert (drift.seq, drift.last_seq) == (int(seq), int(seq))
