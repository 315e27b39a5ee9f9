"""``seckill demo``: that it passes on the real thing, and fails on a broken one."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from seckill.cli.demo_check import check_books, plainest_first
from seckill.cli.demo_messages import Books, Mischief, Receipt
from seckill.cli.demo_report import Report, Story
from seckill.cli.demo_sale import demo_sale, example_file
from seckill.cli.demo_screen import _clock, _final
from seckill.order import Order, State
from seckill.snapshot import Snapshot, Stock
from seckill.verify import Violation
from tests.cli.conftest import run_seckill
from tests.properties.mutations import MUTATIONS

REPO = Path(__file__).parents[2]

LIMITS = ("no limit per order", "no limit per SKU", "no limit per buyer")


def broken_tree(tmp_path: Path, *names: str) -> Path:
    """A copy of the package with these mutations in its scripts, to be put on PYTHONPATH."""
    no_caches = shutil.ignore_patterns("__pycache__")
    package = tmp_path / "tree" / "seckill"
    shutil.copytree(REPO / "seckill", package, ignore=no_caches)
    for name in ("lua", "server", "examples"):
        shutil.copytree(REPO / name, package / name, ignore=no_caches)
    for mutation in MUTATIONS:
        if mutation.name not in names:
            continue
        texts = {path: path.read_text("utf-8") for path in package.glob("lua/**/*.lua")}
        sound = [path for path, text in texts.items() if mutation.old in text]
        assert sound, mutation.name
        for path in sound:
            path.write_text(texts[path].replace(mutation.old, mutation.new), "utf-8")
    assert set(names) <= {mutation.name for mutation in MUTATIONS}
    return package.parent


@pytest.mark.slow
def test_demo_passes(tmp_path: Path) -> None:
    done = run_seckill("demo", "--buyers", "1500", "--json", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert (done.code, done.err) == (0, "")
    report = done.data
    assert report["ok"] is True
    assert report["violations"] == []
    assert report["buyers"] == 1500
    assert report["unanswered"] == 0
    for sku in report["skus"]:
        assert sku["confirmed"] + sku["available"] == sku["total"]
        assert sku["held"] == 0
    assert report["expired"] > 0
    assert report["units_resold"] > 0
    assert report["refunds_due"] > 0
    assert {"sold_out", "conflict", "sku_limit", "order_limit"} <= set(report["refused"])
    assert report["orders_in_stream"] == report["accepted"]
    assert sum(report["accepted_became"].values()) == report["accepted"]
    assert report["accepted_became"]["confirmed"] == report["paid"]
    assert report["accepted_became"]["expired"] == report["expired"] - report["paid_late"]
    screen = Console(file=io.StringIO(), width=100)
    for part in _final(msgspec.convert(report, Report), width=100):
        screen.print(part)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert f"{report['accepted']:,} orders = {report['paid']:,} paid + " in shown
    assert "order requests answered in the best second" in shown
    assert "load, intake and server share this machine's" in shown
    assert 0 < report["p50_ms"] <= report["p99_ms"]
    assert report["script_micros_per_decided"] > 0
    assert list(tmp_path.glob("seckill-demo-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutations", "rule"),
    [
        (["no stock check"], "oversold"),
        (["no id check"], "accepted twice"),
        (LIMITS, "limit"),
    ],
    ids=["no stock check", "no id check", "no limit check"],
)
def test_demo_names_the_violation(tmp_path: Path, mutations: Sequence[str], rule: str) -> None:
    tree = broken_tree(tmp_path, *mutations)
    done = run_seckill("demo", "--buyers", "1000", cwd=tmp_path, PYTHONPATH=str(tree))
    assert done.code == 1
    assert done.err.startswith(f"seckill: violation: {rule}: ")
    assert f"✗ {rule}: " in done.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "seckill.cli", "demo"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # pytest-xdist may have been started with SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "seckill: stopped; nothing was checked\n")
    assert list(tmp_path.glob("seckill-demo-*")) == []


def test_the_clock_waits_for_the_opening() -> None:
    for at_ms, shown in ((0, "+0.0 s"), (1_000, "+0.0 s"), (2_500, "+1.5 s")):
        assert _clock(msgspec.structs.replace(snapshot(), at_ms=at_ms, opens_ms=1_000)) == shown


def test_the_example_is_found() -> None:
    assert example_file("evening-sale.toml").is_file()
    sale = demo_sale(1_000)
    assert len(sale.items) >= 3
    assert any(ord(char) > 0x4E00 for char in sale.items[0].title)
    assert 800 <= sale.total_units <= 1_200
    assert sale.hold_ms < 5_000


def books(**fields: Any) -> Books:
    zeros = dict.fromkeys(("seconds", "p50_ms", "p90_ms", "p99_ms", "max_ms"), 0.0)
    receipt = Receipt("o1", "u1", "k1", {"a": 2}, created=1)
    whole: dict[str, Any] = {
        "receipts": [receipt],
        "refused": {},
        "mischief": Mischief(),
        "broken": [],
        "hung_up": [],
        "unanswered": 0,
        "probes": {"a": "sold_out"},
        "retried": {},
        "buyers": 1,
        "requests": 1,
        "decided": 1,
    }
    return Books(**(zeros | whole | fields))


def story(held: int = 1, **fields: Any) -> Story:
    order = {"buyer": "u1", "state": State.EXPIRED, "items": {"a": 2}} | fields
    told = Story()
    told.orders["o1"] = Order(id="o1", sale="s", version=2, amount_fen=2, deadline_ms=0, **order)
    told.held["o1"] = held
    return told


def snapshot(available: int = 0, held: int = 0, confirmed: int = 10, total: int = 10) -> Snapshot:
    stock = {"a": Stock(available, held, confirmed, total)}
    return Snapshot("s", 0, "settled", "", 1, 0, 0, stock, 1, 1, 0, 0, 1, 1, "")


def rules(found: list[Violation]) -> set[str]:
    return {violation.rule for violation in found}


def test_check_accepts_what_agrees() -> None:
    assert check_books(books(), story(), snapshot()) == []
    # Whoever hung up may have an order that nobody was told of.
    hung_up = books(receipts=[], hung_up=["u1"])
    assert check_books(hung_up, story(), snapshot()) == []


@pytest.mark.parametrize(
    ("books_", "story_", "snapshot_", "rule"),
    [
        (books(), Story(), snapshot(), "lost"),
        (books(), story(buyer="u2"), snapshot(), "another order"),
        (books(), story(items={"a": 1}), snapshot(), "another order"),
        (books(), story(held=2), snapshot(), "units"),
        (books(receipts=[]), story(), snapshot(), "unknown order"),
        (books(broken=[("reused key", "x")]), story(), snapshot(), "reused key"),
        (books(), story(), snapshot(available=1, confirmed=9), "undersold"),
        (books(), story(), snapshot(held=1, confirmed=9), "stuck"),
        (books(), story(), snapshot(confirmed=9), "conservation"),
        (
            books(receipts=[Receipt("o1", "u1", "k1", {"a": 2}, created=1, paid="p1")]),
            story(),
            snapshot(),
            "lost payment",
        ),
    ],
)
def test_check_finds_what_does_not(
    books_: Books, story_: Story, snapshot_: Snapshot, rule: str
) -> None:
    assert rule in rules(check_books(books_, story_, snapshot_))


def test_the_plainest_violation_comes_first() -> None:
    found = [Violation(3, "seq", ""), Violation(9, "oversold", ""), Violation(1, "drift", "")]
    assert [violation.rule for violation in plainest_first(found)] == ["oversold", "seq", "drift"]
