"""``seckill plan`` against the same arithmetic by hand, and against what people type."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from seckill.errors import InvalidInput
from seckill.plan import LOADED, Asked, Plan, _most_on_one, make_plan
from seckill.plan_figures import BUILT_IN, COMMAND, Figure, measured
from tests.cli.conftest import Ran, run_seckill

CAPACITY = Path(__file__).parents[2] / "docs" / "capacity.md"


def figure(value: float, unit: str = "µs") -> Figure:
    return Figure(value, unit, "", "made up", machine="nowhere")


# Costs that are easy to reckon with.
TABLE = {name: figure(100.0) for name in BUILT_IN} | {
    "intake_order": figure(50.0),
    "intake_first": figure(100.0),
    "intake_payment": figure(400.0),
    "intake_place": figure(30.0),
    "redis_order": figure(10.0),
    "redis_join": figure(10.0),
    "redis_orders": figure(50_000.0, "orders/s"),
    "redis_joins": figure(50_000.0, "joins/s"),
    "ledger_orders": figure(10_000.0, "orders/s"),
    "held_bytes": figure(300.0, "bytes"),
    "paid_bytes": figure(600.0, "bytes"),
    "waiting_bytes": figure(100.0, "bytes"),
    "aof_held_bytes": figure(250.0, "bytes"),
    "aof_paid_bytes": figure(1_000.0, "bytes"),
    "ledger_bytes": figure(800.0, "bytes"),
    "request_bytes": figure(400.0, "bytes"),
    "answer_bytes": figure(500.0, "bytes"),
    "worker_bytes": figure(100e6, "bytes"),
}


def planned(rate: int, buyers: int, **more: Any) -> Plan:
    return make_plan(Asked(orders_per_second=rate, buyers=buyers, **more), TABLE)


def test_by_hand() -> None:
    assert LOADED == 0.6
    made = planned(12_000, 900_000, hold_minutes=15)
    # 12,000 × 100 µs = 1.2 cores, and 2 × 900,000 / 900 s × 400 µs = 0.8 for payments; ÷ 0.6.
    assert made.workers == 4
    assert made.redis_nodes == 1  # 12,000 of 30,000
    assert made.ledger_consumers == 2  # of 6,000 each
    assert made.cores == 4 + 2 + 2
    assert made.redis_memory_bytes == 900_000 * 600 * 1.5
    assert made.intake_memory_bytes == 400e6
    assert made.network_bits_per_s == 12_000 * 500 * 8 * 1.25
    assert made.aof_bytes_per_s == 12_000 * 250
    assert made.aof_bytes == 900_000 * 1_000 * 3
    assert made.ledger_bytes == 900_000 * 800
    assert made.fits


def test_a_queue_by_hand() -> None:
    made = planned(12_000, 900_000, queue=True)
    # 1.2 for joins, 0.6 for orders, 30,000 questions × 30 µs = 0.9, and 0.8: 3.5 ÷ 0.6.
    assert made.workers == 6
    assert made.redis_memory_bytes == 900_000 * (600 + 100) * 1.5
    assert made.network_bits_per_s == (2 * 12_000 + 30_000) * 500 * 8 * 1.25
    # 12,000 of 30,000, twice.
    assert made.redis_nodes == 1
    assert planned(16_000, 900_000, queue=True).redis_nodes == 2


def test_a_short_hold_makes_payments_dense() -> None:
    assert planned(12_000, 900_000, hold_minutes=1).workers == 18  # 1.2 + 24,000 × 400 µs, ÷ 0.6


def test_one_sale_ends_where_its_redis_ends() -> None:
    assert planned(30_000, 10**6).fits
    made = planned(30_001, 10**6)
    assert not made.fits
    (problem,) = made.problems
    assert "ends at 30,000 orders/s with headroom (50,000 without)" in problem
    assert "more servers do not help" in problem
    assert "2 sales or more" in problem
    # Two sales share it on two servers; then nothing is wrong.
    made = planned(30_001, 10**6, sales=2)
    assert (made.fits, made.redis_nodes) == (True, 2)
    # With a queue both joins and orders of the same second are for the one Redis.
    assert planned(15_000, 10**6, queue=True).fits
    assert not planned(15_001, 10**6, queue=True).fits


@pytest.mark.parametrize(
    ("sales", "nodes"), [(6, 6), (7, 7), (8, 8), (10, 10), (11, 11), (12, 6), (24, 6), (25, 7)]
)
def test_a_sale_is_on_one_server_as_a_whole(sales: int, nodes: int) -> None:
    """180,000 a second, of which one server takes 30,000: two of 11 sales are too much for it."""
    made = planned(180_000, 10**6, sales=sales)
    assert (made.fits, made.redis_nodes) == (True, nodes)
    on_one = -(-sales // nodes)
    assert on_one * 180_000 / sales <= 30_000


def test_replicas_by_hand() -> None:
    alone, made = planned(12_000, 900_000), planned(12_000, 900_000, replicas=2)
    assert (alone.redis_nodes, alone.redis_servers) == (1, 1)
    assert (made.redis_nodes, made.redis_servers) == (1, 3)
    assert made.cores == 4 + 2 * 3 + 2
    assert made.redis_memory_bytes == 3 * alone.redis_memory_bytes
    assert made.aof_bytes == 3 * alone.aof_bytes
    # Of one server, as before: each of the three writes it to a disk of its own.
    assert made.aof_bytes_per_s == alone.aof_bytes_per_s
    steps = {line.what: line.result for line in made.lines}
    assert steps["network to replicas"] == "60.0 Mbit/s"  # 12,000 × 250 × 2 × 8 × 1.25
    assert steps["AOF at the peak"].endswith("synced once a second")
    # Everything else costs what it did.
    assert (made.workers, made.ledger_bytes) == (alone.workers, alone.ledger_bytes)
    assert not {"network to replicas", "Redis, with replicas"} & {line.what for line in alone.lines}
    two = planned(30_001, 10**6, sales=2, replicas=1)
    assert (two.redis_nodes, two.redis_servers) == (2, 4)


def test_in_a_cluster_one_server_gets_more_than_its_share() -> None:
    def said(rate: int, sales: int) -> tuple[str, str] | None:
        lines = planned(rate, 10**6, sales=sales).lines
        return next(((one.how, one.result) for one in lines if one.what == "as a cluster"), None)

    assert said(30_000, 20) is None  # One server does.
    # A cluster of fewer than three masters has nobody who could promote a replica. 2,500 a second
    # and sale, of 50,000 that one server takes at all.
    how = "3 masters, at most 11 of 20 sales on one, 9 times in 10"
    assert said(50_000, 20) == (how, "one 55% loaded")
    how = "10 masters, at most 4 of 10 sales on one, 9 times in 10"
    assert said(300_000, 10) == (how, "one 240% loaded: move slots")


@pytest.mark.parametrize(("sales", "nodes"), [(20, 2), (20, 3), (40, 4), (10, 10), (300, 3)])
def test_chance_puts_no_more_sales_on_one(sales: int, nodes: int) -> None:
    most, rounds = _most_on_one(sales, nodes), 2_000
    dice = Random(7)

    def fullest() -> int:
        return max(Counter(dice.randrange(nodes) for _ in range(sales)).values())

    kept = sum(fullest() <= most for _ in range(rounds)) / rounds
    assert kept >= 0.9
    # And one fewer would be too few.
    assert sum(fullest() < most for _ in range(rounds)) / rounds < 0.9


def test_a_slow_redis_ends_by_its_cpu() -> None:
    slow = TABLE | {"redis_order": figure(100.0)}  # 10,000 a second, whatever the lane has seen
    made = make_plan(Asked(orders_per_second=6_001, buyers=1_000), slow)
    assert (made.redis_nodes, made.fits) == (2, False)
    assert make_plan(Asked(orders_per_second=6_000, buyers=1_000), slow).fits


@pytest.mark.parametrize("queue", [False, True])
def test_more_never_takes_less(queue: bool) -> None:
    before = None
    for scale in (1, 7, 50, 333, 4_000):
        made = planned(10 * scale, 1_000 * scale, queue=queue)
        needs = (made.workers, made.redis_nodes, made.cores, made.redis_memory_bytes)
        assert min(needs) >= 1
        if before is not None:
            assert all(now >= then for now, then in zip(needs, before, strict=True))
        before = needs


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"orders_per_second": 0}, "--orders-per-second"),
        ({"orders_per_second": -1}, "--orders-per-second"),
        ({"orders_per_second": 10**9}, "--orders-per-second"),
        ({"buyers": 0}, "--buyers"),
        ({"sales": 0}, "--sales"),
        ({"hold_minutes": 0}, "--hold-minutes"),
        ({"hold_minutes": 10**6}, "--hold-minutes"),
        ({"replicas": -1}, "--replicas"),
        ({"replicas": 99}, "--replicas"),
    ],
)
def test_bad_numbers(given: dict[str, int], named: str) -> None:
    asked = Asked(**({"orders_per_second": 1, "buyers": 1} | given))
    with pytest.raises(InvalidInput) as caught:
        make_plan(asked)
    assert caught.value.field == named
    assert f"give {0 if 'replicas' in given else 1} to" in caught.value.remedy


def report(tmp_path: Path, *rows: dict[str, Any], **facts: str) -> Path:
    file = tmp_path / "run.json"
    file.write_text(
        json.dumps({"machine": "my box", "date": "2026-11-28T01"} | facts | {"rows": rows})
    )
    return file


def row(name: str, median: float | None, server: str = "Redis, fsync always") -> dict[str, Any]:
    known = BUILT_IN[name]
    question = known.question.replace("#", "12,000")
    said = {"benchmark": known.benchmark, "question": question, "unit": "s/10k"}
    return said | {"server": server, "median": median, "values": [1], "verdict": "info"}


def test_measured_rows_take_the_place_of_ours(tmp_path: Path) -> None:
    file = report(
        tmp_path,
        row("intake_first", 0.7),
        row("intake_first", 0.9, "Valkey, fsync always"),
        row("redis_orders", 40_000.0),
        row("redis_orders", 30_000.0, "Valkey, fsync always"),
        row("redis_orders", 20_000.0, "Redis, fsync off"),
        row("redis_order", None),
    )
    table = measured(file)
    # The dearest of the servers, the slowest of the rates; without an AOF nothing counts.
    assert table["intake_first"].value == pytest.approx(90.0)
    assert table["redis_orders"].value == 30_000
    assert table["intake_first"].machine == "my box 2026-11-28"
    # What the report lacks, or calls too noisy to say, is as built in.
    assert table["redis_order"] == BUILT_IN["redis_order"]
    assert table["held_bytes"] == BUILT_IN["held_bytes"]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_figure_can_be_measured(name: str, tmp_path: Path) -> None:
    table = measured(report(tmp_path, row(name, 7.0)))
    assert table[name].value == pytest.approx(7.0 * BUILT_IN[name].factor)
    assert [other for other, found in table.items() if found != BUILT_IN[other]] == [name]


def test_a_number_in_a_row_may_be_another_one(tmp_path: Path) -> None:
    # Of several numbers of orders the dearest counts, as where a table of Redis is doubling.
    rows = [row("held_bytes", size) for size in (300.0, 340.0, 310.0)]
    for number, found in zip(("100,000", "133000", "7"), rows, strict=True):
        found["question"] = f"memory of a held order, {number} held"
    assert measured(report(tmp_path, *rows))["held_bytes"].value == 340
    for question in (
        "memory of a held order, many held",
        "memory of a held order, 7 held, and more",
        "memory of a held order,  held",
    ):
        rows[1]["question"] = question
        assert measured(report(tmp_path, *rows))["held_bytes"].value == 310, question


def test_a_number_that_is_reckoned_with_may_not(tmp_path: Path) -> None:
    rows = [row("ledger_orders", 9_000.0), row("redis_orders", 1.0)]
    rows[0]["question"] = "drained into PostgreSQL, 200,000 orders, 3 consumers"
    assert measured(report(tmp_path, *rows))["ledger_orders"] == BUILT_IN["ledger_orders"]


def test_every_figure_says_where_it_comes_from() -> None:
    for name, found in BUILT_IN.items():
        assert found.benchmark, name
        assert "#" not in found.source, name
        assert f" {found.benchmark} " in COMMAND, name
    assert f"{COMMAND.removesuffix('FILE')}run.json\n" in CAPACITY.read_text("utf-8")
    assert BUILT_IN["held_bytes"].source == "cost: memory of a held order, many held"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("", "is no report"),
        ("[1, 2]", "is no report"),
        ('{"rows": 5}', "is no report"),
        ('{"rows": [{"benchmark": "lane"}]}', "is no report"),
        ("\x00\xff", "is no report"),
        ("[" * 100_000, "is no report"),
        ('{"rows": []}', "none of the rows"),
        ('{"rows": [], "quick": "tiny counts"}', "--quick"),
    ],
)
def test_a_file_that_is_no_report(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInput) as caught:
        measured(file)
    assert caught.value.field == "--measured"
    assert said in caught.value.problem
    assert "python -m benchmarks" in caught.value.remedy


def plan(tmp_path: Path, *options: str, **env: str) -> Ran:
    return run_seckill("plan", *options, cwd=tmp_path, **env)


def test_the_command(tmp_path: Path) -> None:
    asked = ("--orders-per-second", "20000", "--buyers", "1000000")
    shown = plan(tmp_path, *asked)
    assert (shown.code, shown.err) == (0, "")
    assert "20,000 orders/s at the peak, 1,000,000 buyers, 1 sale" in shown.out
    data = plan(tmp_path, *asked, "--json").data
    made = make_plan(Asked(orders_per_second=20_000, buyers=1_000_000))
    assert data["fits"] is True
    assert (data["workers"], data["cores"]) == (made.workers, made.cores)
    assert [line["what"] for line in data["lines"]] == [line.what for line in made.lines]
    # Every figure that was used is named with where it comes from.
    assert all(found["question"] and found["machine"] for found in data["figures"].values())
    for line in made.lines:
        assert line.what in shown.out
    assert f"so: {made.workers} workers, 1 Redis, " in shown.out
    assert "the SQL database, replicas measured by" in " ".join(shown.out.split())
    shown = plan(tmp_path, *asked, "--replicas", "2")
    assert (shown.code, shown.err) == (0, "")
    assert f"so: {made.workers} workers, 1 Redis with 2 replicas, " in shown.out
    assert "the SQL database measured by" in " ".join(shown.out.split())


def test_what_does_not_fit_ends_with_1(tmp_path: Path) -> None:
    asked = ("--orders-per-second", "900000", "--buyers", "1000000", "--queue")
    shown = plan(tmp_path, *asked)
    assert shown.code == 1
    assert "✗ one sale lives on one Redis" in shown.out
    ran = plan(tmp_path, *asked, "--json")
    assert (ran.code, ran.data["fits"]) == (1, False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--buyers", "5"), "--orders-per-second"),
        (("--orders-per-second", "x", "--buyers", "5"), "--orders-per-second"),
        (("--orders-per-second", "5", "--buyers", "0"), "--buyers"),
        (("--orders-per-second", "5", "--buyers", "5", "--measured", "nowhere"), "--measured"),
        (("--orders-per-second", "5", "--buyers", "5", "--measured", "."), "--measured"),
    ],
)
def test_bad_options_are_named(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ran = plan(tmp_path, *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
