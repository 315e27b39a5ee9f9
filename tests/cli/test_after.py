"""What comes after a sale: ``report``, ``export``, ``forget`` and ``sale remove``."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from seckill.cli.app import run as command_line
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.ledger import Ledger
from seckill.ledger.archive import read_archive
from seckill.ledger.run import LedgerRunner
from tests.cli.conftest import Ran, run_seckill
from tests.ledger.scripted import SALE, fill, raws, settled

Run = Callable[..., Ran]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A ledger with the scripted sale, still running."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    write(url, settled=False)
    return url


def write(url: str, *, settled: bool, removed: bool = False) -> None:
    async def main() -> None:
        async with Ledger(url) as ledger:
            await fill(ledger, STORY[settled])
            await ledger.refused(SALE, '{"sold_out":1234567,"not_open":3}')
            if removed:
                async with ledger.engine.begin() as connection:
                    await connection.exec_driver_sql("UPDATE seckill_sales SET removed_at_ms = 1")

    asyncio.run(main())


STORY = {False: raws(), True: settled()}


@pytest.fixture
def run(
    tmp_path: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command that asks the ledger and nobody else, in this process: it has no signals to
    hear, and a new one for each of these takes a second."""

    def run(*args: str, **env: str) -> Ran:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["seckill", *args])
            for name, value in ({"SECKILL_LEDGER": url, "COLUMNS": "100"} | env).items():
                patch.setenv(name, value)
            code = command_line()
        return Ran(code, *capsys.readouterr())

    return run


SCREEN = """\
<b>双十二</b> & 返场  s-1212  paused (库存核对)
from 2025-12-12 20:00:00 +08:00 to 2025-12-12 21:00:00 +08:00
as of event 19, 2025-12-12 20:01:20 +08:00

revenue     ¥5.00 net · ¥30.00 gross · ¥25.00 refunded · ¥10.00 due back to buyers (1 payment)
units       1 sold · 3 held · 4 unsold · of 8 · 3 refunded
orders      6 accepted · 1 held · 1 paying · 1 confirmed · 2 refunded · 1 released
buyers      4 with orders · 2 paid
payment     50.0 % of the orders paid · half of them within 3.5 s · 90 % within 1 min
            1 after they had expired
sold out    after 1 min 04 s · 4 units came back, 4 ordered again
refused     sold out 1,234,567 · not open 3
first, last 2025-12-12 20:00:00 +08:00 · 2025-12-12 20:01:10 +08:00

ordered     █ ▄                             ▄  ▂  up to 4 units in 2 s
paid        ▄   █                         ▄       up to 2 units in 2 s
            20:00:00                    20:01:12

item        total  sold  held  unsold  again  net revenue  sold out after
=商品 a  a      2     0     2       0      3        ¥0.00           0.2 s
商品 b  b       6     1     1       4      1        ¥5.00           5.5 s
"""


def test_the_screen(run: Run) -> None:
    shown = run("report", SALE)
    assert shown.code == 0
    assert [line.rstrip() for line in shown.out.splitlines()] == SCREEN.splitlines()
    assert "\x1b" not in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_no_line_of_figures_is_too_long(run: Run, columns: str) -> None:
    shown = run("report", SALE, COLUMNS=columns, NO_COLOR="1")
    assert shown.code == 0
    assert all(cell_len(line) <= int(columns) for line in shown.out.splitlines()[2:])
    for word in ("¥10.00 due back", "1,234,567", "▄", "商品 b"):
        assert word in shown.out


def test_as_a_process(tmp_path: Path, url: str) -> None:
    """As the others, but through the door."""
    env = {"SECKILL_LEDGER": url, "TZ": "America/New_York"}
    shown = run_seckill("report", SALE, cwd=tmp_path, **env)
    assert [line.rstrip() for line in shown.out.splitlines()] == SCREEN.splitlines()
    data = run_seckill("export", SALE, cwd=tmp_path, **env)
    assert data.out.startswith("\ufeffsale,order,")


def test_json_and_page(run: Run, tmp_path: Path) -> None:
    shown = run("report", SALE, "--json", "--html", "r.html", "--zone", "UTC")
    assert shown.code == 0
    data = shown.data
    assert (data["net_fen"], data["pay_through"], data["as_of_seq"]) == (500, 0.5, 19)
    assert data["skus"][1]["sold_out_ms"] == 59_500
    assert data["curve"][1]["confirmed"] == 1
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "2025-12-12 12:00:00" in page
    assert "已暂停" in page
    assert not list(tmp_path.glob("*.part"))
    assert "✓ written to r.html" in run("report", SALE, "--html", "r.html").out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("report", "s-1213"), "SALE: the ledger has no sale 's-1213'; did you mean s-1212?"),
        (("export", "s-1213"), "SALE: the ledger has no sale 's-1213'; did you mean s-1212?"),
        (("report", "a b"), "SALE: 'a b' holds ' '; write 1 to 40"),
        (("report", SALE, "--zone", "Mars"), "--zone: 'Mars' is not a time zone; write an offset"),
        (("report", SALE, "--html", "no/r.html"), "--html: no/r.html can't be written: No such"),
        (("export", SALE, "-o", "no/r.csv"), "--output: no/r.csv can't be written: No such"),
        (("export", SALE, "-o", "."), "--output: . is a folder; name a file"),
        (("forget", "a b"), "BUYER: 'a b' holds ' '; write 1 to 64"),
    ],
)
def test_what_can_not_be_done(run: Run, args: tuple[str, ...], said: str) -> None:
    done = run(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"seckill: {said}")


@pytest.mark.parametrize("verb", [("report", SALE), ("export", SALE), ("forget", "u1")])
def test_the_ledger_must_be_named(run: Run, verb: tuple[str, ...]) -> None:
    done = run(*verb, SECKILL_LEDGER="")
    assert (done.code, done.out) == (2, "")
    assert "give --ledger URL, or set SECKILL_LEDGER" in done.err


def test_export(run: Run, tmp_path: Path) -> None:
    shown = run("export", SALE)
    assert shown.code == 0
    assert shown.out.startswith("\ufeffsale,order,")
    told = "6 orders in 7 rows; ¥30.00 gross, ¥25.00 refunded, ¥5.00 net"
    assert shown.err == f"✓ sale {SALE}: {told}\n"
    rows = list(csv.DictReader(io.StringIO(shown.out.lstrip("\ufeff"))))
    assert [row["buyer"] for row in rows] == ["u1", "u2", "u1", "'=u3", "'=u3", "u4", "u1"]
    wrote = run("export", SALE, "-o", "o.csv", "--no-bom", "--sort", "id", "--zone", "UTC")
    assert (wrote.code, wrote.out, wrote.err) == (0, f"✓ sale {SALE}: {told}\n", "")
    data = (tmp_path / "o.csv").read_bytes()
    assert data.startswith(b"sale,order,")
    assert b"2025-12-12T12:00:00.100+00:00" in data
    assert data.count(b"\r\n") == 8


def test_forget(run: Run, url: str) -> None:
    early = run("forget", "u1")
    assert (early.code, early.out) == (1, "")
    assert f"the buyer has orders in sales that are not settled: {SALE} (seckill" in early.err
    write(url, settled=True)
    early = run("forget", "u1")
    assert early.code == 1
    assert f"the buyer has orders in sales that are still in Redis: {SALE};" in early.err
    write(url, settled=True, removed=True)
    done = run("forget", "u1")
    assert done.code == 0
    assert f"✓ forgotten in 3 orders and 9 events in {SALE}\n" in done.out
    assert "archives made before still name the buyer" in done.out
    assert run("forget", "u1").out == "✓ the ledger has no orders of this buyer\n"
    again = run("forget", "u2", "--json")
    assert again.data == {"sales": [SALE], "orders": 1, "events": 2}
    shown = run("report", SALE)
    assert "its keys have left Redis" in shown.out


def test_remove(
    run: Run,
    server: EmbeddedServer,
    tmp_path: Path,
    sale_file: Callable[..., tuple[str, Path]],
) -> None:
    sale, path = sale_file()
    url = f"sqlite:///{tmp_path}/other.db"
    ask = run

    def run_there(*args: str) -> Ran:
        env = {"SECKILL_REDIS": server.url, "SECKILL_LEDGER": url}
        return ask(*args, "--durability", "memory", **env)

    async def drain() -> None:
        async with Engine(server.url, durability="memory") as engine, Ledger(url) as ledger:
            await LedgerRunner(engine, ledger, sales=[sale], once=True).run()

    assert run_there("sale", "create", str(path), "--open").code == 0
    # Whoever creates a sale only asks the ledger, and makes none.
    absent = run_there("sale", "remove", sale)
    assert (absent.code, absent.out) == (2, "")
    assert f"{tmp_path}/other.db does not exist; name the file that" in absent.err
    assert ask("ledger", "migrate", "--ledger", url).code == 0
    unknown = run_there("sale", "remove", sale)
    assert (unknown.code, unknown.out) == (2, "")
    assert unknown.err == (
        f"seckill: SALE: the ledger has no sale '{sale}'; seckill ledger run writes them there,"
        " and of a sale that is fenced seckill reconcile SALE --fix what it sells\n"
    )
    asyncio.run(drain())
    early = run_there("sale", "remove", sale)
    assert (early.code, early.out) == (1, "")
    assert f"sale '{sale}' can't be removed: it is open; close it (seckill sale close)" in early.err
    assert run_there("sale", "close", sale).code == 0
    behind = run_there("sale", "remove", sale)
    assert behind.code == 1
    assert "the ledger has 2 of its 4 events; let `seckill ledger run` catch up" in behind.err
    asyncio.run(drain())
    nowhere = run_there("sale", "remove", sale, "--archive", "no/a.json.gz")
    assert (nowhere.code, nowhere.out) == (2, "")
    assert nowhere.err.startswith("seckill: --archive: no/a.json.gz can't be written: No such")
    done = run_there("sale", "remove", sale, "--archive", "a.json.gz")
    assert done.code == 0
    text = re.sub(r"\s+", " ", done.out)
    assert re.search(
        rf"✓ sale {sale}: \d keys removed; its 4 events stay in the ledger and in a.json.gz", text
    )
    with read_archive(tmp_path / "a.json.gz") as archive:
        assert len(list(archive.events)) == 4
    again = run_there("sale", "remove", sale, "--json")
    assert again.data == {"sale": sale, "events": 4, "keys": 0, "archive": ""}
    assert run_there("sale", "show", sale).code == 1
