"""The CSV for finance: what stands in it, what Excel makes of it, and that it adds up."""

from __future__ import annotations

import csv
import io
import random
from datetime import UTC, timedelta, timezone
from pathlib import Path

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, UnknownSale
from seckill.ledger import Ledger, export
from seckill.ledger.export import COLUMNS, Exported, Sort, export_csv
from seckill.ledger.report import make_report
from seckill.zone import read_zone
from tests.ledger.scripted import PAYMENT, SALE, A, B, C, D, E, F, fill, raws
from tests.ledger.stories import STEPS, read_known, read_raws, story_sale, tell

CHINA = timezone(timedelta(hours=8))
Rows = list[dict[str, str]]


async def exported(
    ledger: Ledger, sale: str = SALE, *, sort: Sort = Sort.TIME
) -> tuple[Rows, Exported]:
    parts: list[str] = []
    told = await export_csv(ledger, sale, CHINA, parts.append, sort=sort)
    rows = list(csv.DictReader(io.StringIO("".join(parts), newline="")))
    assert all(None not in row and None not in row.values() for row in rows)
    return rows, told


async def test_every_cell(database_url: str) -> None:
    async with Ledger(database_url) as ledger:
        await fill(ledger, raws())
        rows, told = await exported(ledger)
    assert told == Exported(orders=6, rows=7, gross_fen=3_000, refunded_fen=2_500)
    day = "2025-12-12T20"
    assert [tuple(row.values()) for row in rows] == [
        (
            *(SALE, f"{A}", "u1", "a", "'=商品 a", "1", "1000", "1000", "10.00", "refunded"),
            *(f"{day}:00:00.100+08:00", f"{day}:00:01.200+08:00", f"{day}:01:02.000+08:00"),
            *(f"'{PAYMENT}", "rA", "pA2"),
        ),
        (
            *(SALE, f"{B}", "u2", "a", "'=商品 a", "2", "1000", "2000", "20.00", "released"),
            *(f"{day}:00:00.200+08:00", "", "", "", "", ""),
        ),
        (
            *(SALE, f"{C}", "u1", "b", "商品 b", "1", "500", "500", "5.00", "confirmed"),
            *(f"{day}:00:00.300+08:00", f"{day}:01:01.000+08:00", "", "pC", "", ""),
        ),
        *(
            (
                *(SALE, f"{D}", "'=u3", sku, title, "1", str(fen), str(fen), yuan, "refunded"),
                *(f"{day}:00:05.500+08:00", f"{day}:00:09.000+08:00", f"{day}:01:03.000+08:00"),
                *("pD", "'-rD", ""),
            )
            for sku, title, fen, yuan in (
                ("a", "'=商品 a", 1_000, "10.00"),
                ("b", "商品 b", 500, "5.00"),
            )
        ),
        # 24 digits with an e are a number to Excel.
        (
            *(SALE, f"'{E}", "u4", "a", "'=商品 a", "2", "1000", "2000", "20.00", "paying"),
            *(f"{day}:01:04.000+08:00", "", "", "", "", ""),
        ),
        (
            *(SALE, f"{F}", "u1", "b", "商品 b", "1", "500", "500", "5.00", "held"),
            *(f"{day}:01:10.000+08:00", "", "", "", "", ""),
        ),
    ]
    assert tuple(rows[0]) == COLUMNS


@pytest.mark.parametrize("seed", range(4))
async def test_it_adds_up_to_the_report(
    server: EmbeddedServer, database_url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "READ_ROWS", 5)
    rng = random.Random(seed)
    steps = [(rng.choice(STEPS), rng.randrange(30), rng.randrange(30)) for _ in range(80)]
    sale = story_sale()
    options = {"durability": "memory", "sweep_ms": 0}
    async with Engine(server.url, **options) as seller:
        await tell(seller, sale, steps)
    async with Engine(server.url, **options) as engine, Ledger(database_url) as ledger:
        real = await read_known(engine, sale.id)
        await ledger.know(real)
        await ledger.write([(real, await read_raws(engine, sale.id))])
        report = await make_report(ledger, sale.id)
        rows, told = await exported(ledger, sale.id)
        by_id, again = await exported(ledger, sale.id, sort=Sort.ID)
    paid = [row for row in rows if row["state"] in ("confirmed", "refunded")]
    refunded = [row for row in rows if row["state"] == "refunded"]
    assert sum(int(row["amount_fen"]) for row in paid) == report.gross_fen == told.gross_fen
    assert sum(int(row["amount_fen"]) for row in refunded) == report.refunded_fen
    assert told.net_fen == report.net_fen
    assert (told.orders, told.rows) == (report.orders, len(rows))
    assert len({row["order"] for row in rows}) == report.orders
    assert all(row["paid_at"] for row in paid)
    assert [bool(row["refunded_at"]) for row in rows] == [row in refunded for row in rows]
    units = sum(int(row["quantity"]) for row in paid) - sum(int(r["quantity"]) for r in refunded)
    assert units == report.sold
    due = [payment for row in rows for payment in row["due_back_payments"].split()]
    one_line = {row["order"]: row["due_back_payments"] for row in rows}
    assert sum(len(text.split()) for text in one_line.values()) == report.due_back_payments
    assert len(due) >= report.due_back_payments
    held = [(row["held_at"], row["order"].lstrip("'")) for row in rows]
    assert held == sorted(held)
    ids = [row["order"].lstrip("'") for row in by_id]
    assert ids == sorted(ids)
    assert again == told
    assert sorted(rows, key=repr) == sorted(by_id, key=repr)


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        *(("=1+1", True), ("+86", True), ("-1", True), ("@x", True), ("\tx", True), ("'x", True)),
        *((PAYMENT, True), ("007", True), ("12e5", True), ("00e1", True), ("1.5E+3", True)),
        *(("u1=2", False), ("12345678901", False), ("a-b", False), ("", False), ("0", False)),
        *(("00f3", False), ("商品", False), ("room 1", False)),
    ],
)
def test_what_excel_would_change_is_guarded(text: str, guarded: bool) -> None:
    assert export._guarded(text) == ("'" + text if guarded else text)


async def test_an_unknown_sale(tmp_path: Path) -> None:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        with pytest.raises(UnknownSale):
            await exported(ledger, "nobody")


async def test_whoever_can_not_write_is_told_as_it_is(tmp_path: Path) -> None:
    """A full disk or a closed pipe is not taken for an error of the database."""

    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await fill(ledger, raws())
        with pytest.raises(OSError, match="No space left") as caught:
            await export_csv(ledger, SALE, UTC, full)
        assert type(caught.value) is OSError
        # The reading was ended: a writer does not wait for it.
        await ledger.seen(SALE, 99)


@pytest.mark.parametrize("text", ["+08:00", "-03:30", "Asia/Shanghai", "UTC"])
def test_zones(text: str) -> None:
    assert read_zone(text)


@pytest.mark.parametrize(
    "text", ["", "8", "+8:00", "+15:00", "+08:60", "Asia/Peking", "../etc", "/etc"]
)
def test_what_is_no_zone(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a time zone"):
        read_zone(text)
