"""A sale with a queue is lost and rebuilt: its tickets go on, or everybody joins again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.admission import Admission
from seckill.engine import Engine
from seckill.keys import drawing_key, queue_keys, removed_key, shard_keys
from seckill.ledger import Ledger
from seckill.ledger.rebuild import rebuild
from seckill.ledger.reconcile import reconcile
from seckill.ledger.remove import remove
from seckill.ledger.report import make_report
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.support import make_sale

BUYERS = ("ann", "bob", "cy", "di", "ed")


class Queued:
    """A sale with a queue, an engine and a ledger."""

    def __init__(self, engine: Engine, ledger: Ledger, client: redis.Redis) -> None:
        self.engine, self.ledger, self.client = engine, ledger, client
        self.sale = make_sale()

    async def begin(self, mode: Any = "queue", **fields: Any) -> list[str]:
        """Opens it and lets some buyers join; their tickets."""
        self.sale = make_sale({"a": 2}, admission=Admission(mode=mode), **fields)
        assert (await self.engine.create(self.sale)).ok
        assert (await self.engine.open(self.sale.id)).ok
        return [await self.join(buyer) for buyer in BUYERS]

    async def join(self, buyer: str) -> str:
        joined = await self.engine.queue.join(self.sale.id, buyer)
        assert joined.place is not None, joined
        return joined.place.ticket

    async def token(self, buyer: str, ticket: str) -> str:
        """The token of a buyer whose turn it is."""
        await self.engine.queue.look(self.sale.id)
        asked = await self.engine.queue.place(self.sale.id, buyer, ticket)
        assert asked.place is not None
        assert asked.place.token
        return asked.place.token

    async def draw(self) -> str:
        """Closes the list and draws; the digest."""
        self.client.hset(queue_keys(self.sale.id)[0], "draw_ms", 0)
        assert await self.engine.queue.draw(self.sale.id) in (Status.DONE, Status.ALREADY)
        record = await self.engine.queue.record(self.sale.id)
        assert record is not None
        return record.digest

    async def drain(self) -> None:
        await LedgerRunner(self.engine, self.ledger, sales=[self.sale.id], once=True).run()

    async def rebuild(self, *, force: bool = False) -> bool:
        """Whether the queue was lost."""
        done = await rebuild(self.engine, self.ledger, self.sale.id, force=force)
        assert done.done
        return done.queue_lost

    async def proven(self) -> bool:
        await self.drain()
        return (await verify(self.engine, self.sale.id, ledger=self.ledger)).ok

    def wipe(self, *, queue: bool = True) -> None:
        keys = shard_keys(self.sale.id)
        self.client.delete(*keys, *(queue_keys(self.sale.id) if queue else ()))


@pytest.fixture
async def queued(make_engine: MakeEngine, client: redis.Redis, tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield Queued(await make_engine(), ledger, client)


def in_an_hour() -> dict[str, Any]:
    opens_at = datetime.now(UTC) + timedelta(hours=1)
    return {"opens_at": opens_at, "ends_at": opens_at + timedelta(hours=1)}


@pytest.mark.parametrize("queue_too", [True, False], ids=["all", "but the queue"])
async def test_who_waited_in_a_sale_that_was_lost_joins_again(
    queued: Queued, queue_too: bool
) -> None:
    tickets = await queued.begin()
    token = await queued.token("ann", tickets[0])
    await queued.drain()
    queued.wipe(queue=queue_too)
    assert await queued.rebuild() is True
    assert (await queued.engine.resume(queued.sale.id)).ok
    sale, queue = queued.sale.id, queued.engine.queue
    await queue.look(sale)  # As each engine does, five times a second.
    assert (await queue.place(sale, "ann", tickets[0])).status is Status.UNKNOWN_TICKET
    refused = await queued.engine.reserve(sale, "ann", "k", {"a": 1}, token=token)
    assert refused.status is Status.TOKEN_RETIRED
    assert await queued.join("bob") != tickets[1]
    bought = await queued.engine.reserve(
        sale, "bob", "k", {"a": 1}, token=await queued.token("bob", await queued.join("bob"))
    )
    assert bought.status is Status.CREATED
    assert await queued.proven()


async def test_who_waits_goes_on_waiting_where_nothing_was_lost(queued: Queued) -> None:
    tickets = await queued.begin()
    await queued.drain()
    assert await queued.rebuild(force=True) is False
    assert (await queued.engine.resume(queued.sale.id)).ok
    assert [await queued.join(buyer) for buyer in BUYERS] == tickets
    assert await queued.proven()
    assert queued.client.hget(shard_keys(queued.sale.id)[0], "queue") == b"1"


async def test_a_draw_that_was_lost_is_drawn_anew_by_another_seed(queued: Queued) -> None:
    await queued.begin("draw", **in_an_hour())
    digest = await queued.draw()
    await queued.drain()
    before = await queued.engine.queue.record(queued.sale.id)
    assert before is not None
    queued.wipe(queue=False)
    assert await queued.rebuild() is True
    await queued.join("ann")
    assert await queued.draw() != digest
    after = await queued.engine.queue.record(queued.sale.id)
    assert after is not None
    assert after.tickets == 1
    assert after.commitment != before.commitment
    joined = await queued.engine.queue.join(queued.sale.id, "ann")
    assert joined.place is not None
    assert joined.place.ahead == 0  # And not by the ranks of the other one.
    assert await queued.proven()


@pytest.mark.parametrize("edited", ["closed", "digest", "commitment", "ranked"])
async def test_a_queue_that_says_something_else_than_the_ledger_begins_anew(
    queued: Queued, edited: str
) -> None:
    await queued.begin("draw", **in_an_hour())
    await queued.draw()
    await queued.drain()
    assert await queued.rebuild(force=True) is False
    await queued.drain()
    queued.client.hdel(queue_keys(queued.sale.id)[0], edited)
    assert await queued.rebuild(force=True) is True
    assert not queued.client.exists(*queue_keys(queued.sale.id))


async def test_the_ledger_agrees_and_a_removed_sale_leaves_no_key(queued: Queued) -> None:
    await queued.begin("shuffle", **in_an_hour())
    await queued.draw()
    await queued.engine.queue.leave(queued.sale.id, "bob")
    sale: Sale = queued.sale
    assert (await queued.engine.close(sale.id)).ok
    await queued.drain()
    found = await reconcile(queued.engine, queued.ledger, sale.id)
    assert found.drifts == (), found
    assert (await make_report(queued.ledger, sale.id)).sale == sale.id
    queued.client.set(drawing_key(sale.id), "1")
    pattern = f"sk:{{{sale.id}:*"
    assert set(queued.client.keys(pattern)) >= {queue_keys(sale.id)[0].encode()}
    await remove(queued.engine, queued.ledger, sale.id)
    assert queued.client.keys(pattern) == [removed_key(sale.id).encode()]
