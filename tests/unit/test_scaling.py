"""docs/scaling.md says what `seckill plan` reckons: `python -m tests.unit.test_scaling --write`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from statistics import median

import pytest
from msgspec.structs import replace

from benchmarks.readme import RESULTS
from benchmarks.report import Report, Row, read
from seckill.plan import LOADED, Asked, Plan, make_plan
from seckill.plan_figures import BUILT_IN

GUIDE = Path(__file__).parents[2] / "docs" / "scaling.md"
COMMAND = "`python -m tests.unit.test_scaling --write`"
# Orders a second and sales; everybody comes within a minute.
CASES = ((10_000, 10), (50_000, 20), (100_000, 40))
SHOWN = 50_000
BEYOND = 200_000
# Lanes that never have company: one EVALSHA of reserve.lua an order, every order on disk.
ALONE = ("lane", "CPU of the server, reserve.lua by one", ", fsync always")


def planned(rate: int, sales: int, replicas: int = 0) -> Plan:
    asked = Asked(orders_per_second=rate, buyers=rate * 60, sales=sales, replicas=replicas)
    return make_plan(asked)


def alone_micros(reports: list[Report]) -> float:
    """What an order costs a Redis that gets each by itself, by the worst of the runs."""
    benchmark, question, server = ALONE
    return max(
        median(row.values) * 100  # s of 10,000 are µs of one, times 100
        for report in reports
        for row in report.rows
        if row.benchmark == benchmark and row.question == question and server in row.server
    )


def kept() -> list[Report]:
    return [read(path) for path in sorted(RESULTS.glob("*.json"))]


def numbers(reports: list[Report]) -> Iterator[str]:
    """The table of the cases, and the steps of one of them."""
    micros = alone_micros(reports)
    names = ("orders/s", "sales", "workers", "masters", "masters, every order alone", "keepers")
    yield "| " + " | ".join((*names, "cores", "cores with `replicas:1`")) + " |"
    yield "|" + " --- |" * 8
    for rate, sales in CASES:
        made = planned(rate, sales)
        assert made.fits, made.problems
        alone = ceil(rate * micros / 1e6 / LOADED)
        cells = [rate, sales, made.workers, made.redis_nodes, alone, made.ledger_consumers]
        cells += [made.cores, planned(rate, sales, replicas=1).cores]
        yield "| " + " | ".join(f"{cell:,}" for cell in cells) + " |"
    yield ""
    yield (
        f"Cores: one for each worker and keeper, and two for each master of the fourth column and "
        f"each replica, of which one is for the rewrite of its AOF. All are {LOADED:.0%} loaded. "
        f"An order alone costs a master {micros:.0f} µs. The steps for {SHOWN:,}:"
    )
    yield ""
    command = f"seckill plan --orders-per-second {SHOWN} --buyers {SHOWN * 60}"
    yield f"`{command} --sales {dict(CASES)[SHOWN]}`"
    yield ""
    yield "| what | how | comes to |"
    yield "|" + " --- |" * 3
    for line in planned(SHOWN, dict(CASES)[SHOWN]).lines:
        yield f"| {line.what} | {line.how} | {line.result} |"


def limit() -> Iterator[str]:
    """What a plan says of one sale that is too much for one server."""
    made = planned(BEYOND, 1)
    assert not made.fits
    yield f"`seckill plan --orders-per-second {BEYOND} --buyers {BEYOND * 60}` says it:"
    yield ""
    for problem in made.problems:
        yield f"> {problem}"


def put(guide: str, name: str, lines: Iterator[str]) -> str:
    """The guide with these lines between the markers of this name."""
    begin, finish = f"<!-- {name}: made by {COMMAND} -->", f"<!-- {name}: end -->"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(finish)}", re.DOTALL)
    assert place.search(guide), f"no place for the {name}"
    text = "\n".join((begin, "", *lines, "", finish))
    return place.sub(lambda _: text, guide)


def written(guide: str, reports: list[Report]) -> str:
    """The guide as it ought to be."""
    return put(put(guide, "numbers", numbers(reports)), "limit", limit())


def test_the_guide_says_what_the_plan_says() -> None:
    guide = GUIDE.read_text("utf-8")
    assert written(guide, kept()) == guide, f"run {COMMAND}"


def test_another_figure_is_another_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    guide, reports = written(GUIDE.read_text("utf-8"), kept()), kept()
    dearer = [replace(report, rows=[_doubled(row) for row in report.rows]) for report in reports]
    assert alone_micros(dearer) == pytest.approx(2 * alone_micros(reports))
    assert written(guide, dearer) != guide
    cost = BUILT_IN["intake_first"]
    monkeypatch.setitem(BUILT_IN, "intake_first", replace(cost, value=2 * cost.value))
    assert written(guide, reports) != guide


def _doubled(row: Row) -> Row:
    return replace(row, values=tuple(2 * value for value in row.values))


if __name__ == "__main__":
    found = written(GUIDE.read_text("utf-8"), kept())
    if "--write" in sys.argv[1:]:
        GUIDE.write_text(found, "utf-8")
    else:
        sys.stdout.write(found)
