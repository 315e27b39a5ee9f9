"""Reconcile: each kind of drift is made on purpose and called by its name, and ``fix`` mends what
it says; and a sale that runs raises no alarm."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import redis
from sqlalchemy import text

from seckill.dead import Letter
from seckill.engine import Engine
from seckill.errors import InvalidInput, LedgerUnavailable, RedisUnavailable, UnknownSale
from seckill.keys import group_keys, shard_keys, stream_key
from seckill.ledger import Ledger, fence
from seckill.ledger.drift import KINDS, DriftKind, Report, Side
from seckill.ledger.rebuild import rebuild
from seckill.ledger.reconcile import reconcile
from seckill.ledger.reconcile_sides import RedisSide
from seckill.ledger.reconcile_stock import OrderCount, compare_stock
from seckill.ledger.run import LedgerRunner
from seckill.order import Wish
from seckill.sale import Sale
from seckill.trim import trim
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.support import make_item, make_sale

Kind = DriftKind
PATIENCE_S = 0.3


class Shop(NamedTuple):
    """A sale with orders in every state, and a ledger that has them all."""

    engine: Engine
    ledger: Ledger
    sale: Sale
    client: redis.Redis
    orders: dict[str, str]

    @property
    def keys(self) -> tuple[str, ...]:
        return shard_keys(self.sale.id)

    async def sql(self, statement: str, **values: Any) -> None:
        async with self.ledger.engine.begin() as connection:
            done = await connection.execute(text(statement), {"s": self.sale.id} | values)
            assert done.rowcount > 0, "the fault was not made"

    async def edit(self, table: str, change: str, which: str = "1 = 1", **values: Any) -> None:
        await self.sql(
            f"UPDATE seckill_{table} SET {change} WHERE sale = :s AND {which}",  # noqa: S608 - ours
            **values,
        )

    async def keep(self) -> None:
        """A runner writes everything there is."""
        await LedgerRunner(self.engine, self.ledger, sales=(self.sale.id,), once=True).run()

    async def compare(self, *, fix: bool = False) -> Report:
        return await reconcile(
            self.engine, self.ledger, self.sale.id, fix=fix, patience_s=PATIENCE_S
        )

    async def finds(self, *kinds: DriftKind) -> Report:
        """Exactly these kinds are found; nothing is written."""
        report = await self.compare()
        assert set(report.left) == set(kinds), report.drifts
        assert not report.mended
        return report

    async def mends(self, *kinds: DriftKind) -> Report:
        """These kinds are found and mended, and afterwards all is well."""
        await self.finds(*kinds)
        report = await self.compare(fix=True)
        assert not report.left, report.drifts
        assert set(report.mended) == set(kinds)
        assert all(drift.mended for drift in report.drifts)
        await self.is_clean()
        assert (await verify(self.engine, self.sale.id)).ok
        return report

    async def leaves(self, *kinds: DriftKind) -> Report:
        """These kinds are found, and are no business of ``fix``."""
        await self.finds(*kinds)
        report = await self.compare(fix=True)
        assert set(report.left) == set(kinds), report.drifts
        assert not report.mended
        return report

    async def is_clean(self) -> Report:
        report = await self.compare()
        assert report.ok, report.drifts
        assert report.decided, report.undecided
        return report

    def entries(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        return self.client.xrange(stream_key(self.sale.id))


OpenShop = Callable[[str], Awaitable[Shop]]


@asynccontextmanager
async def _shop(engine: Engine, client: redis.Redis, url: str) -> AsyncIterator[Shop]:
    items = tuple(make_item(sku, total=10 + place) for place, sku in enumerate("ab"))
    sale = make_sale(items=items)
    await engine.create(sale)
    await engine.open(sale.id)
    orders = {}
    for name in ("held", "paying", "confirmed", "late", "refunded", "gone", "released"):
        outcome = await engine.reserve(sale.id, name, "k", {"a": 1, "b": 1}, attrs=f"{name}|x|y")
        assert outcome.order is not None
        orders[name] = outcome.order.id
    await engine.begin_payment(sale.id, orders["paying"])
    for name in ("confirmed", "refunded", "gone"):
        await engine.confirm(sale.id, orders[name], f"pay-{name}")
    await engine.refund(sale.id, orders["refunded"], "r1", return_units=True, return_limit=True)
    await engine.refund(sale.id, orders["gone"], "r2", return_units=False, return_limit=False)
    for name in ("released", "late"):
        await engine.release(sale.id, orders[name])
    await engine.confirm(sale.id, orders["late"], "too-late")
    await engine.add_stock(sale.id, "b", 3, key="more")
    await engine.add_stock(sale.id, "b", -1, key="less")
    await engine.pause(sale.id, "stock | check")
    await engine.resume(sale.id)
    async with Ledger(url) as ledger:
        shop = Shop(engine, ledger, sale, client, orders)
        await shop.keep()
        yield shop


@pytest.fixture
async def shop(engine: Engine, client: redis.Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    """On SQLite."""
    async with _shop(engine, client, f"sqlite:///{tmp_path}/ledger.db") as shop:
        yield shop


@pytest.fixture
async def each_shop(engine: Engine, client: redis.Redis, database_url: str) -> AsyncIterator[Shop]:
    """On each of the databases."""
    async with _shop(engine, client, database_url) as shop:
        yield shop


def _only(report: Report) -> Any:
    [drift] = report.drifts
    return drift


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
        # What fix mends is always the ledger's.
        assert not kind.fixable or (kind.side is Side.LEDGER and "--fix" in kind.remedy("s-1"))


# -- the ledger's faults, which fix mends ---------------------------------------------------------


async def test_an_order_without_a_row(each_shop: Shop) -> None:
    order = each_shop.orders["confirmed"]
    before = await _row(each_shop, order)
    await each_shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    report = await each_shop.mends(Kind.ORDER_MISSING_IN_LEDGER)
    assert _only(report).order == order
    assert await _row(each_shop, order) == before


async def test_a_row_that_stayed_behind(each_shop: Shop) -> None:
    order = each_shop.orders["refunded"]
    before = await _row(each_shop, order)
    body = next(row["body"] for row in await _events(each_shop) if row["subject"] == order)
    held = "|".join(body.split("|")[1:4])
    await each_shop.sql(
        "UPDATE seckill_orders SET version = 1, state = 'held', payment = '', refund = '',"
        " record = :r WHERE sale = :s AND id = :o",
        o=order,
        r=held,
    )
    assert _only(await each_shop.mends(Kind.ORDER_ROW_DIFFERS)).order == order
    assert await _row(each_shop, order) == before


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
async def test_an_edited_row(shop: Shop, name: str, change: str) -> None:
    before = await _row(shop, shop.orders[name])
    await shop.edit("orders", change, "id = :o", o=shop.orders[name])
    assert await _row(shop, shop.orders[name]) != before
    report = await shop.mends(Kind.ORDER_ROW_DIFFERS)
    assert _only(report).order == shop.orders[name]
    assert await _row(shop, shop.orders[name]) == before


async def test_a_hole_in_the_events(each_shop: Shop) -> None:
    before = await _events(each_shop)
    await each_shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq BETWEEN 5 AND 7")
    await each_shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 1")
    report = await each_shop.mends(Kind.EVENT_MISSING_IN_LEDGER)
    assert {(drift.seq, drift.last_seq) for drift in report.drifts} == {(1, 1), (5, 7)}
    assert report.mended == {Kind.EVENT_MISSING_IN_LEDGER: 4}
    assert await _events(each_shop) == before


async def test_an_order_of_which_the_ledger_has_nothing(shop: Shop) -> None:
    """Its events come from the stream, and its row with them."""
    order = shop.orders["refunded"]
    before = await _row(shop, order)
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    await shop.finds(Kind.ORDER_MISSING_IN_LEDGER, Kind.EVENT_MISSING_IN_LEDGER)
    report = await shop.compare(fix=True)
    assert report.ok
    await shop.is_clean()
    assert await _row(shop, order) == before


async def test_what_is_gone_from_the_stream_comes_from_redis_record(shop: Shop) -> None:
    order = shop.orders["gone"]
    await _trim(shop)
    await shop.sql("DELETE FROM seckill_orders WHERE sale = :s AND id = :o", o=order)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    lost = await shop.finds(Kind.ORDER_MISSING_IN_LEDGER, Kind.EVENT_LOST)
    assert lost.left[Kind.EVENT_LOST] == 3
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_MISSING_IN_LEDGER: 1}
    # The hole in the history stays.
    assert set((await shop.compare()).left) == {Kind.EVENT_LOST}
    row = await _row(shop, order)
    assert (row["state"], row["version"], row["payment"], row["refund"]) == (
        "refunded", 3, "pay-gone", "r2",
    )  # fmt: skip
    assert (row["buyer"], row["units"], row["held_ms"], row["changed_ms"]) == ("gone", 2, 0, 0)


async def test_an_edited_row_whose_events_are_gone(shop: Shop) -> None:
    """What its record says of it is left, and Redis agrees with that."""
    order = shop.orders["confirmed"]
    before = await _row(shop, order)
    await _trim(shop)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND subject = :o", o=order)
    await shop.edit("orders", "payment = 'somebody-elses'", "id = :o", o=order)
    await shop.finds(Kind.ORDER_ROW_DIFFERS, Kind.EVENT_LOST)
    report = await shop.compare(fix=True)
    assert report.mended == {Kind.ORDER_ROW_DIFFERS: 1}
    assert set((await shop.compare()).left) == {Kind.EVENT_LOST}
    assert await _row(shop, order) == before


async def test_a_row_behind_an_event_that_is_gone(shop: Shop) -> None:
    """The last event of an order is in neither place: Redis' record knows more than the row."""
    order = shop.orders["refunded"]
    await _trim(shop)
    confirmed = [row for row in await _events(shop) if row["subject"] == order][1]
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
    row = await _row(shop, order)
    assert (row["state"], row["version"], row["attrs"]) == ("refunded", 3, "refunded|x|y")


@pytest.mark.parametrize(
    "change",
    ["state = 'closed'", "state = 'paused', reason = 'x'", "state_seq = 1", "opens_ms = 5",
     "origin_ms = 5", "state = 'paused', state_seq = 3"],
)  # fmt: skip
async def test_the_row_of_a_sale(shop: Shop, change: str) -> None:
    before = await shop.ledger.sale(shop.sale.id)
    await shop.edit("sales", change)
    await shop.mends(Kind.SALE_ROW_DIFFERS)
    assert await shop.ledger.sale(shop.sale.id) == before


@pytest.mark.parametrize("change", ["total = 99", "price_fen = 1", "total_seq = 2, total = 12"])
async def test_the_row_of_an_item(shop: Shop, change: str) -> None:
    await shop.edit("items", change, "sku = 'b'")
    assert _only(await shop.mends(Kind.ITEM_ROW_DIFFERS)).sku == "b"


async def test_an_item_without_a_row(each_shop: Shop) -> None:
    await each_shop.sql("DELETE FROM seckill_items WHERE sale = :s AND sku = 'b'")
    assert _only(await each_shop.mends(Kind.ITEM_ROW_DIFFERS)).sku == "b"


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
    drift = _only(await shop.leaves(Kind.LEDGER_BEHIND))
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
    drift = _only(report)
    assert (drift.seq, drift.last_seq, report.events) == (seq + 1, seq + 4, seq)
    assert report.left == {Kind.LEDGER_BEHIND: 4}


async def test_a_consumer_that_is_stuck(shop: Shop) -> None:
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    await shop.engine.reserve_many(
        shop.sale.id, [Wish(f"n{number}", "k", {"a": 1}) for number in range(5)]
    )
    key = stream_key(shop.sale.id)
    shop.client.xreadgroup("ledger", "worker-7", {key: ">"}, count=10)
    drift = _only(await shop.leaves(Kind.LEDGER_BEHIND))
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
    rows = [row for row in await _events(shop) if row["subject"] == order]
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


# -- the stream's faults --------------------------------------------------------------------------


async def test_a_trimmed_stream_is_no_drift(shop: Shop) -> None:
    await _trim(shop)
    report = await shop.is_clean()
    assert report.stream_from == 0
    await shop.engine.reserve(shop.sale.id, "new", "k", {"a": 1})
    await shop.keep()
    assert (await shop.is_clean()).stream_from == report.seq + 1


async def test_an_event_that_nobody_has(shop: Shop) -> None:
    await _trim(shop)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq BETWEEN 2 AND 3")
    drift = _only(await shop.leaves(Kind.EVENT_LOST))
    assert (drift.seq, drift.last_seq) == (2, 3)


async def test_an_event_that_vanished_from_the_stream(shop: Shop) -> None:
    """Not by a trim, which says how far it went."""
    entry_id, fields = shop.entries()[4]
    assert len(fields) == 1
    shop.client.xdel(stream_key(shop.sale.id), entry_id)
    drift = _only(await shop.leaves(Kind.EVENT_MISSING_IN_STREAM))
    assert (drift.seq, drift.last_seq) == (5, 5)
    await shop.sql("DELETE FROM seckill_events WHERE sale = :s AND seq = 5")
    await shop.finds(Kind.EVENT_LOST)


@pytest.mark.parametrize("keep", [3, 0])
async def test_a_stream_that_was_trimmed_by_hand(shop: Shop, keep: int) -> None:
    entries = len(shop.entries())
    shop.client.xtrim(stream_key(shop.sale.id), maxlen=keep, approximate=False)
    drift = _only(await shop.leaves(Kind.EVENT_MISSING_IN_STREAM))
    assert (drift.seq, drift.last_seq) == (1, entries - keep)


async def test_two_stories_of_one_event(shop: Shop) -> None:
    await shop.sql("UPDATE seckill_events SET body = 'x' WHERE sale = :s AND seq = 2")
    drift = _only(await shop.leaves(Kind.EVENT_DIFFERS))
    assert (drift.seq, drift.last_seq) == (2, 2)


async def test_an_event_that_can_not_be_read(shop: Shop) -> None:
    await _trim(shop)
    await shop.sql("UPDATE seckill_events SET kind = 'order_stolen' WHERE sale = :s AND seq = 5")
    assert _only(await shop.leaves(Kind.EVENT_UNREADABLE)).seq == 5


async def test_the_gap_before_a_rebuild_is_none(shop: Shop) -> None:
    """What Redis lost is past the ledger's last event; the rebuilt sale goes on behind that."""
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    shop.client.delete(*shop.keys)
    await shop.finds(Kind.SALE_MISSING_IN_REDIS)
    await fence.check(shop.engine, shop.ledger)
    drift = _only(await shop.leaves(Kind.REDIS_BEHIND))
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
    lost = _only(await shop.leaves(Kind.EVENT_LOST))
    assert (lost.seq, lost.last_seq) == (seq - 1, seq - 1)


# -- Redis' faults --------------------------------------------------------------------------------


async def test_an_order_that_redis_lost(shop: Shop) -> None:
    shop.client.hdel(shop.keys[3], shop.orders["confirmed"])
    report = await shop.leaves(Kind.ORDER_MISSING_IN_REDIS, Kind.STOCK_DIFFERS)
    assert report.drifts[0].order == shop.orders["confirmed"]
    assert f"seckill rebuild {shop.sale.id}" in Kind.ORDER_MISSING_IN_REDIS.remedy(shop.sale.id)


async def test_an_order_that_redis_set_back(shop: Shop) -> None:
    order = shop.orders["paying"]
    record = shop.client.hget(shop.keys[3], order)
    assert record is not None
    shop.client.hset(shop.keys[3], order, b"h1" + bytes(record)[2:])
    assert _only(await shop.leaves(Kind.ORDER_BEHIND_IN_REDIS)).order == order


async def test_an_order_that_was_edited_in_redis(shop: Shop) -> None:
    order = shop.orders["held"]
    record = bytes(shop.client.hget(shop.keys[3], order) or b"")
    shop.client.hset(shop.keys[3], order, record + b"x")
    drift = _only(await shop.leaves(Kind.ORDER_DIFFERS))
    assert drift.order == order
    assert "the ledger's events agree with the ledger's row" in drift.text


@pytest.mark.parametrize("field", ["held", "not-an-id"])
async def test_a_record_that_is_none(shop: Shop, field: str) -> None:
    shop.client.hset(shop.keys[3], shop.orders.get(field, field), "rubbish")
    report = await shop.compare(fix=True)
    assert report.left[Kind.ORDER_UNREADABLE] == 1
    assert set(report.left) <= {Kind.ORDER_UNREADABLE, Kind.STOCK_DIFFERS}


@pytest.mark.parametrize("name", ["available", "held", "confirmed"])
async def test_stock_that_its_orders_do_not_explain(shop: Shop, name: str) -> None:
    shop.client.hincrby(shop.keys[1], f"1:{name}", 1)
    drift = _only(await shop.leaves(Kind.STOCK_DIFFERS))
    assert drift.sku == "b"
    assert drift.text.startswith(f"{name}: Redis ")


@pytest.mark.parametrize("names", [("total",), ("total", "available")])
async def test_a_total_that_nothing_explains(shop: Shop, names: tuple[str, ...]) -> None:
    for name in names:
        shop.client.hincrby(shop.keys[1], f"0:{name}", 5)
    drift = _only(await shop.leaves(Kind.TOTAL_DIFFERS))
    assert (drift.sku, drift.text) == (
        "a",
        "Redis: 14; 10 at first, +0 by stock changes, -1 by refunds make 9",
    )


async def test_stock_is_counted_anew_before_it_is_called_wrong(shop: Shop) -> None:
    side = RedisSide(shop.engine._calls.client, shop.sale.id)
    start = await side.picture()
    assert start is not None
    assert await compare_stock(side, start, OrderCount()) == []
    # A scan may show an order twice.
    twice = OrderCount()
    async for records in side.scan():
        twice.feed(records)
        twice.feed(records)
    assert twice.uses({}, start.orders).total() == start.orders


async def test_a_state_that_was_edited(shop: Shop) -> None:
    shop.client.hset(shop.keys[0], mapping={"state": "paused", "reason": "who knows"})
    drift = _only(await shop.leaves(Kind.STATE_DIFFERS))
    assert drift.text == "Redis: paused (who knows); by its events: open"


async def test_a_sale_that_redis_lost(shop: Shop) -> None:
    shop.client.delete(*shop.keys)
    await shop.leaves(Kind.SALE_MISSING_IN_REDIS)
    await shop.sql("UPDATE seckill_sales SET removed_at_ms = 5 WHERE sale = :s")
    assert (await shop.is_clean()).skus == 0
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
    drift = _only(await shop.leaves(Kind.REDIS_BEHIND))
    assert f"event {seq}, and was seen at {seq + 1}" in drift.text
    # And went on, with other events than the ledger has.
    for buyer in ("other", "others"):
        await shop.engine.reserve(shop.sale.id, buyer, "k", {"a": 1})
    key = stream_key(shop.sale.id)
    [[_, entries]] = shop.client.xreadgroup("ledger", "w", {key: ">"})
    shop.client.xack(key, "ledger", *(entry_id for entry_id, _ in entries))
    report = await shop.compare()
    assert report.drifts[0].kind is Kind.EVENT_DIFFERS
    assert report.drifts[0].seq == seq + 1
    assert Kind.ORDER_MISSING_IN_REDIS in report.left


async def test_redis_was_seen_further_than_the_ledger_is(shop: Shop) -> None:
    seq = (await shop.engine.snapshot(shop.sale.id)).seq
    await shop.ledger.seen(shop.sale.id, seq)
    await shop.is_clean()
    await shop.ledger.seen(shop.sale.id, seq + 3)
    await shop.leaves(Kind.REDIS_BEHIND)


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


# -- a sale that runs -----------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_running_sale_raises_no_alarm(make_engine: MakeEngine, database_url: str) -> None:
    """Orders come and move on, stock changes, two runners write, the stream is trimmed."""
    engine = await make_engine()
    sale = make_sale({"a": 10**6, "b": 10**6})
    await engine.create(sale)
    await engine.open(sale.id)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(Ledger(database_url))
        runners = [LedgerRunner(engine, ledger, sales=(sale.id,)) for _ in range(2)]
        tasks = [asyncio.create_task(runner.run()) for runner in runners]
        load = asyncio.create_task(_load(engine, sale, stop))
        try:
            # The databases differ in how they write, which others test; so most is done on one.
            for number in range(20 if database_url.startswith("sqlite") else 5):
                report = await reconcile(engine, ledger, sale.id, fix=number % 2 == 1)
                assert report.ok, report.drifts
                assert report.decided, report.undecided
                assert not report.mended, report.drifts
                if number % 5 == 4:
                    client = engine._calls.client
                    await trim(client, sale.id, keep_ms=100)
        finally:
            stop.set()
            orders = await load
            for runner in runners:
                runner.stop()
            await asyncio.gather(*tasks)
        assert orders > 200
        report = await reconcile(engine, ledger, sale.id)
        assert (report.ok, report.orders) == (True, orders)
        assert report.stream_from > 1


async def _load(engine: Engine, sale: Sale, stop: asyncio.Event) -> int:
    """Some hundred orders a second, of which most move on at once or later. Counts them."""
    chance = random.Random(5)
    orders: list[str] = []
    waiting: list[str] = []
    while not stop.is_set():
        number = len(orders)
        wishes = [
            Wish(f"buyer-{number + place}", "k", {chance.choice("ab"): chance.randint(1, 3)}, "x|y")
            for place in range(20)
        ]
        outcomes = await engine.reserve_many(sale.id, wishes)
        new = [outcome.order.id for outcome in outcomes if outcome.order]  # type: ignore[union-attr]
        orders += new
        waiting += new
        for _ in range(15):
            order = waiting.pop(chance.randrange(len(waiting)))
            match chance.randrange(4):
                case 0:
                    await engine.begin_payment(sale.id, order)
                    waiting.append(order)
                case 1:
                    await engine.confirm(sale.id, order, f"p-{order}")
                    waiting.append(order)
                case 2:
                    await engine.refund(
                        sale.id, order, f"r-{order}", return_units=bool(number % 2),
                        return_limit=True,
                    )  # fmt: skip
                case _:
                    await engine.release(sale.id, order)
        await engine.add_stock(sale.id, "a", chance.choice((5, -5)), key=f"k{number}")
        await asyncio.sleep(0.05)
    return len(orders)


# -- helpers --------------------------------------------------------------------------------------


async def _row(shop: Shop, order: str) -> dict[str, Any]:
    query = text("SELECT * FROM seckill_orders WHERE sale = :s AND id = :o")
    async with shop.ledger.engine.connect() as connection:
        found = await connection.execute(query, {"s": shop.sale.id, "o": order})
        return dict(found.mappings().one())


async def _events(shop: Shop) -> list[dict[str, Any]]:
    query = text("SELECT * FROM seckill_events WHERE sale = :s ORDER BY seq")
    async with shop.ledger.engine.connect() as connection:
        found = await connection.execute(query, {"s": shop.sale.id})
        return [dict(row) for row in found.mappings()]


async def _trim(shop: Shop) -> None:
    """Takes everything that was acknowledged out of the stream."""
    await asyncio.sleep(0.002)
    await trim(shop.engine._calls.client, shop.sale.id, keep_ms=0)
    assert not shop.entries()
