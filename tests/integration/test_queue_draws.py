"""Draws and shuffles through engines, on a real server: who comes first, and who may check it."""

from __future__ import annotations

import asyncio
import io

import redis

from seckill.draw import ListDigest, mix_of, ranks_of
from seckill.engine import Engine
from seckill.keys import drawing_key, queue_keys
from seckill.sale import Sale
from seckill.status import Status
from seckill.stream import EventKind
from seckill.verify import verify
from seckill.verify_draw import Published, verify_draw
from tests.conftest import MakeEngine, MakeSale
from tests.queued import CROWD, admission, close_list, joined, place, until


async def test_a_draw_with_a_public_value_comes_out_as_everybody_can_compute(
    make_engine: MakeEngine, open_sale: MakeSale
) -> None:
    named = "the numbers of tonight's lottery"
    fields = {"weights": (("gold", 3),), "public_value": named, "token_life_ms": 60_000}
    sale = await open_sale({"a": 2}, admission=admission("draw", **fields))
    one, two = await make_engine(), await make_engine()
    for number, buyer in enumerate(CROWD):
        found = await joined(one, sale, buyer, tier="gold" if number == 1 else "")
        assert (found.phase, found.ahead, found.token) == ("joined", None, "")
    assert (await one.queue.leave(sale.id, CROWD[5])).status is Status.DONE
    assert await one.queue.draw(sale.id) is Status.NOT_OPEN
    assert (await one.queue.name_value(sale.id, "7")).status is Status.NOT_OPEN
    assert await one.queue.record(sale.id) is None
    await close_list(one, sale)
    assert await two.queue.draw(sale.id) is Status.NOT_OPEN  # Without the value.
    listed = await one.queue.record(sale.id)
    assert listed is not None
    assert (listed.seed, listed.public_value, listed.tickets) == (None, None, 7)
    assert (await place(one, sale, CROWD[0])).phase == "drawing"
    assert (await one.queue.leave(sale.id, CROWD[0])).status is Status.DRAWING
    assert (await two.queue.name_value(sale.id, "3 9 27")).status is Status.DONE
    assert (await one.queue.name_value(sale.id, "3 9 27")).status is Status.ALREADY
    assert (await one.queue.name_value(sale.id, "3 9 28")).status is Status.CONFLICT
    assert await one.queue.draw(sale.id) is Status.DONE
    assert await two.queue.draw(sale.id) is Status.ALREADY

    record = await two.queue.record(sale.id)
    lines = b"".join([part async for part in two.queue.tickets(sale.id)])
    assert record is not None
    assert record.seed is not None
    assert record.digest == listed.digest
    digest = ListDigest()
    for line in lines.splitlines(keepends=True):
        digest.add(line)
    assert (digest.hex(), digest.tickets) == (record.digest, 7)
    mix = mix_of(bytes.fromhex(record.seed), record.digest, "3 9 27")
    weights = [1, 3, 1, 1, 1, 0, 1, 1]
    ranks = list(ranks_of(mix, weights))
    for number, buyer in enumerate(CROWD):
        if number != 5:
            found = await place(two, sale, buyer)
            assert found.phase == ("called" if ranks[number] < 2 else "unlikely"), (buyer, found)
            assert found.ahead == max(0, ranks[number] - 2)
            assert (
                f" {'3' if number == 1 else '1'} ".encode()
                in lines.splitlines()[1 + number - (number > 5)]
            )
    assert (await two.queue.join(sale.id, CROWD[5])).status is Status.JOINS_CLOSED
    published = Published(record.commitment, record.digest)
    assert verify_draw(record, io.BytesIO(lines), published=published).proven
    assert (await verify(one, sale.id)).violations == ()


async def drawn_events(engine: Engine, sale: Sale) -> int:
    events = [event async for event in engine.history(sale.id)]
    return sum(event.kind is EventKind.QUEUE_DRAWN for event in events)


async def test_two_who_draw_at_once_draw_once(make_engine: MakeEngine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 2}, admission=admission("shuffle"))
    engines = [await make_engine() for _ in range(3)]
    for number in range(600):
        await joined(engines[0], sale, f"b{number}")
    await close_list(engines[0], sale)
    found = await asyncio.gather(*(engine.queue.draw(sale.id) for engine in engines))
    assert set(found) <= {Status.DONE, Status.ALREADY, Status.DRAWING}
    assert Status.DONE in found

    async def in_order() -> bool:
        return await engines[2].queue.draw(sale.id) is Status.ALREADY

    await until(in_order)
    assert await drawn_events(engines[0], sale) == 1
    places = [
        [(await place(engine, sale, f"b{number}")).ahead for number in range(0, 600, 50)]
        for engine in engines
    ]
    assert places[0] == places[1] == places[2]
    # Who comes after the list was closed stands behind all of them.
    last = await joined(engines[1], sale, "late")
    assert last.number == 600
    assert last.ahead is not None
    assert last.ahead > max(ahead for ahead in places[0] if ahead is not None)


async def test_a_draw_whose_process_died_is_drawn_by_another(
    make_engine: MakeEngine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 2}, admission=admission("draw"))
    engine = await make_engine()
    for buyer in CROWD:
        await joined(engine, sale, buyer)
    await close_list(engine, sale)
    # As it leaves things behind: a lease that runs on, and a part of the ranks.
    client.set(drawing_key(sale.id), "1")
    client.setrange(queue_keys(sale.id)[4], 0, b"\x07\x00\x00\x00")
    assert await engine.queue.draw(sale.id) is Status.DRAWING
    assert (await place(engine, sale, CROWD[0])).phase == "drawing"

    # The sweeps of another do it as soon as the lease is over.
    client.pexpire(drawing_key(sale.id), 300)
    sweeping = await make_engine(sweep_ms=50)

    async def drawn() -> bool:
        return (await place(engine, sale, CROWD[0])).phase != "drawing"

    await until(drawn)
    record = await sweeping.queue.record(sale.id)
    assert record is not None
    lines = b"".join([part async for part in sweeping.queue.tickets(sale.id)])
    assert verify_draw(record, io.BytesIO(lines)).proven
    aheads = [(await place(engine, sale, buyer)).phase for buyer in CROWD]
    assert sorted(aheads) == ["called"] * 2 + ["unlikely"] * 6
    assert await drawn_events(engine, sale) == 1
