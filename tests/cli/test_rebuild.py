"""``seckill rebuild`` and ``seckill verify --ledger`` as the person on duty has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.ledger import Ledger
from seckill.ledger.fence import check
from seckill.ledger.run import LedgerRunner
from tests.cli.conftest import Seckill
from tests.support import make_sale


@pytest.fixture
async def lost(server: EmbeddedServer, seckill: Seckill, tmp_path: Path) -> str:
    """A sale with two orders of which Redis has lost all; the ledger is ledger.db."""
    sale = make_sale({"a": 3})
    async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
        await engine.create(sale)
        await engine.open(sale.id)
        for buyer in ("ann", "bob"):
            await engine.reserve(sale.id, buyer, "k", {"a": 1})
    async with (
        Engine(server.url, durability="memory", sweep_ms=0) as engine,
        Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
    ):
        await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
    with redis.Redis.from_url(server.url) as client:
        client.delete(*shard_keys(sale.id))
    return sale.id


@pytest.fixture
def ledger(tmp_path: Path) -> tuple[str, str]:
    return "--ledger", f"sqlite:///{tmp_path}/ledger.db"


@pytest.mark.slow
def test_from_the_loss_to_its_proof(lost: str, seckill: Seckill, ledger: tuple[str, str]) -> None:
    done = seckill("rebuild", lost, *ledger)
    assert done.code == 0, done.err
    assert f"✓ sale {lost} was rebuilt: 2 orders of the ledger; it is paused" in done.out
    why = "lost: this server has nothing of it, events up to 4 are known"
    assert f"what had happened: {why}" in done.out
    assert "  lost: nothing that the ledger knows of; whatever was acknowledged after " in done.out
    assert "no hold lapses before" in done.out
    assert f"seckill sale resume {lost}" in done.out
    again = seckill("rebuild", lost, *ledger, "--json")
    assert (again.code, again.data["done"]) == (0, False)

    alone = seckill("verify", lost)
    assert alone.code == 2
    assert f"the events of sale {lost} before 1,000,004 are not in Redis" in alone.err
    assert "--ledger" in alone.err
    proved = seckill("verify", lost, *ledger)
    assert (proved.code, f"{lost}: no violation in 5 events, 2 orders" in proved.out) == (0, True)


@pytest.mark.slow
async def test_a_fenced_sale_is_seen_everywhere(
    lost: str, seckill: Seckill, engine: Engine, tmp_path: Path
) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert [fenced.sale for fenced in await check(engine, ledger)] == [lost]
    shown = seckill("inspect", lost)
    assert shown.code == 0, shown.err
    assert "fenced (lost: this server has nothing of it, events up to 4 are known)" in shown.out
    assert lost in seckill("sale", "list").out
    refused = seckill("sale", "resume", lost)
    assert refused.code == 1
    assert "seckill rebuild" in refused.err
    assert seckill("verify", lost).code == 1


@pytest.mark.slow
async def test_what_only_an_engine_was_told_of_counts_as_lost(
    lost: str, seckill: Seckill, ledger: tuple[str, str], engine: Engine, client: redis.Redis
) -> None:
    async with Ledger(ledger[1]) as book:
        assert await check(engine, book)
    # As after a roll call in which an engine was ahead of the ledger.
    reason = "lost: this server has nothing of it, events up to 9 are known"
    client.hset(shard_keys(lost)[0], "reason", reason)
    done = seckill("rebuild", lost, *ledger)
    assert "  the ledger ends at event 4 of " in done.out
    assert "  lost: 5 events at least, up to event 9; whatever was acknowledged after" in done.out


@pytest.mark.slow
async def test_orders_that_only_redis_knows_are_named(
    lost: str, seckill: Seckill, ledger: tuple[str, str], client: redis.Redis, engine: Engine
) -> None:
    async with Ledger(ledger[1]) as book:
        assert await check(engine, book)
    order = "00" + 22 * "a"
    client.hset(shard_keys(lost)[3], order, "h1------900000|0|eve")
    refused = seckill("rebuild", lost, *ledger)
    assert refused.code == 3, refused.err
    assert f"Redis has 1 order of sale {lost} that the ledger does not know" in refused.err
    assert order in refused.err
    assert "--admit" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "ledger: is not named; give --ledger URL, or set SECKILL_LEDGER"),
        (("--ledger", "mongodb://x"), "is no database that the ledger knows"),
    ],
)
def test_bad_input(seckill: Seckill, arguments: tuple[str, ...], words: str) -> None:
    done = seckill("rebuild", "evening", *arguments)
    assert done.code == 2
    assert words in done.err


async def test_a_sale_that_the_ledger_does_not_know(
    seckill: Seckill, ledger: tuple[str, str]
) -> None:
    done = seckill("rebuild", "evening", *ledger)
    assert (done.code, "ledger.db does not exist" in done.err) == (2, True)
    async with Ledger(ledger[1]):
        pass
    done = seckill("rebuild", "evening", *ledger)
    assert (done.code, "the ledger has no sale 'evening'" in done.err) == (2, True)
