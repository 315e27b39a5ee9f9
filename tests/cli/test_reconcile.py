"""``seckill reconcile`` as a user has it; that each kind of drift is found is in tests/ledger."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import SALES, shard_keys
from seckill.ledger import Ledger
from seckill.ledger.run import LedgerRunner
from tests.cli.conftest import Seckill
from tests.support import make_sale, new_sale_id


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def sale(server: EmbeddedServer, client: redis.Redis, url: str) -> Iterator[str]:
    """A sale with three orders, all of which the ledger has. It is gone afterwards, so that --all
    of another test does not meet it."""

    async def fill() -> str:
        async with (
            Engine(server.url, durability="memory", sweep_ms=0) as engine,
            Ledger(url) as book,
        ):
            sale = make_sale()
            await engine.create(sale)
            await engine.open(sale.id)
            for buyer in ("b1", "b2", "b3"):
                await engine.reserve(sale.id, buyer, "k", {"a": 1})
            await LedgerRunner(engine, book, sales=(sale.id,), once=True).run()
            return sale.id

    name = asyncio.run(fill())
    yield name
    client.srem(SALES, name)
    client.delete(*shard_keys(name))


def _execute(tmp_path: Path, statement: str) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        assert database.execute(statement).rowcount > 0


def test_drift_is_found_and_mended(seckill: Seckill, sale: str, url: str, tmp_path: Path) -> None:
    done = seckill("reconcile", sale, "--ledger", url)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"✓ sale {sale}: Redis, stream and ledger agree  5 events, 3 orders")
    _execute(tmp_path, "UPDATE seckill_orders SET payment = '[b]x[/b]' WHERE buyer = 'b2'")
    _execute(tmp_path, "DELETE FROM seckill_events WHERE seq BETWEEN 4 AND 5")
    done = seckill("reconcile", sale, "--ledger", url)
    assert (done.code, done.err) == (1, "")
    assert (
        "✗ event missing in ledger (2)  the stream has this event, the ledger does not\n"
        in done.out
    )
    assert re.search(r"(?m)^  events 4-5 +the stream has what the ledger lacks *$", done.out)
    assert "the row is not what its record says" in done.out
    assert f"→ seckill reconcile {sale} --fix" in done.out
    assert f"\n✗ sale {sale}: 3 left  5 events, 3 orders and 2 SKUs compared in " in done.out
    done = seckill("reconcile", sale, "--fix", SECKILL_LEDGER=url)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"(?m)^  events 4-5 +written from the stream *$", done.out)
    assert f"\n✓ sale {sale}: Redis, stream and ledger agree, 3 mended" in done.out
    assert "→" not in done.out


def test_json(seckill: Seckill, sale: str, url: str, client: redis.Redis, tmp_path: Path) -> None:
    order = bytes(client.hkeys(shard_keys(sale)[3])[0]).decode()  # type: ignore[index]
    _execute(tmp_path, f"DELETE FROM seckill_orders WHERE id = '{order}'")  # noqa: S608 - ours
    done = seckill("reconcile", sale, "--ledger", url, "--json")
    assert (done.code, done.err) == (1, "")
    assert (done.data["ok"], done.data["decided"]) == (False, True)
    [report] = done.data["sales"]
    assert (report["sale"], report["ok"], report["orders"], report["events"]) == (sale, False, 3, 5)
    assert (report["left"], report["mended"]) == ({"order_missing_in_ledger": 1}, {})
    [drift] = report["drifts"]
    assert drift["kind"] == "order_missing_in_ledger"
    assert (drift["order"], drift["side"], drift["mended"]) == (order, "ledger", False)
    assert drift["remedy"] == f"seckill reconcile {sale} --fix"
    assert drift["meaning"] == "Redis has this order, the ledger has no row of it"


def test_all_sales(seckill: Seckill, sale: str, url: str, client: redis.Redis) -> None:
    # A name in the list without a sale is no sale: it may be one that is being created.
    client.sadd(SALES, name := new_sale_id())
    try:
        done = seckill("reconcile", "--all", "--ledger", url, "--patience", "0", "--json")
    finally:
        client.srem(SALES, name)
    reports = {report["sale"]: report for report in done.data["sales"]}
    assert reports[sale]["ok"]
    assert name not in reports


def test_what_can_not_be_decided(seckill: Seckill, sale: str, url: str, tmp_path: Path) -> None:
    done = seckill("reconcile", sale, "--ledger", url, SECKILL_REDIS="redis://127.0.0.1:1/0")
    assert (done.code, done.out) == (2, "")
    assert "seckill: no Redis answers there" in done.err
    away = "postgresql://nobody@127.0.0.1:1/none"
    done = seckill("reconcile", sale, "--ledger", away)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("seckill: ")
    done = seckill("reconcile", "never-heard-of", "--ledger", url)
    assert (done.code, done.out) == (2, "")
    assert "never-heard-of: neither Redis nor the ledger knows this sale" in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["x"], "ledger: is not named; give --ledger URL"),
        (["--ledger", "sqlite:///x"], "SALE: is not given; name one sale, or all with --all"),
        (["x", "--patience", "-1"], "--patience: -1 is out of range; give 0 to 3,600"),
    ],
)
def test_bad_input(seckill: Seckill, args: list[str], words: str) -> None:
    done = seckill("reconcile", *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
