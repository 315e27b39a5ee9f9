"""A Redis that has lost a sale, or a part of it, gets it back from the ledger as it was."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, LedgerUnavailable, UnknownSale
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger, fence
from seckill.ledger.rebuild import Overtaken, Rebuilt, rebuild
from seckill.ledger.run import LedgerRunner
from seckill.ledger.strangers import NotAdmitted
from seckill.order import State, order_id
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.ledger.stories import STEPS, read_known, read_raws, story_sale, tell
from tests.support import async_client, dump, make_item, make_sale, travel

Step = tuple[str, int, int]

# One of everything that can happen to an order, with buyers who have several.
SCRIPT: list[Step] = [
    *[("many", number, number) for number in range(4)],
    *[("reserve", number, number) for number in range(12)],
    *[("begin_payment", number, 0) for number in range(3, 40, 3)],
    *[("confirm", number, 0) for number in range(2, 40, 2)],
    *[("confirm", 2, 0), ("confirm", 4, 0), ("confirm_again", 4, 0), ("confirm_again", 4, 0)],
    *[("refund", 2 * number, number) for number in range(1, 9)],
    *[("add_stock", 0, 1), ("refund", 20, 0), ("pause", 0, 1), ("release", 7, 0)],
    *[("add_stock", 1, 2), ("expire", 0, 0), ("confirm", 9, 0), ("confirm", 13, 0)],
    *[("resume", 0, 0), *6 * [("add_stock", 0, 1)], ("many", 3, 0), ("reserve", 1, 0)],
    *[("begin_payment", -1, 0), ("reserve", 1, 2), ("begin_payment", -1, 0), ("reserve", 2, 0)],
]


async def keep(engine: Engine, ledger: Ledger, sale: str) -> None:
    """What the ledger's runner does."""
    known = await read_known(engine, sale)
    await ledger.know(known)
    await ledger.write([(known, await read_raws(engine, sale))])


async def lose(engine: Engine, sale: str) -> None:
    async with async_client(engine.url) as client:
        await client.delete(*shard_keys(sale))


def picture(client: redis.Redis, sale: str) -> dict[str, Any]:
    """What a rebuild has to bring back. A queue's entries whose orders have moved on are as good as
    gone, and orders of one moment may stand in any order."""
    found = dump(client, sale)
    orders = found["orders"] or {}
    for name, state in (("holds", b"h"), ("paying", b"p")):
        waiting = [order for order in found[name] or () if orders[order][:1] == state]
        deadlines = [int(orders[order].partition(b"|")[0][8:]) for order in waiting]
        assert deadlines == sorted(deadlines)
        found[name] = sorted(waiting)
    stock = {name: units for name, units in found["stock"].items() if not name.endswith(b"lease")}
    keys = {name: wish for name, wish in found["sale"].items() if name.startswith(b"stock:")}
    kept = ("origin_ms", "hold_ms", "pay_ms", "definition", "definition_id", "clock_jump_ms")
    header = {name: found["sale"][name.encode()] for name in kept}
    return found | {"stock": stock, "sale": header, "operations": keys, "events": None}


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    """Without leases: a unit that has come back is sold at once."""
    return await make_engine(lease_ms=0)


@pytest.fixture
async def ledger(tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


async def lost_and_rebuilt(
    engine: Engine, ledger: Ledger, client: redis.Redis, steps: list[Step]
) -> tuple[str, dict[str, Any], Rebuilt]:
    sale = story_sale()
    await tell(engine, sale, steps)
    await keep(engine, ledger, sale.id)
    before = picture(client, sale.id)
    await lose(engine, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    return sale.id, before, done


async def test_every_kind_of_order_comes_back_byte_for_byte(
    database_url: str, engine: Engine, client: redis.Redis
) -> None:
    async with Ledger(database_url) as ledger:
        sale, before, done = await lost_and_rebuilt(engine, ledger, client, SCRIPT)
    records = {record[:1] for record in before["orders"].values()}
    assert records == {b"h", b"p", b"c", b"f", b"r", b"x"}
    assert picture(client, sale) == before
    assert done.done
    assert done.orders == len(before["orders"])


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    print_blob=True,
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 7)), max_size=40
    )
)
async def test_any_story_comes_back_and_can_be_proved(
    steps: list[Step], tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('story')}/ledger.db"
    async with (
        Ledger(url) as ledger,
        Engine(server.url, durability="memory", sweep_ms=0, lease_ms=0) as engine,
    ):
        with redis.Redis.from_url(server.url) as client:
            sale, before, done = await lost_and_rebuilt(engine, ledger, client, steps)
            assert picture(client, sale) == before
        state = (await engine.snapshot(sale)).state
        assert state in (done.state, "settled")
        assert (await engine.resume(sale)).status is (
            Status.DONE if state == "paused" else Status.CLOSED
        )
        await keep(engine, ledger, sale)
        # An engine that has not met the sale before time was moved in it.
        async with Engine(server.url, durability="memory", sweep_ms=0) as fresh:
            verdict = await verify(fresh, sale, ledger=ledger)
        # Time was moved in these sales, and their definitions keep the old window.
        assert {each.rule for each in verdict.violations} <= {"window", "deadline"}


# -- the loss of everything, while it sells --------------------------------------------------------


def crowded_sale(stock: int) -> Sale:
    items = (make_item("a", total=stock, limit_per_buyer=2), make_item("b", total=stock))
    return make_sale(items=items, hold_ms=60_000, limit_per_buyer=3)


class Crowd:
    """Buyers who want an order each, pay for some of them, and never give up."""

    def __init__(self, engine: Engine, sale: str) -> None:
        self.engine = engine
        self.sale = sale
        self.told: dict[str, str] = {}
        """By key, the id of an order that was promised."""
        self.said: Counter[Status] = Counter()
        self.stop = False

    async def buy(self, number: int) -> None:
        for turn in range(1_000):
            key = f"k{number}-{turn}"
            items = {"a": 1} if turn % 2 else {"b": 1}
            outcome = await self.engine.reserve(
                self.sale, f"buyer-{number}-{turn // 3}", key, items
            )
            self.said[outcome.status] += 1
            if outcome.order is not None:
                self.told[key] = outcome.order.id
                if turn % 3 == 0:
                    await self.engine.confirm(self.sale, outcome.order.id, f"pay-{key}")
            if self.stop or outcome.status in (Status.FENCED, Status.SOLD_OUT):
                return

    async def rush(self) -> None:
        await asyncio.gather(*(self.buy(number) for number in range(8)))


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine with a server of its own, for tests that wipe it or put it back."""
    async with Engine.embedded(
        tmp_path / "server", durability="memory", sweep_ms=0, lease_ms=0
    ) as engine:
        yield engine


async def until_fenced(engine: Engine, ledger: Ledger) -> list[fence.Fenced]:
    for _ in range(500):
        if fenced := await fence.check(engine, ledger):
            return fenced
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was fenced")


async def test_a_redis_that_is_wiped_in_mid_sale_goes_on_as_if_it_had_not_been(
    own: Engine, ledger: Ledger
) -> None:
    sale = crowded_sale(3_000)
    assert (await own.create(sale)).ok
    assert (await own.open(sale.id)).ok
    runner = LedgerRunner(own, ledger)
    running = asyncio.create_task(runner.run())
    crowd = Crowd(own, sale.id)
    rush = asyncio.create_task(crowd.rush())
    while (await ledger.counts(sale.id))[1] < 300:
        await fence.check(own, ledger)
        await asyncio.sleep(0.01)
    async with async_client(own.url) as client:
        await client.flushall()
    [fenced] = await until_fenced(own, ledger)
    assert fenced.reason.startswith("lost: ")
    crowd.stop = True
    await rush
    runner.stop()
    await running
    assert await own.sales() == [sale.id]
    snapshot = await own.snapshot(sale.id)
    assert (snapshot.state, snapshot.reason) == ("fenced", fenced.reason)
    assert (await own.create(sale)).status is Status.EXISTS
    assert (await own.reserve(sale.id, "late", "k", {"a": 1})).status is Status.FENCED

    rows = [row async for part in ledger.orders(sale.id, "id", "buyer", "record") for row in part]
    assert len(rows) >= 300
    done = await rebuild(own, ledger, sale.id)
    assert (done.done, done.state, done.orders) == (True, "paused", len(rows))
    assert done.seq >= done.seen_seq + 1_000_000
    assert not (await rebuild(own, ledger, sale.id)).done
    assert (await own.resume(sale.id)).status is Status.DONE

    # Every order of the ledger is there, and its buyer finds it by asking again.
    keys = {order: key for key, order in crowd.told.items()}
    for order, buyer, record in rows:
        found = await own.order(sale.id, order)
        assert found is not None
        sku = next(iter(found.items))
        if order in keys:
            again = await own.reserve(sale.id, buyer, keys[order], {sku: 1})
            assert (again.status, again.order) == (Status.EXISTS, found)
        assert record[0] in "hc"
    limits = Counter(buyer for _, buyer, _ in rows)
    full = next(buyer for buyer, count in limits.items() if count == 3)
    assert (await own.reserve(sale.id, full, "new", {"b": 1})).status is Status.BUYER_LIMIT

    # Sold to the end: those that are held are paid, the others bought.
    held = [order for order, _, record in rows if record[0] == "h"]
    for order in held:
        assert (await own.confirm(sale.id, order, f"late-{order}")).status is Status.DONE
    crowd.stop = False
    await crowd.rush()
    again = LedgerRunner(own, ledger, once=True)
    await again.run()
    snapshot = await own.snapshot(sale.id)
    assert min(stock.available for stock in snapshot.stock.values()) == 0
    verdict = await verify(own, sale.id, ledger=ledger)
    assert verdict.violations == ()
    assert verdict.orders == (await ledger.counts(sale.id))[1] == snapshot.orders


async def test_a_server_that_comes_back_with_old_data_is_fenced(tmp_path: Path) -> None:
    data, old = tmp_path / "server", tmp_path / "old"
    sale = make_sale({"a": 10})
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        async with Engine.embedded(data, durability="memory", sweep_ms=0) as engine:
            await engine.create(sale)
            await engine.open(sale.id)
            first = (await engine.reserve(sale.id, "ann", "k", {"a": 1})).order
            await keep(engine, ledger, sale.id)
        shutil.copytree(data, old, ignore=shutil.ignore_patterns("*.sock"))
        async with Engine.embedded(data, durability="memory", sweep_ms=0) as engine:
            assert await fence.check(engine, ledger) == []
            second = (await engine.reserve(sale.id, "bob", "k", {"a": 9})).order
            await keep(engine, ledger, sale.id)
        shutil.rmtree(data)
        shutil.move(old, data)
        async with Engine.embedded(data, durability="memory", sweep_ms=0) as engine:
            reason = "behind: the ledger has event 4, this server ends at 3"
            assert await fence.check(engine, ledger) == [fence.Fenced(sale.id, reason)]
            assert (await engine.reserve(sale.id, "eve", "k", {"a": 1})).status is Status.FENCED
            done = await rebuild(engine, ledger, sale.id)
            assert (done.done, done.reason, done.orders) == (True, reason, 2)
            assert await fence.check(engine, ledger) == []
            await engine.resume(sale.id)
            assert first
            assert second
            assert await engine.order(sale.id, first.id) == first
            assert await engine.order(sale.id, second.id) == second
            assert (await engine.reserve(sale.id, "eve", "k", {"a": 1})).status is Status.SOLD_OUT
            assert (await verify(engine, sale.id, ledger=ledger)).violations == ()


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
        process = await asyncio.create_subprocess_exec(
            *command, sale.id, str(2 * killed + 3), env=os.environ | {"PYTHONPATH": str(Path.cwd())}
        )
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
    assert not client.keys("*rebuild*")
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
    assert any(isinstance(each, Rebuilt) and each.done for each in done)
    assert all(isinstance(each, (Rebuilt, Overtaken)) for each in done), done
    await engine.resume(lost.id)
    await keep(engine, ledger, lost.id)
    if fenced := await fence.check(engine, ledger):
        # The one that came last had told the ledger, and was then overtaken.
        assert fenced[0].reason.startswith("made anew")
        assert (await rebuild(engine, ledger, lost.id)).done
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
    add = Purses.add

    def then_write(self: Purses, order: str, record: str) -> None:
        add(self, order, record)
        late.append(asyncio.ensure_future(write_late()))

    async def write_late() -> None:
        await ledger.write([(await ledger.known(sale.id), [last])])

    late: list[asyncio.Future[None]] = []
    monkeypatch.setattr(Purses, "add", then_write)
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


# -- orders that only Redis knows ------------------------------------------------------------------


async def made_anew(engine: Engine, ledger: Ledger) -> tuple[Sale, dict[str, str]]:
    """A sale whose ledger has four of its six units; then it was lost, made anew, and sold from the
    beginning, with everything that can happen to an order. The ids by what happened."""
    sale = make_sale({"a": 6}, limit_per_buyer=2)
    for _ in range(2):
        await engine.create(sale)
        await engine.open(sale.id)
        if _ == 0:
            for number in range(4):
                await engine.reserve(sale.id, f"old-{number}", "k", {"a": 1})
            await keep(engine, ledger, sale.id)
            await lose(engine, sale.id)
    ids = {}
    for name in ("paid", "held", "refunded", "released", "paying", "twice"):
        made = await engine.reserve(sale.id, name, "k", {"a": 1}, attrs=f"{name}|1")
        assert made.order
        ids[name] = made.order.id
        if name in ("paid", "refunded", "twice"):
            await engine.confirm(sale.id, made.order.id, f"p-{name}")
        if name == "refunded":
            await engine.refund(sale.id, made.order.id, "r1", return_units=True, return_limit=True)
        if name == "released":
            await engine.release(sale.id, made.order.id)
            await engine.confirm(sale.id, made.order.id, "p-late")
    await engine.confirm(sale.id, ids["twice"], "p-more")
    await engine.begin_payment(sale.id, ids["paying"])
    return sale, ids


async def test_orders_that_only_redis_knows_are_told_and_nothing_is_changed(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale, ids = await made_anew(engine, ledger)
    [fenced] = await fence.check(engine, ledger)
    assert fenced.reason.startswith("made anew")
    before = dump(client, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    assert (done.done, done.unknown_count) == (False, 6)
    assert done.unknown == tuple(sorted(ids.values()))
    assert dump(client, sale.id) == before
    assert not client.keys(f"*{sale.id}*rebuild*")


async def test_orders_that_only_redis_knows_are_taken_in_while_stock_lasts(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale, ids = await made_anew(engine, ledger)
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert (done.done, done.admitted, done.expired) == (True, 6, 2)
    found = {name: await engine.order(sale.id, order) for name, order in ids.items()}
    states = {name: (order.state, order.payments) for name, order in found.items() if order}
    # Two units are left for those who had paid. What was paid twice is due back, and what had gone
    # back already is not said again.
    assert states == {
        "paid": (State.CONFIRMED, ("p-paid",)),
        "twice": (State.CONFIRMED, ("p-twice", "p-more")),
        "refunded": (State.RELEASED, ()),
        "released": (State.RELEASED, ("p-late",)),
        "held": (State.EXPIRED, ()),
        "paying": (State.EXPIRED, ()),
    }
    raws = await read_raws(engine, sale.id)
    kept = {raw.subject: raw.value.split("|", 5)[5] for raw in raws if raw.value[:5] == "held|"}
    assert kept == {ids[name]: f"{name}|1" for name in ("paid", "twice")}
    due = [raw.value.split("|")[1] for raw in raws if raw.value.startswith("refund_due|")]
    assert sorted(due) == ["p-late", "p-more"]
    assert (await engine.snapshot(sale.id)).stock["a"].available == 0
    await engine.resume(sale.id)
    await keep(engine, ledger, sale.id)
    verdict = await verify(engine, sale.id, ledger=ledger)
    assert (verdict.violations, verdict.orders) == ((), 10)
    # And once more: now the ledger knows them all.
    await lose(engine, sale.id)
    before = {name: await ledger_record(ledger, sale.id, order) for name, order in ids.items()}
    assert (await rebuild(engine, ledger, sale.id)).orders == 10
    again = {name: client.hget(shard_keys(sale.id)[3], order) for name, order in ids.items()}
    assert {name: record.decode() for name, record in again.items()} == before  # type: ignore[union-attr]


async def ledger_record(ledger: Ledger, sale: str, order: str) -> str:
    async for part in ledger.orders(sale, "id", "record"):
        for id_, record in part:
            if id_ == order:
                return str(record)
    raise AssertionError(f"no order {order}")


async def test_money_that_only_redis_knows_is_taken_in(engine: Engine, ledger: Ledger) -> None:
    """Redis came back with old data and went on: an order the ledger knows was paid there."""
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    ids = [order_id(sale.id, buyer, "k") for buyer in ("ann", "bob", "eve")]
    for buyer in ("ann", "bob", "eve"):
        await engine.reserve(sale.id, buyer, "k", {"a": 1})
    await keep(engine, ledger, sale.id)
    known, raws = await read_known(engine, sale.id), await read_raws(engine, sale.id)
    # The ledger has seen bob's order released, and much else.
    released = raws[3]._replace(
        seq=90, value=raws[3].value.replace("held||h1", "released||r2")[:-1]
    )
    await ledger.write([(known, [released])])
    for order, payment in zip(ids[:2], ("p1", "p2"), strict=True):
        assert (await engine.confirm(sale.id, order, payment)).status is Status.DONE
    await engine.refund(sale.id, ids[0], "r1", return_units=False, return_limit=False)
    done = await rebuild(engine, ledger, sale.id)
    assert (done.done, done.unknown) == (False, tuple(sorted(ids[:2])))
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert (done.done, done.admitted, done.expired) == (True, 2, 0)
    orders = [await engine.order(sale.id, order) for order in ids]
    assert [(order.state, order.payments) for order in orders if order] == [
        (State.REFUNDED, ("p1",)),
        (State.RELEASED, ("p2",)),
        (State.HELD, ()),
    ]
    assert (await engine.snapshot(sale.id)).stock["a"].total == 2


async def test_orders_under_another_definition_are_not_taken_in(
    engine: Engine, ledger: Ledger, lost: Sale, client: redis.Redis
) -> None:
    other = make_sale({"b": 3}, id=lost.id)
    await engine.create(other)
    await engine.open(other.id)
    await engine._forget(await engine._shard(lost.id))
    assert (await engine.reserve(lost.id, "eve", "k", {"b": 1})).status is Status.CREATED
    with pytest.raises(NotAdmitted, match="under another definition"):
        await rebuild(engine, ledger, lost.id, admit=True)
    assert client.hget(shard_keys(lost.id)[0], "state") == b"fenced"


async def test_a_sale_that_was_removed_is_not_brought_back(
    engine: Engine, ledger: Ledger, lost: Sale
) -> None:
    from sqlalchemy import text

    async with ledger.engine.begin() as connection:
        await connection.execute(text("UPDATE seckill_sales SET removed_at_ms = 5"))
    assert await fence.check(engine, ledger) == []
    with pytest.raises(InvalidInput, match="was removed"):
        await rebuild(engine, ledger, lost.id)
