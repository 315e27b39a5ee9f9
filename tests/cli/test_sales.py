"""``seckill sale`` and ``seckill stock``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import redis
from rich.cells import cell_len

from seckill.keys import shard_keys
from tests.cli.conftest import Seckill

SaleFile = Callable[..., tuple[str, Path]]


def test_life_of_a_sale(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    assert seckill("sale", "create", str(path)).code == 0
    shown = seckill("sale", "show", sale)
    assert shown.code == 0
    assert "created" in shown.out
    assert "¥2,999.00" in shown.out
    for verb, phase in (
        ("open", "selling"),
        ("pause", "paused"),
        ("resume", "selling"),
        ("close", "settled"),
    ):
        more = ("--reason", "[bold]库存核对[/bold]") if verb == "pause" else ()
        done = seckill("sale", verb, sale, *more, "--json")
        assert done.code == 0
        assert done.data["status"] == "done"
        data = seckill("sale", "show", sale, "--json").data
        assert data["phase"] == phase
        assert data["snapshot"]["reason"] == ("[bold]库存核对[/bold]" if verb == "pause" else "")
    again = seckill("sale", "open", sale)
    assert again.code == 1
    assert again.out == ""
    assert again.err == f"seckill: sale {sale}: open: the sale is closed (closed)\n"


def test_create_and_open_in_one(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    done = seckill("sale", "create", str(path), "--open", "--json")
    assert done.code == 0
    assert done.data["created"]["status"] == "created"
    again = seckill("sale", "create", str(path), "--open", "--json")
    assert again.code == 0
    assert again.data["status"] == "already"
    assert again.data["created"]["status"] == "exists"
    path.write_text(path.read_text("utf-8").replace("total = 20\n", "total = 21\n"), "utf-8")
    other = seckill("sale", "create", str(path), "--open", "--json")
    assert other.code == 1
    assert other.data["status"] == "conflict"
    said = seckill("sale", "create", str(path)).err
    assert said.startswith(f"seckill: sale {sale}: exists with another definition, and ")
    assert "seckill stock add); choose another id (conflict)" in said
    assert seckill("sale", "show", sale, "--json").data["snapshot"]["stock"]["phone"]["total"] == 20


def test_create_and_open_now(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file("2099-12-31T18:30:00+08:00")  # It lasts 90 minutes.
    done = seckill("sale", "create", str(path), "--open", "--now", "--json")
    assert (done.code, done.data["status"]) == (0, "done")
    data = seckill("sale", "show", sale, "--json").data
    assert data["phase"] == "selling"
    assert abs(data["definition"]["opens_ms"] - time.time() * 1000) < 60_000
    assert data["definition"]["ends_ms"] - data["definition"]["opens_ms"] == 5_400_000
    window = ("opens_ms", "ends_ms")
    assert [done.data[name] for name in window] == [data["definition"][name] for name in window]
    _, path = sale_file("2099-12-31T18:30:00+08:00")
    shown = seckill("sale", "create", str(path), "--open", "--now").out
    assert re.search(
        r"opened: done\nopens  20\d\d-.*  00:00 ago\nends   20.*  in 01:30:00\n", shown
    )


def test_a_sale_that_has_ended_opens_with_a_warning(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file("2020-01-01T20:00:00+08:00")
    path.write_text(path.read_text("utf-8").replace("2099-12-31", "2020-01-02"), "utf-8")
    done = seckill("sale", "create", str(path), "--open", "--json")
    assert (done.code, done.data["status"]) == (0, "done")
    assert done.err == (
        f"seckill: warning: sale {sale} ended at 2020-01-02 20:00:00 +08:00, so it sells nothing\n"
    )


def test_what_is_so_already_is_said_plainly(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path), "--open")
    for verb, state in (("open", "open"), ("resume", "open"), ("pause", "paused")):
        if verb == "pause":
            seckill("sale", "pause", sale)
        said = f"sale {sale}: {verb}: it is {state} already"
        assert seckill("sale", verb, sale).out == f"✓ {said}\n"
    seckill("sale", "close", sale)
    again = seckill("sale", "close", sale, "--json").data
    assert (again["status"], again["meaning"]) == ("already", "it is closed already")


def test_show_tells_local_time_and_keeps_brackets(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file("2099-01-01T20:00:00+08:00")
    seckill("sale", "create", str(path), "--open")
    shown = seckill("sale", "show", sale).out
    assert "周六晚8点 [bold]秒杀[/bold]" in shown
    assert "五常大米 [5kg]" in shown
    assert "2099-01-01 20:00:00 +08:00  in " in shown
    assert "not started" in shown


def test_chinese_titles_line_up(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path))
    for columns in ("80", "120"):
        lines = seckill("stock", "show", sale, COLUMNS=columns).out.splitlines()
        head = next(line for line in lines if line.startswith("SKU"))
        ends = {cell_len(head[: head.index("total") + len("total")])}
        for number in ("20", "1,300"):
            line = next(line for line in lines if line.rstrip().endswith(number))
            ends.add(cell_len(line.rstrip()))
            assert cell_len(line) <= int(columns)
        assert len(ends) == 1


def test_list(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path))
    rows = {row["sale"]: row for row in seckill("sale", "list", "--json").data}
    assert rows[sale]["total"] == 1320
    assert rows[sale]["phase"] == "created"
    assert sale in seckill("sale", "list").out


def test_a_damaged_sale_hides_no_other(
    seckill: Seckill, sale_file: SaleFile, client: redis.Redis
) -> None:
    damaged, other = sale_file(), sale_file()
    for _, path in (damaged, other):
        seckill("sale", "create", str(path))
    client.hdel(shard_keys(damaged[0])[1], "0:available")
    listed = seckill("sale", "list", "--json")
    assert other[0] in {row["sale"] for row in listed.data}
    assert f"stock of sale {damaged[0]} is damaged" in listed.err.replace("\n", " ")
    assert "bug" not in listed.err
    client.delete(*shard_keys(damaged[0]))


def test_stock_is_changed_once_for_each_key(seckill: Seckill, sale_file: SaleFile) -> None:
    sale, path = sale_file()
    seckill("sale", "create", str(path), "--open")
    added = seckill("stock", "add", sale, "phone", "5", "--key", "k1", "--json").data
    assert (added["status"], added["available"], added["total"]) == ("done", 25, 25)
    again = seckill("stock", "add", sale, "phone", "5", "--key", "k1", "--json")
    assert (again.code, again.data["status"], again.data["total"]) == (0, "already", 25)
    taken = seckill("stock", "take", sale, "phone", "20", "--key", "k2", "--json").data
    assert (taken["status"], taken["available"]) == ("done", 5)
    too_many = seckill("stock", "take", sale, "phone", "6", "--key", "k3")
    assert too_many.code == 1
    assert "below_committed" in too_many.err
    assert seckill("stock", "show", sale, "--json").data["phone"]["total"] == 5
    wrong = seckill("stock", "add", sale, "phones", "5", "--key", "k4")
    assert wrong.code == 1
    assert "no such SKU" in wrong.err
    for units in ("0", "-5", "five", "1.5"):
        assert seckill("stock", "add", sale, "phone", units, "--key", "k5").code == 2
    assert seckill("stock", "add", sale, "phone", "5").code == 2
