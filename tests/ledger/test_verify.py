"""``verify`` with what was trimmed, and with what a ledger says otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from seckill.engine import Engine
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.sale import Sale
from seckill.status import Status
from seckill.trim import trim
from seckill.verify import Verdict, verify
from tests.conftest import MakeSale
from tests.ledger.stories import read_known, read_raws
from tests.support import async_client


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


@pytest.fixture
async def sale(engine: Engine, ledger: Ledger, open_sale: MakeSale) -> Sale:
    """A sale of nine events that the ledger has all."""
    sale = await open_sale({"a": 20})
    for number in range(6):
        await engine.reserve(sale.id, f"buyer-{number}", "k", {"a": 1})
    await engine.add_stock(sale.id, "a", 3, key="k1")
    known = await read_known(engine, sale.id)
    await ledger.know(known)
    await ledger.write([(known, await read_raws(engine, sale.id))])
    return sale


async def trimmed(engine: Engine, sale: Sale, through: int) -> None:
    """Without the events up to this one."""
    [last] = [raw for raw in await read_raws(engine, sale.id) if raw.seq == through]
    async with async_client(engine.url) as client:
        await trim(client, sale.id, keep_ms=0, through=f"{last.at_ms}-{last.seq}")


def found(verdict: Verdict) -> list[tuple[int, str, str]]:
    return [(each.seq, each.rule, each.text) for each in verdict.violations]


@pytest.mark.parametrize("through", [0, 1, 4, 9])
async def test_what_was_trimmed_comes_from_the_ledger(
    engine: Engine, ledger: Ledger, sale: Sale, through: int
) -> None:
    if through:
        await trimmed(engine, sale, through)
    verdict = await verify(engine, sale.id, ledger=ledger)
    assert verdict == Verdict(sale.id, 9, 6, ())
    alone = await verify(engine, sale.id)
    if through:
        # Not a violation, and no proof either.
        assert alone == Verdict(sale.id, 0, 0, (), through + 1)
        assert not alone.ok
    else:
        assert alone == verdict
    assert (await engine.reserve(sale.id, "more", "k", {"a": 1})).status is Status.CREATED
    assert (await verify(engine, sale.id, ledger=ledger)).events == 10


async def test_what_was_not_trimmed_must_be_in_the_stream(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    [(first, _), *_] = client.xrange(stream_key(sale.id))  # type: ignore[misc]
    client.xdel(stream_key(sale.id), first)
    assert (1, "ledger") in [
        each[:2] for each in found(await verify(engine, sale.id, ledger=ledger))
    ]
    assert (2, "seq") in [each[:2] for each in found(await verify(engine, sale.id))]


async def test_a_hole_in_the_ledger_shows(engine: Engine, ledger: Ledger, sale: Sale) -> None:
    await trimmed(engine, sale, 6)
    await execute(ledger, "DELETE FROM seckill_events WHERE seq = 4")
    verdict = await verify(engine, sale.id, ledger=ledger)
    assert found(verdict)[0] == (5, "seq", "event 5 follows event 3")


async def test_an_event_that_both_tell_must_be_the_same(
    engine: Engine, ledger: Ledger, sale: Sale
) -> None:
    await trimmed(engine, sale, 3)
    await execute(ledger, "UPDATE seckill_events SET body = body || 'x' WHERE seq = 6")
    text = "the ledger has it with another content"
    assert found(await verify(engine, sale.id, ledger=ledger)) == [(6, "ledger", text)]


async def test_a_redis_that_is_behind_the_ledger_shows(
    engine: Engine, ledger: Ledger, sale: Sale
) -> None:
    known, [*_, last] = await read_known(engine, sale.id), await read_raws(engine, sale.id)
    await ledger.write([(known, [last._replace(seq=10)])])
    text = "Redis ends there, the ledger at event 10"
    assert found(await verify(engine, sale.id, ledger=ledger)) == [(9, "ledger", text)]


async def test_a_ledger_that_does_not_know_the_sale_yet(
    engine: Engine, ledger: Ledger, open_sale: MakeSale
) -> None:
    sale = await open_sale({"a": 20})
    assert (await verify(engine, sale.id, ledger=ledger)).ok


@pytest.mark.parametrize("gone", [False, True])
async def test_a_fenced_sale_has_broken_its_promise(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis, gone: bool
) -> None:
    if gone:
        client.delete(*shard_keys(sale.id)[1:])
    client.hset(shard_keys(sale.id)[0], mapping={"state": "fenced", "reason": "lost: all"})
    expected = [(0, "fenced", "Redis has lost a part of the sale: lost: all")]
    assert found(await verify(engine, sale.id)) == expected
    assert found(await verify(engine, sale.id, ledger=ledger)) == expected


async def test_a_trim_in_the_middle_of_it_is_no_hole(
    engine: Engine, ledger: Ledger, sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = engine.history

    async def then_trim(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async for event in history(*args, **options):
            if event.seq == 2:
                await trimmed(engine, sale, 6)
            if event.seq not in (3, 4):
                yield event

    monkeypatch.setattr(engine, "history", then_trim)
    assert (await verify(engine, sale.id, ledger=ledger)).ok
    assert (await verify(engine, sale.id)).trimmed_before == 7


async def execute(ledger: Ledger, statement: str) -> None:
    async with ledger.engine.begin() as connection:
        await connection.execute(text(statement))
