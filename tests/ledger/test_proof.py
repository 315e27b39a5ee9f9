"""The proof of a sale that has left Redis, from the ledger alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from seckill.errors import UnknownSale
from seckill.ledger import Ledger
from seckill.ledger.forget import forget
from seckill.ledger.proof import prove
from seckill.verify import Verdict
from tests.ledger.scripted import SALE, B, fill, settled


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, settled())
        await change(ledger, "UPDATE seckill_sales SET removed_at_ms = 1, seen_seq = 23")
        yield ledger


async def change(ledger: Ledger, statement: str) -> None:
    async with ledger.engine.begin() as connection:
        await connection.execute(text(statement), {"b": B} if ":b" in statement else {})


async def test_every_promise_was_kept(ledger: Ledger) -> None:
    assert await prove(ledger, SALE) == Verdict(SALE, 23, 6, ())


async def test_who_was_forgotten_breaks_no_promise(ledger: Ledger) -> None:
    assert (await forget(ledger, "u1")).orders
    assert (await prove(ledger, SALE)).ok


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM seckill_events WHERE seq = 7", "event 8 follows event 6"),
        ("DELETE FROM seckill_events WHERE seq = 23", "ends at 22, and Redis was seen at 23"),
        ("UPDATE seckill_events SET body = 'x' WHERE seq = 5", "event 5 can't be read"),
        ("UPDATE seckill_sales SET state = 'open'", "row says open, its events settled"),
        ("DELETE FROM seckill_orders WHERE id = :b", "1 of 6 orders have no row"),
        (
            "UPDATE seckill_orders SET state = 'held' WHERE id = :b",
            f"the row of order {B} differs",
        ),
        (
            "UPDATE seckill_orders SET record = replace(record, 'u2', 'u9') WHERE id = :b",
            f"the row of order {B} differs",
        ),
        (
            "UPDATE seckill_orders SET id = 'ff' || substr(id, 3) WHERE id = :b",
            "has a row and no event",
        ),
        ("UPDATE seckill_items SET total = 9 WHERE sku = 'a'", "the items' totals are"),
    ],
)
async def test_what_does_not_fit_is_seen(ledger: Ledger, statement: str, said: str) -> None:
    await change(ledger, statement)
    verdict = await prove(ledger, SALE)
    assert not verdict.ok
    assert any(said in violation.text for violation in verdict.violations), verdict.violations


async def test_a_sale_that_nobody_knows(ledger: Ledger) -> None:
    with pytest.raises(UnknownSale):
        await prove(ledger, "nix")
