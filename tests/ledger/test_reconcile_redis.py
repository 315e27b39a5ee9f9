"""Reconcile: faults of Redis and of the stream, each made on purpose and called by its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import redis
from sqlalchemy import text

from seckill.engine import Engine
from seckill.errors import InvalidInput, LedgerUnavailable, RedisUnavailable, UnknownSale
from seckill.keys import refusals_key, stream_key
from seckill.ledger import Ledger, fence
from seckill.ledger.drift import DriftKind
from seckill.ledger.rebuild import rebuild
from seckill.ledger.reconcile import reconcile
from seckill.ledger.reconcile_sides import RedisSide
from seckill.ledger.reconcile_stock import OrderCount, compare_stock
from tests.ledger.shop import Shop, only, open_shop, row_of, trim_all
from tests.support import be_unaware

Kind = DriftKind


@pytest.fixture
async def shop(engine: Engine, client: redis.Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    """On SQLite."""
    async with open_shop(engine, client, f"sqlite:///{tmp_path}/ledger.db") as shop:
        yield shop


# -- the stream's faults --------------------------------------------------------------------------


async def test_a_trimmed_stream_is_no_drift(shop: Shop) -> None:
    await trim_all(shop)
    report = await shop.is_clean()
    assert report.stream_from == 0
    await shop.engine.reserve(shop.sale.id, "new", "k", {"a": 1})
    await shop.keep()
    assert (await shop.is_clean()).stream_from == report.seq + 1


async def test_an_event_that_nobody_has(shop: Shop) -> None:
    await trim_all(shop)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq BETWEEN 2 AND 3")
    drift = only(await shop.leaves(Kind.EVENT_LOST))
    assert (drift.seq, drift.last_seq) == (2, 3)


async def test_an_event_that_vanished_from_the_stream(shop: Shop) -> None:
    """Not by a trim, which says how far it went."""
    entry_id, fields = shop.entries()[4]
    assert len(fields) == 1
    shop.client.xdel(stream_key(shop.sale.id), entry_id)
    drift = only(await shop.leaves(Kind.EVENT_MISSING_IN_STREAM))
    assert (drift.seq, drift.last_seq) == (5, 5)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 5")
    await shop.finds(Kind.EVENT_LOST)


@pytest.mark.parametrize("keep", [3, 0])
async def test_a_stream_that_was_trimmed_by_hand(shop: Shop, keep: int) -> None:
    entries = len(shop.entries())
    shop.client.xtrim(stream_key(shop.sale.id), maxlen=keep, approximate=False)
    drift = only(await shop.leaves(Kind.EVENT_MISSING_IN_STREAM))
    assert (drift.seq, drift.last_seq) == (1, entries - keep)


async def test_two_stories_of_one_event(shop: Shop) -> None:
    await shop.sql("UPDATE seckill_events SET body = 'x' WHERE sale = :s AND seq = 2")
    drift = only(await shop.leaves(Kind.EVENT_DIFFERS))
    assert (drift.seq, drift.last_seq) == (2, 2)


async def test_an_event_that_can_not_be_read(shop: Shop) -> None:
    await trim_all(shop)
    await shop.sql("UPDATE seckill_events SET kind = 'order_stolen' WHERE sale = :s AND seq = 5")
    assert only(await shop.leaves(Kind.EVENT_UNREADABLE)).seq == 5


async def test_the_gap_before_a_rebuild_is_none(shop: Shop) -> None:
    """What Redis lost is past the ledger's last event; the rebuilt sale goes on behind that."""
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    shop.client.delete(*shop.keys)
    await shop.finds(Kind.SALE_MISSING_IN_REDIS)
    await fence.check(shop.engine, shop.ledger)
    drift = only(await shop.leaves(Kind.REDIS_BEHIND))
    assert drift.text.startswith("the sale is fenced: lost: ")
    assert (await rebuild(shop.engine, shop.ledger, shop.sale.id)).done
    await shop.keep()
    report = await shop.is_clean()
    assert (report.stream_from, report.orders) == (report.seq, 7)
    await shop.engine.resume(shop.sale.id)
    await shop.engine.reserve(shop.sale.id, "new", "k", {"a": 1})
    await shop.keep()
    await shop.is_clean()
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = :q", q=seq - 1)
    lost = only(await shop.leaves(Kind.EVENT_LOST))
    assert (lost.seq, lost.last_seq) == (seq - 1, seq - 1)


# -- Redis' faults --------------------------------------------------------------------------------


async def test_an_order_that_redis_lost(shop: Shop) -> None:
    shop.client.hdel(shop.keys[3], shop.orders["confirmed"])
    kinds = (Kind.ORDER_MISSING_IN_REDIS, Kind.STOCK_DIFFERS, Kind.PURSE_DIFFERS)
    report = await shop.leaves(*kinds)
    assert report.drifts[0].order == shop.orders["confirmed"]
    assert f"seckill rebuild {shop.sale.id}" in Kind.ORDER_MISSING_IN_REDIS.remedy(shop.sale.id)


async def test_an_order_that_redis_set_back(shop: Shop) -> None:
    order = shop.orders["paying"]
    record = shop.client.hget(shop.keys[3], order)
    assert record is not None
    shop.client.hset(shop.keys[3], order, b"h1" + bytes(record)[2:])
    assert only(await shop.leaves(Kind.ORDER_BEHIND_IN_REDIS)).order == order


async def test_an_order_that_was_edited_in_redis(shop: Shop) -> None:
    order = shop.orders["held"]
    record = bytes(shop.client.hget(shop.keys[3], order) or b"")
    shop.client.hset(shop.keys[3], order, record[:8] + b"7" + record[8:])
    drift = only(await shop.leaves(Kind.ORDER_FORGED))
    assert drift.order == order
    assert "not so its row" in drift.text


async def test_an_order_that_was_edited_and_whose_events_are_gone(shop: Shop) -> None:
    order = shop.orders["held"]
    await trim_all(shop)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    await shop.edit("orders", "record = REPLACE(record, 'h1', 'c1')", "id = :o", o=order)
    report = await shop.leaves(Kind.ORDER_DIFFERS, Kind.EVENT_LOST)
    assert next(drift for drift in report.drifts if drift.order).order == order


@pytest.mark.parametrize("field", ["held", "not-an-id"])
async def test_a_record_that_is_none(shop: Shop, field: str) -> None:
    shop.client.hset(shop.keys[3], shop.orders.get(field, field), "rubbish")
    report = await shop.compare(fix=True)
    assert report.left[Kind.ORDER_UNREADABLE] == 1
    others = {Kind.STOCK_DIFFERS, Kind.PURSE_DIFFERS}
    assert set(report.left) <= {Kind.ORDER_UNREADABLE, *others}


@pytest.mark.parametrize("name", ["available", "held", "confirmed"])
async def test_stock_that_its_orders_do_not_explain(shop: Shop, name: str) -> None:
    shop.client.hincrby(shop.keys[1], f"1:{name}", 1)
    drift = only(await shop.leaves(Kind.STOCK_DIFFERS))
    assert drift.sku == "b"
    assert drift.text.startswith(f"{name}: Redis ")


@pytest.mark.parametrize("names", [("total",), ("total", "available")])
async def test_a_total_that_nothing_explains(shop: Shop, names: tuple[str, ...]) -> None:
    for name in names:
        shop.client.hincrby(shop.keys[1], f"0:{name}", 5)
    drift = only(await shop.leaves(Kind.TOTAL_DIFFERS))
    assert (drift.sku, drift.text) == (
        "a",
        "Redis: 14; 10 at first, +0 by stock changes, -1 by refunds make 9",
    )


async def test_stock_is_counted_anew_before_it_is_called_wrong(shop: Shop) -> None:
    side = RedisSide(shop.engine._calls.client_of("sk:sales"), shop.sale.id)
    start = await side.picture()
    assert start is not None
    assert await compare_stock(side, start.known, start, OrderCount()) == []
    # A scan may show an order twice.
    twice = OrderCount()
    async for records in side.scan():
        twice.feed(records)
        twice.feed(records)
    assert twice.uses({}, start.orders).total() == start.orders


async def test_a_state_that_was_edited(shop: Shop) -> None:
    shop.client.hset(shop.keys[0], mapping={"state": "paused", "reason": "who knows"})
    drift = only(await shop.leaves(Kind.STATE_DIFFERS))
    assert drift.text == "Redis: paused (who knows); by its events: open"


async def test_a_sale_that_redis_lost(shop: Shop) -> None:
    shop.client.delete(*shop.keys)
    await shop.leaves(Kind.SALE_MISSING_IN_REDIS)
    # That it was removed is only believed of a sale that was settled.
    await shop.edit("sales", "removed_at_ms = 5")
    await shop.finds(Kind.SALE_MISSING_IN_REDIS, Kind.SALE_ROW_DIFFERS)
    await shop.edit("sales", "state = 'settled', state_seq = 1000000")
    await shop.finds(Kind.SALE_MISSING_IN_REDIS, Kind.SALE_ROW_DIFFERS)
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.SALE_ROW_DIFFERS: 1}
    await shop.leaves(Kind.SALE_MISSING_IN_REDIS)
    with pytest.raises(UnknownSale):
        await reconcile(shop.engine, shop.ledger, "nobody-knows-it")
    with pytest.raises(InvalidInput):
        await reconcile(shop.engine, shop.ledger, "no sale")


async def test_a_sale_that_was_made_anew(shop: Shop) -> None:
    shop.client.delete(*shop.keys)
    await asyncio.sleep(0.002)  # `made` holds the time in milliseconds.
    await shop.engine.create(shop.sale)
    await shop.leaves(Kind.SALE_MADE_ANEW)


async def test_redis_came_back_with_less(shop: Shop) -> None:
    """From an old file: the last events never happened there."""
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    dumps = [(key, shop.client.dump(key)) for key in shop.keys]
    await shop.engine.reserve(shop.sale.id, "new", "k", {"a": 1})
    await shop.keep()
    for key, dumped in dumps:
        if dumped:
            shop.client.restore(key, 0, dumped, replace=True)  # type: ignore[no-untyped-call]
    be_unaware(shop.engine, shop.sale.id)
    drift = only(await shop.leaves(Kind.REDIS_BEHIND))
    assert f"event {seq}, and was seen at {seq + 1}" in drift.text
    # And went on, with other events than the ledger has.
    for buyer in ("other", "others"):
        await shop.engine.reserve(shop.sale.id, buyer, "k", {"a": 1})
    key = stream_key(shop.sale.id)
    [[_, entries]] = shop.client.xreadgroup("ledger", "w", {key: ">"})
    shop.client.xack(key, "ledger", *(entry_id for entry_id, _ in entries))
    drift = only(await shop.leaves(Kind.SALE_FORKED))
    assert (drift.seq, drift.last_seq) == (seq + 1, seq + 1)


async def test_redis_was_seen_further_than_the_ledger_is(shop: Shop) -> None:
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    await shop.ledger.seen(shop.sale.id, seq)
    await shop.is_clean()
    await shop.ledger.seen(shop.sale.id, seq + 3)
    await shop.leaves(Kind.REDIS_BEHIND)


async def test_a_sale_that_was_removed(shop: Shop) -> None:
    for name in ("held", "paying"):
        await shop.engine.release(shop.sale.id, shop.orders[name])
    await shop.engine.close(shop.sale.id)
    await shop.keep()
    await shop.is_clean()
    shop.client.delete(*shop.keys)
    assert (await shop.is_clean()).skus == 0
    await shop.edit("sales", "removed_at_ms = 5")
    await shop.is_clean()


async def test_a_sale_whose_row_hides_it_is_fenced_all_the_same(shop: Shop) -> None:
    """By its row it is over and gone; by its events it sells."""
    await shop.edit(
        "sales", "state = 'settled', state_seq = 1000000, ends_ms = 5, removed_at_ms = 5"
    )
    assert not await fence.check(shop.engine, shop.ledger)
    shop.client.delete(*shop.keys)
    [fenced] = await fence.check(shop.engine, shop.ledger)
    assert fenced.sale == shop.sale.id
    report = await shop.compare(fix=True)
    assert (set(report.left), set(report.mended)) == ({Kind.REDIS_BEHIND}, {Kind.SALE_ROW_DIFFERS})


# -- what its orders do not explain ---------------------------------------------------------------


async def test_stock_that_went_with_the_note_of_its_change(shop: Shop) -> None:
    """All of Redis fits together again; only the events know of three more units."""
    shop.client.hdel(shop.keys[0], "stock:more")
    shop.client.hincrby(shop.keys[1], "1:total", -3)
    shop.client.hincrby(shop.keys[1], "1:available", -3)
    report = await shop.leaves(Kind.TOTAL_DIFFERS, Kind.SETTING_DIFFERS)
    total, setting = report.drifts
    assert (total.sku, total.text) == (
        "b",
        "Redis: 9; 11 at first, +2 by stock changes, -1 by refunds make 12",
    )
    assert "change of stock 'more': Redis nothing, by its events 1:3" in setting.text


@pytest.mark.parametrize("fields", [("total",), ("total", "available", "held", "confirmed")])
async def test_stock_that_was_removed(shop: Shop, fields: tuple[str, ...]) -> None:
    shop.client.hdel(shop.keys[1], *[f"1:{name}" for name in fields])
    report = await shop.compare(fix=True)
    assert {drift.sku for drift in report.drifts} == {"b"}
    assert report.left[Kind.TOTAL_DIFFERS] == 1
    assert not report.mended


async def test_a_change_of_stock_that_would_be_done_again(shop: Shop) -> None:
    shop.client.hdel(shop.keys[0], "stock:more")
    assert "'more'" in only(await shop.leaves(Kind.SETTING_DIFFERS)).text
    shop.client.hset(shop.keys[0], "stock:more", "rubbish")
    assert "rubbish" in only(await shop.leaves(Kind.SETTING_DIFFERS)).text


@pytest.mark.parametrize(
    ("name", "value"),
    [("hold_ms", 5), ("ends_ms", 2**41), ("max_lapsed", 9), ("limit_per_buyer", 1)],
)
async def test_a_setting_that_was_edited(shop: Shop, name: str, value: int) -> None:
    shop.client.hset(shop.keys[0], name, value)
    assert only(await shop.leaves(Kind.SETTING_DIFFERS)).text.startswith(f"{name}: Redis '{value}'")


async def test_a_limit_that_was_edited(shop: Shop) -> None:
    shop.client.hset(shop.keys[1], "0:limit", 7)
    assert only(await shop.leaves(Kind.SETTING_DIFFERS)).sku == "a"


async def test_a_definition_that_was_edited_is_copied_nowhere(shop: Shop) -> None:
    """Prices come from it: with another one every row would look wrong, and be mended."""
    before = await shop.ledger.sale(shop.sale.id), await row_of(shop, shop.orders["confirmed"])
    items = tuple(msgspec.structs.replace(item, price_fen=1) for item in shop.sale.items)
    cheap = msgspec.structs.replace(shop.sale, items=items)
    shop.client.hset(
        shop.keys[0],
        mapping={"definition": cheap.definition(), "definition_id": cheap.definition_id},
    )
    await shop.leaves(Kind.SETTING_DIFFERS)
    assert before == (
        await shop.ledger.sale(shop.sale.id),
        await row_of(shop, shop.orders["confirmed"]),
    )


async def test_a_first_event_that_was_edited_is_mended_by_nothing(shop: Shop) -> None:
    """Whichever of the two is right, no row may be written by it."""
    before = await row_of(shop, shop.orders["confirmed"])
    cheap = "body = REPLACE(body, '9900', '1')"
    await shop.edit("events", cheap, "seq = 1")
    report = await shop.compare(fix=True)
    assert report.left[Kind.EVENT_DIFFERS] == 1
    assert not report.mended
    assert await row_of(shop, shop.orders["confirmed"]) == before


# -- queues and purses ----------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "name"), [(4, "held"), (5, "paying")])
async def test_a_queue_that_was_deleted(shop: Shop, place: int, name: str) -> None:
    shop.client.delete(shop.keys[place])
    report = await shop.mends(Kind.ORDER_NOT_QUEUED)
    assert only(report).order == shop.orders[name]
    assert shop.client.lrange(shop.keys[place], 0, -1) == [shop.orders[name].encode()]


async def test_an_entry_that_was_taken_out_of_a_queue(shop: Shop) -> None:
    """While the sale goes on: it gets its place in order of deadline back."""
    new = [await shop.engine.reserve(shop.sale.id, f"n{n}", "k", {"b": 1}) for n in range(3)]
    orders = [outcome.order.id for outcome in new if outcome.order]
    await shop.keep()
    shop.client.lrem(shop.keys[4], 0, orders[1])
    assert only(await shop.mends(Kind.ORDER_NOT_QUEUED)).order == orders[1]
    queue = [entry.decode() for entry in shop.client.lrange(shop.keys[4], 0, -1)]  # type: ignore[union-attr]
    records = shop.client.hmget(shop.keys[3], [order for order in queue if order in orders])
    deadlines = [int(bytes(record or b"").partition(b"|")[0][8:]) for record in records]  # type: ignore[union-attr]
    assert deadlines == sorted(deadlines)
    assert len(deadlines) == 3
    assert queue.count(orders[1]) == 1


@pytest.mark.parametrize("purse", ["", None, "0:9", "what is this"])
async def test_a_purse_that_was_edited(shop: Shop, purse: str | None) -> None:
    if purse is None:
        shop.client.hdel(shop.keys[2], "held")
    else:
        shop.client.hset(shop.keys[2], "held", purse)
    text = only(await shop.leaves(Kind.PURSE_DIFFERS)).text
    there = "nothing" if purse is None else repr(purse)
    assert text == f"buyer 'held': Redis {there}, by his orders '0,1'"


async def test_purses_that_are_all_gone_and_one_of_nobody(shop: Shop) -> None:
    shop.client.delete(shop.keys[2])
    assert (await shop.leaves(Kind.PURSE_DIFFERS)).left == {Kind.PURSE_DIFFERS: 7}
    shop.client.hset(shop.keys[2], "nobody", "0")
    assert (await shop.finds(Kind.PURSE_DIFFERS)).left == {Kind.PURSE_DIFFERS: 8}


# -- refusals -------------------------------------------------------------------------------------


async def test_refusals_that_are_no_numbers(shop: Shop) -> None:
    key = refusals_key(shop.sale.id)
    shop.client.hset(key, mapping={"sold_out": 5, "paused": "-1", "ended": "many"})
    report = await shop.leaves(Kind.REFUSALS_UNREADABLE)
    assert [drift.text for drift in report.drifts] == [
        "field 'ended' is 'many'",
        "field 'paused' is '-1'",
    ]
    # Those that are counts are still good enough for the row.
    await shop.edit("sales", "refusals = '{'")
    report = await shop.compare(fix=True)
    assert (set(report.left), set(report.mended)) == (
        {Kind.REFUSALS_UNREADABLE},
        {Kind.SALE_ROW_DIFFERS},
    )
    assert (await shop.ledger.sale(shop.sale.id))["refusals"] == '{"sold_out":5}'
    shop.client.delete(key)
    shop.client.set(key, "no hash")
    assert "they are no hash" in only(await shop.leaves(Kind.REFUSALS_UNREADABLE)).text


# -- a side that is away --------------------------------------------------------------------------


async def test_a_side_that_is_away(shop: Shop, tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/empty.db") as empty:
        async with empty.engine.begin() as connection:
            await connection.execute(text("DROP TABLE seckill_sales"))
        with pytest.raises(Exception, match="no such table"):
            await reconcile(shop.engine, empty, shop.sale.id)
    away = Engine("redis://127.0.0.1:1/0")
    with pytest.raises(RedisUnavailable):
        await reconcile(away, shop.ledger, shop.sale.id)
    gone = Ledger("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable):
        await reconcile(shop.engine, gone, shop.sale.id)
    await gone.aclose()
