"""A rebuild that does not get to its end, and what comes after one that did."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.engine import Engine
from seckill.errors import LedgerUnavailable, UnknownSale
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger, fence, strangers
from seckill.ledger.rebuild import Overtaken, Rebuilt, rebuild
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.children import child
from tests.conftest import MakeEngine
from tests.ledger.losses import SCRIPT, keep, lose, picture
from tests.ledger.stories import read_known, read_raws, story_sale, tell
from tests.support import async_client, dump, make_sale, travel


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    """Without leases: a unit that has come back is sold at once."""
    return await make_engine(lease_ms=0)


@pytest.fixture
async def ledger(tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


# -- a rebuild that does not get to its end --------------------------------------------------------

# Kills itself, as hard as it gets, before the call to Redis or the ledger that is its argument.
CRASH = """
import asyncio, os, signal, sys
from seckill.calls import Calls
from seckill.engine import Engine
from seckill.ledger import Ledger
from seckill.ledger.rebuild import rebuild
redis_url, ledger_url, sale, left = *sys.argv[1:4], int(sys.argv[4])
attempt = Calls.attempt
async def crash(self, call):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return await attempt(self, call)
async def main():
    async with Engine(redis_url, durability="memory", sweep_ms=0) as engine:
        async with Ledger(ledger_url) as ledger:
            await rebuild(engine, ledger, sale)
Calls.attempt = crash
asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_rebuild_that_is_killed_anywhere_is_begun_anew(
    engine: Engine, ledger: Ledger, client: redis.Redis, tmp_path: Path
) -> None:
    sale = story_sale()
    await tell(engine, sale, SCRIPT)
    await keep(engine, ledger, sale.id)
    before = picture(client, sale.id)
    await lose(engine, sale.id)
    killed = 0
    while True:
        command = (sys.executable, "-c", CRASH, engine.url, f"sqlite:///{tmp_path}/ledger.db")
        environ = os.environ | {"PYTHONPATH": str(Path.cwd())}
        async with child(*command, sale.id, 2 * killed + 3, env=environ) as process:
            code = await process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        if (await fence.check(engine, ledger)) == []:
            break  # It was killed after its last word.
        assert (await engine.snapshot(sale.id)).state == "fenced"
    assert killed > 3
    assert picture(client, sale.id) == before
    assert not client.keys(f"sk:{{{sale.id}:*rebuild*")
    assert (await engine.resume(sale.id)).ok


@pytest.fixture
async def lost(engine: Engine, ledger: Ledger) -> Sale:
    """A sale with two orders that only the ledger has."""
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    for buyer in ("ann", "bob"):
        await engine.reserve(sale.id, buyer, "k", {"a": 1})
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    return sale


async def test_of_two_rebuilds_at_once_one_wins(
    engine: Engine, ledger: Ledger, lost: Sale, client: redis.Redis
) -> None:
    tries = [rebuild(engine, ledger, lost.id) for _ in range(4)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(each, (Rebuilt, Overtaken)) for each in done), done
    won = [each for each in done if isinstance(each, Rebuilt) and each.done]
    # Perhaps each of them was overtaken, but never do two of them, or one that the ledger did not
    # hear of, get to the end.
    assert len(won) <= 1
    assert len(await fence.check(engine, ledger)) == 1 - len(won)
    if not won:
        assert (await rebuild(engine, ledger, lost.id)).done
    await engine.resume(lost.id)
    await keep(engine, ledger, lost.id)
    assert (await engine.snapshot(lost.id)).orders == 2
    assert (await verify(engine, lost.id, ledger=ledger)).violations == ()


async def test_a_ledger_that_is_written_to_meanwhile_is_read_again(
    engine: Engine, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner may still be writing what it had read from Redis before the loss."""
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    await engine.reserve(sale.id, "ann", "k", {"a": 1})
    known, [*raws, last] = await read_known(engine, sale.id), await read_raws(engine, sale.id)
    await ledger.know(known)
    await ledger.write([(known, raws)])
    await lose(engine, sale.id)
    find = strangers.find

    async def then_write(*args: Any) -> Any:
        await ledger.write([(await ledger.known(sale.id), [last])])
        return await find(*args)

    monkeypatch.setattr(strangers, "find", then_write)
    with pytest.raises(LedgerUnavailable, match="was written to meanwhile; run this again"):
        await rebuild(engine, ledger, sale.id)
    monkeypatch.undo()
    assert (await engine.snapshot(sale.id)).state == "fenced"
    assert (await rebuild(engine, ledger, sale.id)).orders == 1


async def test_what_has_nothing_to_be_rebuilt_is_left_alone(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale = make_sale()
    with pytest.raises(UnknownSale):
        await rebuild(engine, ledger, sale.id)
    await engine.create(sale)
    await keep(engine, ledger, sale.id)
    before = dump(client, sale.id)
    assert not (await rebuild(engine, ledger, sale.id)).done
    assert dump(client, sale.id) == before


# -- what comes after ------------------------------------------------------------------------------


async def test_holds_are_spared_for_as_long_as_they_had(engine: Engine, ledger: Ledger) -> None:
    sale = make_sale({"a": 3}, hold_ms=60_000)
    await engine.create(sale)
    await engine.open(sale.id)
    held = [(await engine.reserve(sale.id, buyer, "k", {"a": 1})).order for buyer in ("ann", "bob")]
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    assert done.spared_ms - done.at_ms == 60_000
    assert all(held)
    # All of their time goes by: only the two that were held meanwhile had none of it.
    await engine.resume(sale.id)
    assert (await engine.reserve(sale.id, "eve", "k", {"a": 1})).status is Status.CREATED
    await travel(engine, sale.id, 60_000)
    status, _ = await engine._expire(sale.id, 100)
    assert status is Status.DONE
    snapshot = await engine.snapshot(sale.id)
    assert snapshot.stock["a"].held == 3
    assert held[0]
    assert (await engine.begin_payment(sale.id, held[0].id)).status is Status.DONE
    async with async_client(engine.url) as client:
        await client.hset(shard_keys(sale.id)[0], "spared_ms", done.at_ms)
    await engine._expire(sale.id, 100)
    snapshot = await engine.snapshot(sale.id)
    assert (snapshot.stock["a"].held, snapshot.stock["a"].available) == (1, 2)


async def test_a_repeated_change_of_stock_stays_a_repeat(engine: Engine, ledger: Ledger) -> None:
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.add_stock(sale.id, "a", 4, key="k1")
    await engine.add_stock(sale.id, "a", -2, key="k2")
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    assert (await rebuild(engine, ledger, sale.id)).state == "created"
    again = await engine.add_stock(sale.id, "a", 4, key="k1")
    assert (again.status, again.total) == (Status.ALREADY, 5)
    assert (await engine.add_stock(sale.id, "a", 2, key="k2")).status is Status.CONFLICT


@pytest.mark.parametrize(
    ("closes", "pays", "state"), [(True, False, "closed"), (True, True, "settled")]
)
async def test_a_sale_that_is_over_stays_over(
    engine: Engine, ledger: Ledger, closes: bool, pays: bool, state: str
) -> None:
    """Also one whose settling was lost."""
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    order = (await engine.reserve(sale.id, "ann", "k", {"a": 1})).order
    assert order
    await engine.close(sale.id)
    if pays:
        await engine.confirm(sale.id, order.id, "p1")
    known, raws = await read_known(engine, sale.id), await read_raws(engine, sale.id)
    await ledger.know(known)
    await ledger.write([(known, [raw for raw in raws if not raw.value.startswith("settled|")])])
    await lose(engine, sale.id)
    assert (await rebuild(engine, ledger, sale.id)).state == "closed"
    assert (await engine.snapshot(sale.id)).state == state
    await keep(engine, ledger, sale.id)
    assert (await verify(engine, sale.id, ledger=ledger)).violations == ()


async def test_groups_begin_with_the_new_stream(
    engine: Engine, ledger: Ledger, lost: Sale, client: redis.Redis
) -> None:
    done = await rebuild(engine, ledger, lost.id)
    assert done.groups == ("ledger",)
    await engine.resume(lost.id)
    # The ledger's own has not read it yet, and reads it once.
    assert (await LedgerRunner(engine, ledger, sales=[lost.id], once=True).run()).events == 2
    # Another one can't do better than to begin there.
    kinds = []
    async for batch in engine.events(lost.id, "mall", follow=False):
        kinds += [str(event.kind) for event in batch]
    assert kinds == ["sale_rebuilt", "sale_resumed"]
    # Those that were there are kept, where Redis still knows them.
    client.hset(shard_keys(lost.id)[0], "seq", 2)
    assert (await rebuild(engine, ledger, lost.id)).groups == ("ledger", "mall")
    assert len(client.xinfo_groups(stream_key(lost.id))) == 2  # type: ignore[arg-type]


async def test_what_was_lost_is_told(engine: Engine, ledger: Ledger) -> None:
    sale = make_sale({"a": 9})
    await engine.create(sale)
    await engine.open(sale.id)
    for number in range(6):
        await engine.reserve(sale.id, f"buyer-{number}", "k", {"a": 1})
    known, raws = await read_known(engine, sale.id), await read_raws(engine, sale.id)
    await ledger.know(known)
    await ledger.write([(known, [raw for raw in raws if raw.seq in (1, 2, 3, 5)])])
    assert await fence.check(engine, ledger) == []
    await lose(engine, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    assert (done.last_seq, done.seen_seq, done.lost_events, done.holes) == (5, 8, 3, 1)
    assert done.last_ms == raws[4].at_ms
    assert done.seen_at_ms > 0
    # What an earlier rebuild has left out is no hole.
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    assert (done.lost_events, done.holes, done.seq) == (0, 1, 2_000_008)
