"""Forgetting buyers: nothing that names them stays, and everything else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from seckill.errors import InvalidInput
from seckill.ledger import Ledger
from seckill.ledger import forget as forget_module
from seckill.ledger.forget import Forgotten, Retired, StillKnown, forget, retire
from seckill.ledger.report import make_report
from seckill.ledger.rows import decode
from seckill.verify import Replay
from tests.ledger.scripted import OPENS_MS, SALE, A, C, F, fill, known, settled

BUYERS = ("u1", "u2", "=u3", "u4")
ENDED_MS = OPENS_MS + 3_600_000


async def execute(ledger: Ledger, sql: str) -> list[Any]:
    async with ledger.engine.begin() as connection:
        result = await connection.execute(text(sql))
        return list(result) if result.returns_rows else []


async def everything(ledger: Ledger) -> list[Any]:
    """What the ledger holds of orders and events."""
    orders = await execute(ledger, "SELECT * FROM seckill_orders ORDER BY sale, id")
    return orders + await execute(ledger, "SELECT * FROM seckill_events ORDER BY sale, seq")


async def mark_removed(ledger: Ledger) -> None:
    await execute(ledger, "UPDATE seckill_sales SET removed_at_ms = 1")


async def names(ledger: Ledger) -> dict[str, str]:
    """Buyer by order: orders, their records and their events must agree."""
    rows = await execute(ledger, "SELECT id, buyer, record FROM seckill_orders")
    found = {order: buyer for order, buyer, _ in rows}
    for order, buyer, record in rows:
        assert record.split("|")[2] == buyer, order
    events = "SELECT subject, body FROM seckill_events WHERE subject <> 'sale'"
    for order, body in await execute(ledger, events):
        assert body.split("|")[3] == found[order], body
    return found


async def check_sound(ledger: Ledger) -> None:
    """The events still replay without a broken rule, into the orders that the rows say."""
    replay = Replay(known().sale)
    async for part in ledger.events(SALE):
        for raw in part:
            replay.feed(decode(known(), raw))
    # The script pays no heed to deadlines or the sale's state; buyers and limits are what counts.
    assert {each.rule for each in replay.violations} <= {"deadline", "sale state", "settled"}
    assert {order.id: order.buyer for order in replay.orders.values()} == await names(ledger)


async def test_a_buyer_is_forgotten(database_url: str) -> None:
    async with Ledger(database_url) as ledger:
        await fill(ledger, settled())
        await mark_removed(ledger)
        before, report = await everything(ledger), await make_report(ledger, SALE)
        # Orders A, C and F with four, three and two events.
        assert await forget(ledger, "u1") == Forgotten((SALE,), 3, 9)
        there = await names(ledger)
        assert there[A] == there[C] == there[F]
        assert there[A].startswith("forgotten ")
        assert len(there[A]) == len("forgotten ") + 16
        after = await everything(ledger)
        assert not [row for row in after if "u1" in repr(row) or "room=1" in repr(row)]
        assert "phone=139" not in repr(after)
        # Nothing but what names the buyer has changed.
        neutral = repr(after).replace(there[A], "u1")
        plain = repr(before).replace("room=1|备注", "").replace("phone=139", "")
        assert neutral == plain
        assert await make_report(ledger, SALE) == report
        await check_sound(ledger)
        assert await forget(ledger, "u1") == Forgotten((), 0, 0)
        assert await everything(ledger) == after


async def test_a_buyer_of_many_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forget_module, "ORDERS_MAX", 2)
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, settled())
        await mark_removed(ledger)
        assert await forget(ledger, "u1") == Forgotten((SALE,), 3, 9)
        await names(ledger)


async def test_a_pseudonym_is_no_id_of_a_buyer(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, settled())
        await mark_removed(ledger)
        await forget(ledger, "u1")
        with pytest.raises(InvalidInput, match="BUYER"):
            await forget(ledger, (await names(ledger))[A])


@pytest.mark.parametrize("end", [19, 23], ids=["running", "settled"])
async def test_redis_must_have_forgotten_first(database_url: str, end: int) -> None:
    async with Ledger(database_url) as ledger:
        await fill(ledger, settled()[:end])
        before = await everything(ledger)
        with pytest.raises(StillKnown, match=SALE) as caught:
            await forget(ledger, "u1")
        assert (caught.value.running, caught.value.settled) == (
            ((SALE,), ()) if end == 19 else ((), (SALE,))
        )
        assert await everything(ledger) == before
        # Somebody who has no orders there is not concerned.
        assert await forget(ledger, "U1") == Forgotten((), 0, 0)


# -- all buyers of old sales ------------------------------------------------------------------


async def test_old_sales_forget_their_buyers(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget_module, "READ_ROWS", 4)
    async with Ledger(database_url) as ledger:
        await fill(ledger, settled())
        await mark_removed(ledger)
        report = await make_report(ledger, SALE)
        await forget(ledger, "u2")
        assert await retire(ledger, before_ms=ENDED_MS) == Retired()
        assert "=u3" in (await names(ledger)).values()
        assert await retire(ledger, before_ms=ENDED_MS + 1) == Retired((SALE,))
        there = await names(ledger)
        assert all(name.startswith("retired ") for name in there.values())
        assert len(set(there.values())) == len(BUYERS)
        assert there[A] == there[C] == there[F]
        after = await everything(ledger)
        assert "room=1" not in repr(after)
        assert "phone=139" not in repr(after)
        assert await make_report(ledger, SALE) == report
        await check_sound(ledger)
        assert await retire(ledger, before_ms=ENDED_MS + 1) == Retired()
        assert await everything(ledger) == after


async def test_what_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pseudonyms' key is lost with the process; the events take theirs from the orders."""
    monkeypatch.setattr(forget_module, "READ_ROWS", 4)
    rename, calls = forget_module._rename_in_events, 0

    async def dying(*args: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return await rename(*args)

    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, settled())
        await mark_removed(ledger)
        monkeypatch.setattr(forget_module, "_rename_in_events", dying)
        with pytest.raises(KeyboardInterrupt):
            await retire(ledger, before_ms=ENDED_MS + 1)
        monkeypatch.setattr(forget_module, "_rename_in_events", rename)
        with pytest.raises(AssertionError):
            await names(ledger)  # It was in the middle of it.
        assert await retire(ledger, before_ms=ENDED_MS + 1) == Retired((SALE,))
        await check_sound(ledger)


async def test_old_sales_in_redis_wait(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, settled())
        before = await everything(ledger)
        assert await retire(ledger, before_ms=ENDED_MS + 1) == Retired((), (SALE,))
        assert await everything(ledger) == before


async def test_a_sale_without_orders_has_nothing_to_forget(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, settled()[:2])
        await mark_removed(ledger)
        assert await retire(ledger, before_ms=ENDED_MS + 1) == Retired()
