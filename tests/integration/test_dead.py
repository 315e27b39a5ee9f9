"""Dead letters: what is given up is kept, later events of its order wait behind it, and both go out
again in order when somebody says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from seckill.consumer import journal
from seckill.consumer.delivery import Delivery
from seckill.consumer.journal import TAKEN, Entry, Journal, LeaseLost
from seckill.dead import DeadLetters, Letter, with_letters
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.keys import group_keys, shard_keys, stream_key
from seckill.order import Order
from seckill.relay import GROUP
from seckill.sale import Sale
from tests.conftest import MakeSale
from tests.integration.receiver import Receiver, endpoint, receiving
from tests.integration.test_relay import pending, relay_once, relaying, sell, until


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver
        assert receiver.faults == []


def refuse(receiver: Receiver, *seqs: int, how: str = "410") -> None:
    """The receiver takes everything but these events."""
    receiver.behave = lambda body, attempt: how if body["seq"] in seqs else "204"


async def letters_of(engine: Engine, sale: Sale) -> list[Letter]:
    return await with_letters(engine.url, sale.id, GROUP, lambda dead: dead.letters())


async def retry(engine: Engine, sale: Sale, *subjects: str) -> None:
    await with_letters(engine.url, sale.id, GROUP, lambda dead: dead.retry(subjects))


async def drop(engine: Engine, sale: Sale, *seqs: int) -> int:
    letters = [letter for letter in await letters_of(engine, sale) if letter.seq in seqs]
    return await with_letters(engine.url, sale.id, GROUP, lambda dead: dead.drop(letters))


async def seqs_of(engine: Engine, sale: Sale, order: Order) -> list[int]:
    events = [event async for event in engine.history(sale.id)]
    return [event.seq for event in events if event.order and event.order.id == order.id]


async def test_a_dead_letter_parks_what_comes_later(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    sale = await open_sale()
    orders = await sell(engine, sale, 3)
    count = await receiver.expect(engine, sale.id)
    held, paying, confirmed = await seqs_of(engine, sale, orders[1])
    refuse(receiver, held)
    tally = await relay_once(engine, endpoint(receiver), sale)
    assert (tally.delivered, tally.dead, tally.left) == (count - 3, 1, 0)
    assert receiver.attempts[f"{sale.id}:{held}"] == 1  # 410 says: never again.
    dead, *parked = await letters_of(engine, sale)
    assert (dead.seq, dead.subject, dead.parked) == (held, orders[1].id, False)
    assert (dead.cause, dead.attempts) == ("HTTP 410", 1)
    assert [(letter.seq, letter.parked) for letter in parked] == [(paying, True), (confirmed, True)]
    assert pending(client, sale.id) == 0

    # A later run parks what is new, too, and still delivers all the others.
    refuse(receiver)
    await engine.confirm(sale.id, orders[1].id, "wx-again")
    await engine.confirm(sale.id, orders[2].id, "wx-again")
    await receiver.expect(engine, sale.id)
    assert (await relay_once(engine, endpoint(receiver), sale)).delivered == 1
    assert len(await letters_of(engine, sale)) == 4

    await retry(engine, sale, orders[1].id)
    assert (await relay_once(engine, endpoint(receiver), sale)).delivered == 4
    assert receiver.unseen() == {}
    assert client.exists(*group_keys(sale.id, GROUP)) == 0


async def test_given_up_after_its_time(
    engine: Engine, open_sale: MakeSale, receiver: Receiver
) -> None:
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 4)
    count = await receiver.expect(engine, sale.id)
    held = (await seqs_of(engine, sale, order))[0]
    refuse(receiver, held, how="400")
    tally = await relay_once(engine, endpoint(receiver, give_up_s=0.5), sale)
    assert (tally.delivered, tally.dead) == (count - 3, 1)
    moments = receiver.moments[f"{sale.id}:{held}"]
    assert moments[-1] - moments[0] >= 0.5
    (letter, *_) = await letters_of(engine, sale)
    assert (letter.cause, letter.attempts) == ("HTTP 400", len(moments))


async def test_retried_beside_the_running_relay(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """It may fail once more, and events that come meanwhile wait their turn."""
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 2)
    await receiver.expect(engine, sale.id)
    held, paying, _ = await seqs_of(engine, sale, order)
    keys = group_keys(sale.id, GROUP)
    refuse(receiver, held)
    async with relaying(engine, endpoint(receiver), sales=(sale.id,), lease_ms=1_000):
        await until(lambda: client.hlen(keys.dead) == 3)
        await retry(engine, sale, order.id)
        await until(lambda: receiver.attempts[f"{sale.id}:{held}"] == 2)
        await until(lambda: not client.scard(keys.again))
        assert client.hlen(keys.dead) == 3
        refuse(receiver, paying, how="500")
        await retry(engine, sale, order.id)
        await until(lambda: receiver.attempts[f"{sale.id}:{paying}"] >= 2)
        await engine.confirm(sale.id, order.id, "wx-again")
        await receiver.expect(engine, sale.id)
        await asyncio.sleep(0.1)
        refuse(receiver)
        await until(lambda: not receiver.unseen())
        await until(lambda: not client.exists(keys.dead, keys.again))


async def test_a_relay_that_was_killed_while_it_retried(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """The wish is kept with the letters."""
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 2)
    await receiver.expect(engine, sale.id)
    held, *_ = await seqs_of(engine, sale, order)
    refuse(receiver, held)
    await relay_once(engine, endpoint(receiver), sale)
    await retry(engine, sale, order.id)
    refuse(receiver, held, how="500")
    async with relaying(engine, endpoint(receiver), sales=(sale.id,)):
        await until(lambda: receiver.attempts[f"{sale.id}:{held}"] >= 3)
    assert client.smembers(group_keys(sale.id, GROUP).again) == {f"{order.id}{TAKEN}".encode()}
    refuse(receiver)
    await relay_once(engine, endpoint(receiver), sale)
    assert receiver.unseen() == {}


async def test_a_wish_that_comes_before_the_letter(
    engine: Engine,
    open_sale: MakeSale,
    receiver: Receiver,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A letter that is not in Redis yet must not be taken for one that was dropped."""
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 2)
    await receiver.expect(engine, sale.id)
    held, *_ = await seqs_of(engine, sale, order)
    refuse(receiver, held)
    keep = Delivery._keep

    def keep_and_ask(delivery: Delivery, *args: Any, **options: Any) -> bool:
        kept = keep(delivery, *args, **options)
        delivery._resend({order.id})
        return kept

    monkeypatch.setattr(Delivery, "_keep", keep_and_ask)
    await relay_once(engine, endpoint(receiver), sale)
    assert client.hlen(group_keys(sale.id, GROUP).dead) == 3


@pytest.mark.parametrize("early", [False, True])
async def test_a_wish_beside_one_that_is_being_answered(
    aclient: Any, open_sale: MakeSale, early: bool
) -> None:
    """Made during the retry, or after it has failed and before that is written, it is another."""
    sale = (await open_sale()).id
    dead, told = DeadLetters(aclient, sale, GROUP), list[str]()
    relay = Journal(aclient, sale, GROUP, b"1", lease_ms=60_000)
    relay.on_again = told.extend
    assert await relay.acquire() is None
    await dead.retry(["one", "two"])
    await relay.write()
    assert set(told) == {"one", "two"}
    if early:
        await dead.retry(["one"])
        await relay.write()
    told.clear()
    relay.heard("one")
    if not early:
        await dead.retry(["one"])
    await relay.write()
    assert set(told) == {"one", "two"}
    told.clear()
    relay.heard("one")
    relay.heard("two")
    await relay.write(release=True)
    assert told == []
    assert await aclient.exists(group_keys(sale, GROUP).again) == 0


async def test_a_wish_is_not_struck_off_by_a_repeated_write(
    aclient: Any, open_sale: MakeSale, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write whose answer was lost is repeated with all that it said."""
    sale = (await open_sale()).id
    dead, told = DeadLetters(aclient, sale, GROUP), list[str]()
    relay = Journal(aclient, sale, GROUP, b"1", lease_ms=60_000)
    relay.on_again = told.extend
    assert await relay.acquire() is None
    await dead.retry(["one"])
    await relay.write()
    relay.heard("one")
    tick, lost = Journal._tick, 0

    async def lose(journal: Journal, *args: Any, **options: Any) -> set[str]:
        nonlocal lost
        again = await tick(journal, *args, **options)
        if lost < 3:
            lost += 1
            await dead.retry(["one"])
            raise ConnectionResetError
        return again

    monkeypatch.setattr(Journal, "_tick", lose)
    await relay.write()
    assert (lost, told) == (3, ["one", "one"])


async def test_a_failed_retry_and_another_wish_at_that_moment(
    engine: Engine,
    open_sale: MakeSale,
    receiver: Receiver,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole relay: the operator asks again in the very moment of the failure."""
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 2)
    await receiver.expect(engine, sale.id)
    held, *_ = await seqs_of(engine, sale, order)
    refuse(receiver, held)
    keys = group_keys(sale.id, GROUP)
    await relay_once(engine, endpoint(receiver), sale)
    bury = Journal.bury

    def bury_and_ask(journal: Journal, *args: Any) -> None:
        bury(journal, *args)
        refuse(receiver)
        client.sadd(keys.again, order.id)

    monkeypatch.setattr(Journal, "bury", bury_and_ask)
    await retry(engine, sale, order.id)
    async with relaying(engine, endpoint(receiver), sales=(sale.id,), lease_ms=1_000):
        await until(lambda: not receiver.unseen(), 10)
        await until(lambda: not client.exists(keys.dead, keys.again))


async def test_dropped(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """A dropped event never comes, also when its entry is read again; what was behind it does."""
    sale = await open_sale()
    orders = await sell(engine, sale, 3)
    await receiver.expect(engine, sale.id)
    held, *_ = await seqs_of(engine, sale, orders[0])
    stuck, *_ = await seqs_of(engine, sale, orders[1])
    receiver.behave = lambda body, attempt: {held: "410", stuck: "500"}.get(body["seq"], "204")
    async with relaying(engine, endpoint(receiver), sales=(sale.id,)):
        await until(lambda: client.hlen(group_keys(sale.id, GROUP).dead) == 3)
    assert pending(client, sale.id) > 0  # The entry of both held events.
    assert await drop(engine, sale, held) == 1
    assert await drop(engine, sale, held) == 0
    receiver.excused.add(held)
    refuse(receiver)
    await relay_once(engine, endpoint(receiver), sale)
    assert receiver.unseen() == {}
    assert f"{sale.id}:{held}" not in receiver.taken
    assert client.exists(*group_keys(sale.id, GROUP)) == 0


async def test_dropped_beside_the_running_relay(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 2)
    await receiver.expect(engine, sale.id)
    seqs = await seqs_of(engine, sale, order)
    refuse(receiver, seqs[0])
    async with relaying(engine, endpoint(receiver), sales=(sale.id,), lease_ms=1_000):
        await until(lambda: client.hlen(group_keys(sale.id, GROUP).dead) == 3)
        await drop(engine, sale, *seqs)
        receiver.excused.update(seqs)
        await engine.confirm(sale.id, order.id, "wx-again")
        await receiver.expect(engine, sale.id)
        await until(lambda: not receiver.unseen())
        await until(lambda: not client.exists(group_keys(sale.id, GROUP).again))


async def test_who_has_lost_the_lease_writes_nothing(
    aclient: Any, client: redis.Redis, open_sale: MakeSale
) -> None:
    sale = (await open_sale()).id
    keys = group_keys(sale, GROUP)
    late, active = (Journal(aclient, sale, GROUP, token, lease_ms=60_000) for token in (b"1", b"2"))
    assert await late.acquire() is None
    assert await active.acquire() == b"1"
    assert await late.acquire() is None  # It was its own.
    client.delete(keys.lease)  # It has run out.
    assert await active.acquire() is None
    late.bury(Letter(1, 1, "sale", "opened", False, "HTTP 410", 1, 1), Entry(b"1-1", 1, 0))
    late.done(Entry(b"1-9", 3, 0), 1)
    late.heard("sale")
    for release in (False, True):
        with pytest.raises(LeaseLost):
            await late.write(release=release)
    assert client.exists(*keys) == client.exists(keys.lease) == 1
    await active.write(release=True)
    assert not client.exists(keys.lease)


async def test_what_a_process_sent_before_it_began_anew_takes_nothing(
    aclient: Any, client: redis.Redis, open_sale: MakeSale
) -> None:
    """It may still be under way, and what it took nobody would see."""
    sale = (await open_sale()).id
    client.xgroup_create(stream_key(sale), GROUP, id="0")
    before, now = (Journal(aclient, sale, GROUP, b"1#%d" % n, lease_ms=60_000) for n in (1, 2))
    other = Journal(aclient, sale, GROUP, b"2#1", lease_ms=60_000)
    assert await before.acquire() is None
    assert await now.acquire() is None
    assert await other.acquire() == b"1#2"
    with pytest.raises(LeaseLost):
        await before.take(aclient, 0, b">", 10)
    taken = await now.take(aclient, 0, b">", 10)
    assert [len(fields or ()) for _, fields in taken.entries] == [2, 2]
    assert taken.entries[-1][0] == taken.last_id


async def test_nothing_is_written_for_a_sale_that_is_gone(
    aclient: Any, client: redis.Redis, open_sale: MakeSale
) -> None:
    """Its keys were deleted, and whoever deleted them does not look again."""
    sale = (await open_sale()).id
    consumer = Journal(aclient, sale, GROUP, b"1", lease_ms=60_000)
    assert await consumer.acquire() is None
    client.delete(*shard_keys(sale), *group_keys(sale, GROUP))
    consumer.done(Entry(b"1-9", 3, 0), 1)
    with pytest.raises(UnknownSale):
        await consumer.write()
    assert client.keys(f"sk:{{{sale}:0}}:*") == []


async def test_no_room_for_more(
    engine: Engine,
    open_sale: MakeSale,
    receiver: Receiver,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then events are tried on, and nothing is lost."""
    monkeypatch.setattr(journal, "DEAD_MAX", 4)
    sale = await open_sale()
    orders = await sell(engine, sale, 5)
    count = await receiver.expect(engine, sale.id)
    bad = {order.id for order in orders[:3]}
    receiver.behave = lambda body, attempt: (
        "410" if body["order"] and body["order"]["id"] in bad else "204"
    )
    keys = group_keys(sale.id, GROUP)
    async with relaying(engine, endpoint(receiver), sales=(sale.id,), lease_ms=1_000) as relay:
        await until(lambda: client.hlen(keys.dead) == 4)
        await until(lambda: len(set(receiver.taken)) >= count - 9)
        await asyncio.sleep(0.3)
        assert client.hlen(keys.dead) == 4
        assert relay.deliveries[sale.id].undone == 5
        refuse(receiver)
        await retry(engine, sale, *bad)
        await until(lambda: not receiver.unseen())
        await until(lambda: not client.exists(keys.dead, keys.again))
        await until(lambda: pending(client, sale.id) == 0)


async def test_a_damaged_event_stops_its_order_only(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    sale = await open_sale()
    (order, *_) = await sell(engine, sale, 2)
    stream = stream_key(sale.id)
    last: Any = client.xrevrange(stream, count=1)
    at, _, seq = last[0][0].decode().partition("-")
    for number, fields in enumerate(
        ({order.id: "future|x"}, {b"sale": b"\xff|"}, {"sale": "opened"})
    ):
        client.xadd(stream, fields, id=f"{at}-{int(seq) + 1 + number}")
    tally = await relay_once(engine, endpoint(receiver), sale)
    assert (tally.delivered, tally.dead) == (int(seq), 2)
    letters = await letters_of(engine, sale)
    assert [(letter.subject, letter.parked) for letter in letters] == [
        (order.id, False),
        ("sale", False),
        ("sale", True),
    ]
    assert letters[0].value == "future|x"
    definition = await engine.sale(sale.id)
    events = await with_letters(
        engine.url, sale.id, GROUP, lambda dead: dead.events(definition, letters)
    )
    assert [event and event.kind for event in events] == [None, None, "sale_opened"]
