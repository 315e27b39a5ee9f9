"""The end of a sale's life in Redis: only when nothing would be lost, and whole wherever it is
cut off."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.engine import Engine
from seckill.errors import InvalidInput, RedisUnavailable, UnknownSale
from seckill.keys import SALES, group_keys, refusals_key, removed_key, shard_keys
from seckill.ledger import Ledger
from seckill.ledger import remove as remove_module
from seckill.ledger.archive import read_archive
from seckill.ledger.rebuild import rebuild
from seckill.ledger.remove import (
    REMEMBERED_MS,
    CannotRemove,
    Removed,
    remove,
    remove_settled,
)
from seckill.ledger.report import make_report
from seckill.ledger.run import LedgerRunner
from seckill.order import Outcome
from seckill.sale import Sale
from seckill.status import Status
from tests.conftest import MakeEngine
from tests.support import make_sale


class Shop:
    """A sale with some orders, an engine and a ledger."""

    def __init__(self, engine: Engine, ledger: Ledger, client: redis.Redis) -> None:
        self.engine = engine
        self.ledger = ledger
        self.client = client
        self.sale: Sale = make_sale()
        self.order = ""

    async def sell(self) -> None:
        assert (await self.engine.create(self.sale)).ok
        assert (await self.engine.open(self.sale.id)).ok
        for number in range(4):
            outcome = await self.engine.reserve(
                self.sale.id, f"u{number}", "k", {"a": 2}, attrs="备注|x"
            )
            assert outcome.order is not None
            if number:
                await self.engine.release(self.sale.id, outcome.order.id)
            else:
                self.order = outcome.order.id
                await self.engine.confirm(self.sale.id, self.order, "p")
        assert (await self.reserve("u9", 11)).status is Status.INSUFFICIENT

    async def reserve(self, buyer: str, units: int) -> Outcome:
        return await self.engine.reserve(self.sale.id, buyer, "k", {"a": units})

    async def close(self) -> None:
        assert (await self.engine.close(self.sale.id)).ok
        await self.drain()

    async def drain(self) -> None:
        await LedgerRunner(self.engine, self.ledger, sales=[self.sale.id], once=True).run()

    def keys(self) -> list[bytes]:
        """All of the sale's, but for the word that it was removed."""
        found: Any = self.client.keys(f"sk:{{{self.sale.id}:*")
        return sorted(set(found) - {removed_key(self.sale.id).encode()})

    @property
    def listed(self) -> bool:
        return bool(self.client.sismember(SALES, self.sale.id))

    async def row(self) -> dict[str, Any]:
        return await self.ledger.sale(self.sale.id)

    async def refused(self, match: str) -> None:
        """It can't be removed, and nothing has changed."""
        keys = self.keys()
        with pytest.raises(CannotRemove, match=match):
            await remove(self.engine, self.ledger, self.sale.id)
        assert self.keys() == keys
        assert self.listed
        assert (await self.row())["removed_at_ms"] == 0


@pytest.fixture
async def each_shop(
    make_engine: MakeEngine, client: redis.Redis, database_url: str
) -> AsyncIterator[Shop]:
    """On each of the databases."""
    async with Ledger(database_url) as ledger:
        shop = Shop(await make_engine(), ledger, client)
        await shop.sell()
        yield shop


@pytest.fixture
async def shop(make_engine: MakeEngine, client: redis.Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        shop = Shop(await make_engine(), ledger, client)
        await shop.sell()
        yield shop


async def test_a_settled_sale_goes(each_shop: Shop, tmp_path: Path) -> None:
    shop = each_shop
    sale = shop.sale.id
    await shop.close()
    await shop.engine._shards[sale].refusals.flush()
    for key in (refusals_key(sale), group_keys(sale, "webhook").again):
        shop.client.hset(key, "insufficient", 1)
    before = await make_report(shop.ledger, sale)
    events = [raw async for part in shop.ledger.events(sale) for raw in part]
    path = tmp_path / "sale.json.gz"
    made = shop.client.hget(shard_keys(sale)[0], "made")
    removed = await remove(shop.engine, shop.ledger, sale, archive=path)
    assert removed == Removed(sale, len(events), removed.keys, str(path))
    assert removed.keys >= 6
    assert shop.keys() == []
    assert shop.client.get(removed_key(sale)) == made
    assert 0 < shop.client.pttl(removed_key(sale)) <= REMEMBERED_MS  # type: ignore[operator]
    assert not shop.listed
    after = await make_report(shop.ledger, sale)
    assert after.refusals == {"insufficient": 1}
    assert after.removed_at_ms > 0
    assert (after.orders, after.net_fen, after.curve) == (
        *(before.orders, before.net_fen, before.curve),
    )
    assert [raw async for part in shop.ledger.events(sale) for raw in part] == events
    # The archive tells the same.
    with read_archive(path) as archive:
        assert archive.known == await shop.ledger.known(sale)
        assert (archive.state, archive.refusals) == ("settled", {"insufficient": 1})
        assert list(archive.events) == events
    # An engine that knew it says so, and what it counts leaves no key behind.
    assert (await shop.reserve("u5", 1)).status is Status.UNKNOWN_SALE
    assert shop.keys() == []


async def test_again_changes_nothing(shop: Shop, tmp_path: Path) -> None:
    await shop.close()
    first = await remove(shop.engine, shop.ledger, shop.sale.id)
    row = await shop.row()
    path = tmp_path / "later.json.gz"
    again = await remove(shop.engine, shop.ledger, shop.sale.id, archive=path)
    assert again == Removed(shop.sale.id, first.events, 0, str(path))
    assert await shop.row() == row
    with read_archive(path) as archive:
        assert len(list(archive.events)) == first.events


@pytest.mark.parametrize("left", ["everything", "list", "groups"])
async def test_what_was_cut_off_is_done_again(
    shop: Shop, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger was told, and then the process died: keys may be there, or some that a later
    version left."""
    await shop.close()
    sale = shop.sale.id

    async def die(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remove_module._Removal, "_unlink", die)
        with pytest.raises(KeyboardInterrupt):
            await remove(shop.engine, shop.ledger, sale)
    assert (await shop.row())["removed_at_ms"] > 0
    if left != "everything":
        shop.client.delete(*shard_keys(sale))
    if left == "groups":
        shop.client.set(group_keys(sale, "webhook").lease, "x")
    removed = await remove_settled(shop.engine, shop.ledger, before_ms=2**52)
    assert [each.sale for each in removed] == [sale]
    assert shop.keys() == []
    assert not shop.listed
    assert await remove_settled(shop.engine, shop.ledger, before_ms=2**52) == []


async def test_a_running_sale_stays(shop: Shop) -> None:
    await shop.drain()
    await shop.refused("it is open; close it")
    await shop.reserve("u5", 1)
    await shop.engine.close(shop.sale.id)
    await shop.drain()
    await shop.refused("it is closed, and settled once no unit is held: 1 still")


async def test_what_the_ledger_has_not_stays(each_shop: Shop) -> None:
    await each_shop.drain()
    await each_shop.engine.close(each_shop.sale.id)
    await each_shop.refused("the ledger has 10 of its 12 events")


async def test_a_hole_in_the_ledger_is_seen(shop: Shop) -> None:
    await shop.close()
    async with shop.ledger.engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM seckill_events WHERE seq = 4")
    await shop.refused("the ledger has 11 of its 12 events")


async def test_a_sale_that_was_rebuilt_goes_too(shop: Shop) -> None:
    """Its seqs have a gap."""
    await shop.drain()
    shop.client.delete(*shard_keys(shop.sale.id))
    await rebuild(shop.engine, shop.ledger, shop.sale.id)
    await shop.close()
    await remove(shop.engine, shop.ledger, shop.sale.id)
    assert shop.keys() == []
    assert (await make_report(shop.ledger, shop.sale.id)).missing_events == 0


async def test_a_full_server_gets_room(shop: Shop) -> None:
    await shop.close()
    shop.client.config_set("maxmemory", 1)
    try:
        assert (await remove(shop.engine, shop.ledger, shop.sale.id)).keys
    finally:
        shop.client.config_set("maxmemory", 0)
    assert shop.keys() == []
    assert not shop.listed


@pytest.mark.parametrize("taken", [False, True], ids=["unread", "pending"])
async def test_what_another_group_has_not_read_stays(shop: Shop, taken: bool) -> None:
    await shop.close()
    stream = shard_keys(shop.sale.id)[-1]
    shop.client.xgroup_create(stream, "mall", id="0")
    if taken:
        shop.client.xreadgroup("mall", "c", {stream: ">"})
    await shop.refused("group 'mall' has ")
    shop.client.xreadgroup("mall", "c", {stream: ">"})
    entries: Any = shop.client.xrange(stream)
    shop.client.xack(stream, "mall", *[entry for entry, _ in entries])
    await remove(shop.engine, shop.ledger, shop.sale.id)
    assert shop.keys() == []


@pytest.mark.parametrize("group", ["ledger", "webhook", "mall"])
async def test_dead_letters_stay(shop: Shop, group: str) -> None:
    await shop.close()
    if group == "mall":
        shop.client.xgroup_create(shard_keys(shop.sale.id)[-1], group, id="$")
    shop.client.hset(group_keys(shop.sale.id, group).dead, "3:x", "{}")
    await shop.refused(f"group '{group}' has 1 dead letters")


async def test_another_sale_of_its_id_stays(shop: Shop) -> None:
    await shop.close()
    shop.client.hset(shard_keys(shop.sale.id)[0], "made", "other:1")
    await shop.refused("another sale")


async def test_a_refund_in_the_last_moment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens after the check: the keys stay, and the ledger does not say otherwise."""
    await shop.close()
    all_keys = remove_module._Removal._all_keys

    async def late(self: Any) -> list[str]:
        keys = await all_keys(self)
        await shop.engine.refund(
            shop.sale.id, shop.order, "r", return_units=False, return_limit=False
        )
        return keys

    with monkeypatch.context() as patch:
        patch.setattr(remove_module._Removal, "_all_keys", late)
        await shop.refused("something has just happened")
    await shop.drain()
    await remove(shop.engine, shop.ledger, shop.sale.id)
    assert (await make_report(shop.ledger, shop.sale.id)).orders_by_state["refunded"] == 1


async def test_a_refund_between_watch_and_unlink(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.close()
    header, asked = remove_module._Removal._header, 0

    async def late(self: Any) -> Any:
        nonlocal asked
        asked += 1
        found = await header(self)
        if asked == 2:  # The one inside WATCH.
            await shop.engine.refund(
                shop.sale.id, shop.order, "r", return_units=False, return_limit=False
            )
        return found

    with monkeypatch.context() as patch:
        patch.setattr(remove_module._Removal, "_header", late)
        await shop.refused("something has just happened")


async def test_two_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second finds it done, and takes nothing back."""
    await shop.close()
    all_keys = remove_module._Removal._all_keys

    async def overtaken(self: Any) -> list[str]:
        keys = await all_keys(self)
        with monkeypatch.context() as patch:
            patch.setattr(remove_module._Removal, "_all_keys", all_keys)
            await remove(shop.engine, shop.ledger, shop.sale.id)
        return keys

    with monkeypatch.context() as patch:
        patch.setattr(remove_module._Removal, "_all_keys", overtaken)
        done = await remove(shop.engine, shop.ledger, shop.sale.id)
    assert done.keys == 0
    assert (await shop.row())["removed_at_ms"] > 0


async def test_a_sale_that_redis_lost(shop: Shop) -> None:
    """Settled and wholly in the ledger: nothing to bring back. Otherwise it is to be rebuilt."""
    await shop.drain()
    shop.client.delete(*shard_keys(shop.sale.id))
    with pytest.raises(CannotRemove, match="Redis has lost it, and by the ledger it is open"):
        await remove(shop.engine, shop.ledger, shop.sale.id)
    await shop.ledger.seen(shop.sale.id, 13)
    async with shop.ledger.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE seckill_sales SET state = 'settled'")
    with pytest.raises(CannotRemove, match="the ledger has 10 of its 13 events"):
        await remove(shop.engine, shop.ledger, shop.sale.id)
    assert (await shop.row())["removed_at_ms"] == 0


async def test_a_sale_that_nobody_knows(shop: Shop) -> None:
    with pytest.raises(UnknownSale):
        await remove(shop.engine, shop.ledger, "nobody")


async def test_redis_away(shop: Shop) -> None:
    await shop.drain()
    away = Engine("redis://127.0.0.1:1/0")
    with pytest.raises(RedisUnavailable):
        await remove(away, shop.ledger, shop.sale.id)


async def test_only_what_is_settled_long_enough(shop: Shop) -> None:
    await shop.close()
    at_ms = (await shop.ledger.last(shop.sale.id))[1]
    assert await remove_settled(shop.engine, shop.ledger, before_ms=at_ms) == []
    assert shop.listed
    removed = await remove_settled(shop.engine, shop.ledger, before_ms=at_ms + 1)
    assert [each.sale for each in removed] == [shop.sale.id]


async def test_one_that_must_stay_does_not_keep_the_others(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.close()
    other = Shop(shop.engine, shop.ledger, shop.client)
    await other.sell()
    await other.close()
    first, second = sorted((shop, other), key=lambda each: each.sale.id)
    first.client.hset(group_keys(first.sale.id, "webhook").dead, "3:x", "{}")
    removed = await remove_settled(shop.engine, shop.ledger, before_ms=2**52)
    assert [each.sale for each in removed] == [second.sale.id]
    assert "dead letters" in caplog.text
    assert first.listed


# -- archives ---------------------------------------------------------------------------------


async def test_a_damaged_archive_is_refused(shop: Shop, tmp_path: Path) -> None:
    await shop.close()
    path = tmp_path / "a.json.gz"
    await remove(shop.engine, shop.ledger, shop.sale.id, archive=path)
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    for damaged in (
        whole[: len(whole) // 2],
        whole[:-4],
        gzip.compress(b"".join(lines[:-1])),
        gzip.compress(b"".join([*lines[:4], *lines[5:]])),
        gzip.compress(b"".join([*lines[:4], b"[1,\n", *lines[4:]])),
        gzip.compress(b"".join([b'{"seckill_archive": 2}\n', *lines[1:]])),
        *(gzip.compress(b""), gzip.compress(b"[]\n"), b"plain text\n", b""),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInput, match="archive"), read_archive(path) as archive:
            list(archive.events)
    with pytest.raises(InvalidInput, match="can't be read"), read_archive(tmp_path / "none"):
        pass


async def test_without_its_archive_nothing_goes(shop: Shop, tmp_path: Path) -> None:
    await shop.close()
    keys = shop.keys()
    with pytest.raises(OSError, match="No such file"):
        await remove(shop.engine, shop.ledger, shop.sale.id, archive=tmp_path / "no" / "a.gz")
    assert shop.keys() == keys
    assert (await shop.row())["removed_at_ms"] == 0
