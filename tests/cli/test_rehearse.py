"""``seckill rehearse``: needs no server that is named, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import redis

from seckill.embedded import EmbeddedServer
from tests.cli.conftest import Ran, run_seckill

SALE = """
id = "tonight"
title = "今晚八点 [bold]"
opens_at = 2026-12-05T20:00:00+08:00
ends_at = 2026-12-05T22:00:00+08:00
[admission]
mode = "queue"
rate_per_s = 20
token_life_ms = 20_000
[[items]]
sku = "mug"
title = "青瓷马克杯"
price_fen = 5900
total = 200
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sale.toml").write_text(SALE, encoding="utf-8")
    return tmp_path


def rehearse(folder: Path, *args: str) -> Ran:
    # The mall's own server is not the one to reckon on.
    return run_seckill(
        "rehearse", "sale.toml", *args, cwd=folder, SECKILL_REDIS="redis://127.0.0.1:1/0"
    )


def test_it_says_how_the_evening_goes(folder: Path) -> None:
    ran = rehearse(folder, "--buyers", "2000", "--svg", "evening.svg")
    assert (ran.code, ran.err) == (0, "")
    assert "今晚八点 [bold]  tonight  queue" in ran.out
    assert "at most 20 called a second, a token lives 20 s" in ran.out
    for name in ("buyers", "called", "their wait", "sold", "sold out", "in vain"):
        assert re.search(rf"(?m)^{name} +\S", ran.out), name
    for name in ("as it is", "10 called a second", "a token lives 40 s", "72% of the orders paid"):
        assert re.search(rf"(?m)^{name} +\S", ran.out), name
    assert ran.out.endswith("✓ written to evening.svg\n")
    drawn = (folder / "evening.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)  # noqa: S314 - written above
    assert "今晚八点 [bold]" in drawn


def test_json(folder: Path) -> None:
    ran = rehearse(folder, "--buyers", "2000", "--alone", "--json")
    assert ran.code == 0
    assert ran.data["sale"] == "tonight"
    assert (ran.data["mode"], ran.data["buyers"], ran.data["units"]) == ("queue", 2_000, 200)
    assert ran.data["paid"] == 200
    assert len(ran.data["deciles"]) == 10
    assert ran.data["what_if"] == []


def test_a_sale_without_a_queue(folder: Path) -> None:
    plain = re.sub(r"(?s)\[admission\].*?(?=\[\[)", "", SALE)
    (folder / "sale.toml").write_text(plain, encoding="utf-8")
    ran = rehearse(folder, "--buyers", "2000")
    assert ran.code == 0
    assert "whoever comes is served" in ran.out
    assert re.search(r"(?m)^turned away +1,\d{3} found nothing left$", ran.out)
    assert "wait" not in ran.out.partition("what if")[0]


def test_on_a_server_that_is_named(
    folder: Path, server: EmbeddedServer, client: redis.Redis
) -> None:
    keys = client.dbsize()
    on_it = rehearse(folder, "--buyers", "500", "--alone", "--json", "--redis", server.url)
    assert on_it.data == rehearse(folder, "--buyers", "500", "--alone", "--json").data
    assert client.dbsize() == keys


def test_units_that_are_left(folder: Path) -> None:
    (folder / "came.csv").write_text("-39.8\n-0.05\n0\n0.05\n3\n", encoding="utf-8")
    ran = rehearse(folder, "--arrival", "came.csv", "--alone")
    assert re.search(r"(?m)^sold out +units left at the end · never sold out$", ran.out)
    # Nobody wants to be told of the millisecond before the opening.
    assert re.findall(r"(?m)^(\S.* … .*? s) ", ran.out) == [
        "−39.8 s … −39.8 s",
        *["0 s … 0 s"] * 3,
        "+3 s … +3 s",
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--arrival", "slowly"), "--arrival: 'slowly' is unknown; write rush, even:600s or"),
        (("--arrival", "even:soon"), "--arrival: 'soon' is no time that fits"),
        (
            ("--arrival", "even:0"),
            "--arrival: '0' is no time that fits; write a time longer than 0",
        ),
        (("--arrival", "none.csv"), "--arrival: none.csv cannot be read: No such file"),
        (("--show-up", "70"), "--show-up: 70 is no share"),
        (("--order-after", "-1"), "--order-after: '-1' is no time that fits"),
        (("--redis", "here"), "--redis: "),
        (("--buyers", "5", "--svg", "no/where.svg", "--alone"), "--svg: no/where.svg can't be"),
    ],
)
def test_bad_input(folder: Path, args: tuple[str, ...], said: str) -> None:
    ran = rehearse(folder, *args)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"seckill: {said}")


def test_a_server_that_is_not_there(folder: Path) -> None:
    ran = rehearse(folder, "--redis", "redis://127.0.0.1:1/0")
    assert ran.code == 1
    assert "Connection refused" in ran.err
